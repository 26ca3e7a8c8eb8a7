/* What debuggers are pointed at: a lookup and a handshake, with a function of its own called inside
 * the handshake, at which they stop and look at who called. */
#include "tls.h"

__attribute__((noinline)) void inside_handshake(void) { __asm__ volatile(""); }
static void message(int out, int version, int type, const void *bytes, size_t size, SSL *ssl, void *any) {
	static int calls;
	(void)out, (void)version, (void)type, (void)bytes, (void)size, (void)ssl, (void)any;
	if (!calls++)
		inside_handshake();
}
int main(void) {
	SSL_CTX *context = zoo_context();
	SSL_CTX_set_msg_callback(context, message);
	zoo_look_up("name.zoo.test");
	zoo_talk(context);
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	ZOO_WITNESS_OPENSSL();
	return 0;
}
