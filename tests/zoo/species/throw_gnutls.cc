// Exceptions leave gnutls_handshake() from its verify and push functions.
#include "zoo.h"
#include <gnutls/gnutls.h>
#include <stdexcept>

static int verify(gnutls_session_t) { throw std::runtime_error("not trusted"); }
static ssize_t push(gnutls_transport_ptr_t, const void *, size_t) { throw std::runtime_error("no"); }

int main() {
	int caught = 0;
	gnutls_certificate_credentials_t credentials;
	gnutls_certificate_allocate_credentials(&credentials);
	gnutls_certificate_set_verify_function(credentials, verify);
	for (int i = 0; i < 20; i++) {
		gnutls_session_t session;
		gnutls_init(&session, GNUTLS_CLIENT);
		gnutls_set_default_priority(session);
		gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
		int fd = zoo_connect(TLS_AT_ONCE);
		gnutls_transport_set_int(session, fd);
		if (i >= 3)
			gnutls_transport_set_push_function(session, push);
		try {
			printf("%s\n", gnutls_strerror(gnutls_handshake(session)));
		} catch (const std::exception &) {
			caught++;
		}
		close(fd);
	}
	zoo_witness("gnutls_handshake", reinterpret_cast<const void *>(gnutls_handshake));
	printf("caught %d\n", caught);
}
