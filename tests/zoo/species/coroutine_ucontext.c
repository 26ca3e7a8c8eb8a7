/* Three stackful coroutines of one thread, each inside SSL_do_handshake(), which they leave in the
 * order in which they came: whoever keeps return addresses as a stack takes one for another's. */
#include "tls.h"
#include <ucontext.h>

#define COROUTINES 3
static ucontext_t home, coroutine[COROUTINES];
static char stack[COROUTINES][1 << 18];
static int fd[COROUTINES], done[COROUTINES], result[COROUTINES];
static SSL_CTX *context;
static BIO_METHOD *method;

static int bio_read(BIO *bio, char *into, int size) {
	long i = (long)BIO_get_data(bio);
	int got;
	while ((got = recv(fd[i], into, size, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
		swapcontext(&coroutine[i], &home);
	return got;
}
static int bio_write(BIO *bio, const char *from, int size) {
	return send(fd[(long)BIO_get_data(bio)], from, size, MSG_NOSIGNAL);
}
static long bio_ctrl(BIO *bio, int command, long number, void *pointer) {
	(void)bio, (void)number, (void)pointer;
	return command == BIO_CTRL_FLUSH;
}
static int bio_create(BIO *bio) {
	BIO_set_init(bio, 1);
	return 1;
}
static void body(int i) {
	BIO *bio = BIO_new(method);
	SSL *ssl = SSL_new(context);
	BIO_set_data(bio, (void *)(long)i);
	SSL_set_bio(ssl, bio, bio);
	SSL_set_connect_state(ssl);
	result[i] = SSL_do_handshake(ssl);
	done[i] = 1;
	swapcontext(&coroutine[i], &home);
}

int main(void) {
	int i, left = COROUTINES;
	int ports[COROUTINES] = {TLS_AT_ONCE, TLS_AFTER_10_MS, TLS_AFTER_30_MS};
	context = zoo_context();
	method = BIO_meth_new(0x480, "coroutine");
	BIO_meth_set_read(method, bio_read);
	BIO_meth_set_write(method, bio_write);
	BIO_meth_set_ctrl(method, bio_ctrl);
	BIO_meth_set_create(method, bio_create);
	for (i = 0; i < COROUTINES; i++) {
		fd[i] = zoo_connect(ports[i]);
		getcontext(&coroutine[i]);
		coroutine[i].uc_stack.ss_sp = stack[i];
		coroutine[i].uc_stack.ss_size = sizeof stack[i];
		makecontext(&coroutine[i], (void (*)(void))body, 1, i);
		swapcontext(&home, &coroutine[i]); /* all are inside before any is answered in turn */
	}
	while (left) {
		usleep(500);
		for (left = i = 0; i < COROUTINES; i++)
			if (!done[i]) {
				swapcontext(&home, &coroutine[i]);
				left += !done[i];
			}
	}
	ZOO_WITNESS_OPENSSL();
	for (i = 0; i < COROUTINES; i++)
		printf("%d: %d\n", i, result[i]);
	puts("all done");
	return 0;
}
