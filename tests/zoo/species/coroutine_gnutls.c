/* The same with gnutls_handshake(), whose pull function switches to the other coroutines. */
#include "zoo.h"
#include <gnutls/gnutls.h>
#include <ucontext.h>

#define COROUTINES 3
static ucontext_t home, coroutine[COROUTINES];
static char stack[COROUTINES][1 << 18];
static int fd[COROUTINES], done[COROUTINES], result[COROUTINES];
static gnutls_certificate_credentials_t credentials;

static ssize_t pull(gnutls_transport_ptr_t transport, void *into, size_t size) {
	long i = (long)transport;
	ssize_t got;
	while ((got = recv(fd[i], into, size, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
		swapcontext(&coroutine[i], &home);
	return got;
}
static ssize_t push(gnutls_transport_ptr_t transport, const void *from, size_t size) {
	return send(fd[(long)transport], from, size, MSG_NOSIGNAL);
}
static int ready(gnutls_transport_ptr_t transport, unsigned int ms) {
	(void)transport, (void)ms;
	return 1;
}
static void body(int i) {
	gnutls_session_t session;
	gnutls_init(&session, GNUTLS_CLIENT);
	gnutls_set_default_priority(session);
	gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
	gnutls_transport_set_ptr(session, (void *)(long)i);
	gnutls_transport_set_pull_function(session, pull);
	gnutls_transport_set_push_function(session, push);
	gnutls_transport_set_pull_timeout_function(session, ready);
	result[i] = gnutls_handshake(session);
	done[i] = 1;
	swapcontext(&coroutine[i], &home);
}

int main(void) {
	int i, left = COROUTINES;
	int ports[COROUTINES] = {TLS_AT_ONCE, TLS_AFTER_10_MS, TLS_AFTER_30_MS};
	gnutls_certificate_allocate_credentials(&credentials);
	for (i = 0; i < COROUTINES; i++) {
		fd[i] = zoo_connect(ports[i]);
		getcontext(&coroutine[i]);
		coroutine[i].uc_stack.ss_sp = stack[i];
		coroutine[i].uc_stack.ss_size = sizeof stack[i];
		makecontext(&coroutine[i], (void (*)(void))body, 1, i);
		swapcontext(&home, &coroutine[i]);
	}
	while (left) {
		usleep(500);
		for (left = i = 0; i < COROUTINES; i++)
			if (!done[i]) {
				swapcontext(&home, &coroutine[i]);
				left += !done[i];
			}
	}
	zoo_witness("gnutls_handshake", (const void *)gnutls_handshake);
	for (i = 0; i < COROUTINES; i++)
		printf("%d: %d\n", i, result[i]);
	puts("all done");
	return 0;
}
