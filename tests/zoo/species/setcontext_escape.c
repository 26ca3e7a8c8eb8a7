/* Leaves SSL_do_handshake() by setcontext() on a stack of its own, and enters it again there. */
#include "tls.h"
#include <ucontext.h>

static ucontext_t home, inside;
static char stack[1 << 18];
static SSL_CTX *context;
static volatile int left, entered;

static void message(int out, int version, int type, const void *bytes, size_t size, SSL *ssl, void *any) {
	(void)out, (void)version, (void)type, (void)bytes, (void)size, (void)ssl, (void)any;
	left++;
	setcontext(&home);
}
static void body(void) {
	SSL *ssl = zoo_client(context, TLS_AT_ONCE);
	printf("returned %d\n", SSL_do_handshake(ssl));
	exit(1);
}

int main(void) {
	context = zoo_context();
	SSL_CTX_set_msg_callback(context, message);
	getcontext(&home);
	if (entered++ < 70) {
		getcontext(&inside);
		inside.uc_stack.ss_sp = stack;
		inside.uc_stack.ss_size = sizeof stack;
		makecontext(&inside, body, 0);
		setcontext(&inside);
	}
	SSL_CTX_set_msg_callback(context, NULL);
	zoo_talk(context);
	ZOO_WITNESS_OPENSSL();
	printf("left %d\n", left);
	return 0;
}
