/* TLS clients for zoo.h: SSL_do_handshake() and gnutls_handshake() with whatever the species hangs
 * into them. */
#ifndef ZOO_TLS_H
#define ZOO_TLS_H
#include "zoo.h"
#include <openssl/ssl.h>

static inline SSL_CTX *zoo_context(void) {
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());
	if (!context)
		exit(98);
	return context;
}

static inline SSL *zoo_client(SSL_CTX *context, int port) {
	SSL *ssl = SSL_new(context);
	SSL_set_fd(ssl, zoo_connect(port));
	SSL_set_connect_state(ssl);
	return ssl;
}

static inline void zoo_close(SSL *ssl) {
	int fd = SSL_get_fd(ssl);
	SSL_free(ssl);
	if (fd >= 0)
		close(fd);
}

/* One whole connection: handshake, then the server's two bytes. */
static inline void zoo_talk(SSL_CTX *context) {
	SSL *ssl = zoo_client(context, TLS_AT_ONCE);
	char word[3] = "";
	int done = SSL_do_handshake(ssl);
	if (done == 1 && SSL_read(ssl, word, 2) < 0)
		word[0] = '?';
	printf("handshake %d %s\n", done, word);
	zoo_close(ssl);
}

#define ZOO_WITNESS_OPENSSL() zoo_witness("SSL_do_handshake", (const void *)SSL_do_handshake)

#endif
