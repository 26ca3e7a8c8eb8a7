/* LD_PRELOAD wrappers (as of tsocks, proxychains, faketime, tracers) of the probed functions. */
#include "zoo.h"
#include <dlfcn.h>
#include <openssl/ssl.h>

static int lookups, handshakes;

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
	int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		dlsym(RTLD_NEXT, "getaddrinfo");
	int code = next(node, service, hints, found);
	lookups++;
	zoo_witness("getaddrinfo", (const void *)next);
	return code;
}
int SSL_do_handshake(SSL *ssl) {
	int (*next)(SSL *) = dlsym(RTLD_NEXT, "SSL_do_handshake");
	handshakes++;
	zoo_witness("SSL_do_handshake", (const void *)next);
	return next(ssl);
}
__attribute__((destructor)) static void tell(void) {
	printf("wrapped %d lookups, %d handshakes\n", lookups, handshakes);
	fflush(stdout);
}
