/* longjmp() out of a callback inside SSL_do_handshake(), 80 times, then a whole handshake. */
#include "tls.h"
#include <setjmp.h>

static jmp_buf back;
static void message(int out, int version, int type, const void *bytes, size_t size, SSL *ssl, void *any) {
	(void)out, (void)version, (void)type, (void)bytes, (void)size, (void)ssl, (void)any;
	longjmp(back, 1);
}

int main(void) {
	volatile int i, jumped = 0;
	SSL_CTX *context = zoo_context();
	SSL_CTX_set_msg_callback(context, message);
	for (i = 0; i < 80; i++) {
		SSL *volatile ssl = zoo_client(context, TLS_AT_ONCE);
		if (setjmp(back))
			jumped++;
		else
			printf("returned %d\n", SSL_do_handshake(ssl));
		close(SSL_get_fd(ssl));
	}
	SSL_CTX_set_msg_callback(context, NULL);
	zoo_talk(context);
	ZOO_WITNESS_OPENSSL();
	printf("jumped %d\n", jumped);
	return 0;
}
