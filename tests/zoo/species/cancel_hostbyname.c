/* As cancel_lookup for gethostbyname_r(), with clean-up handlers of C, and pthread_exit() inside
 * SSL_do_handshake(), which unwinds likewise. */
#include "tls.h"
#include <pthread.h>

static int released;
static SSL_CTX *context;

static void release(void *any) {
	(void)any;
	__atomic_add_fetch(&released, 1, __ATOMIC_SEQ_CST);
}
static void *look_up(void *any) {
	struct hostent host, *found;
	char space[4096];
	int error;
	pthread_cleanup_push(release, any);
	for (;;)
		gethostbyname_r("silent.zoo.test", &host, space, sizeof space, &found, &error);
	pthread_cleanup_pop(1);
}
static void message(int out, int version, int type, const void *bytes, size_t size, SSL *ssl, void *any) {
	(void)out, (void)version, (void)type, (void)bytes, (void)size, (void)ssl, (void)any;
	pthread_exit(NULL);
}
static void *shake(void *any) {
	SSL *ssl = zoo_client(context, TLS_AT_ONCE);
	pthread_cleanup_push(release, any);
	printf("returned %d\n", SSL_do_handshake(ssl));
	pthread_cleanup_pop(0);
	return NULL;
}

int main(void) {
	pthread_t looking, shaking;
	context = zoo_context();
	SSL_CTX_set_msg_callback(context, message);
	pthread_create(&looking, NULL, look_up, NULL);
	pthread_create(&shaking, NULL, shake, NULL);
	usleep(15000);
	pthread_cancel(looking);
	pthread_join(looking, NULL);
	pthread_join(shaking, NULL);
	zoo_witness("gethostbyname_r", (const void *)gethostbyname_r);
	ZOO_WITNESS_OPENSSL();
	printf("released %d\n", released);
	return 0;
}
