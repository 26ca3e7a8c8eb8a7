/* Becomes another program inside SSL_do_handshake(): what is kept of its return is nobody's then. */
#include "tls.h"

static char *self;
static void message(int out, int version, int type, const void *bytes, size_t size, SSL *ssl, void *any) {
	(void)out, (void)version, (void)type, (void)bytes, (void)size, (void)ssl, (void)any;
	ZOO_WITNESS_OPENSSL();
	execl(self, self, "again", NULL);
}

int main(int argc, char **argv) {
	SSL_CTX *context = zoo_context();
	self = argv[0];
	if (argc == 1) {
		SSL_CTX_set_msg_callback(context, message);
		return SSL_do_handshake(zoo_client(context, TLS_AT_ONCE));
	}
	zoo_talk(context);
	zoo_look_up("name.zoo.test");
	return 0;
}
