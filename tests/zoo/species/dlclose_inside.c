/* A library is loaded and unloaded again and again, at whatever address it gets, by one thread while
 * others are inside its function; probes must follow every mapping and outlive none. */
#include "zoo.h"
#include <dlfcn.h>
#include <openssl/ssl.h>
#include <pthread.h>

static int good, all;

static void *load_and_shake(void *any) {
	int i;
	for (i = 0; i < 6; i++) {
		void *library = dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL);
		SSL_CTX *(*new_context)(const SSL_METHOD *) = dlsym(library, "SSL_CTX_new");
		const SSL_METHOD *(*method)(void) = dlsym(library, "TLS_client_method");
		SSL *(*new_ssl)(SSL_CTX *) = dlsym(library, "SSL_new");
		int (*set_fd)(SSL *, int) = dlsym(library, "SSL_set_fd");
		void (*set_connect)(SSL *) = dlsym(library, "SSL_set_connect_state");
		int (*shake)(SSL *) = dlsym(library, "SSL_do_handshake");
		void (*free_ssl)(SSL *) = dlsym(library, "SSL_free");
		void (*free_context)(SSL_CTX *) = dlsym(library, "SSL_CTX_free");
		SSL_CTX *context = new_context(method());
		SSL *ssl = new_ssl(context);
		int fd = zoo_connect(TLS_AT_ONCE);
		set_fd(ssl, fd);
		set_connect(ssl);
		__atomic_add_fetch(&good, shake(ssl) == 1, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&all, 1, __ATOMIC_SEQ_CST);
		zoo_witness("SSL_do_handshake", (const void *)shake);
		free_ssl(ssl);
		free_context(context);
		close(fd);
		dlclose(library);
	}
	return any;
}
static void *load_alone(void *any) {
	int i;
	for (i = 0; i < 60; i++) {
		void *library = dlopen("libgnutls.so.30", RTLD_NOW | RTLD_LOCAL);
		usleep(500);
		dlclose(library);
	}
	return any;
}

int main(void) {
	pthread_t threads[3];
	int i;
	for (i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, i ? load_and_shake : load_alone, NULL);
	for (i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	printf("%d of %d\n", good, all);
	return 0;
}
