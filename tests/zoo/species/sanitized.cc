// AddressSanitizer stands around getaddrinfo() and keeps shadows of stacks: exceptions and long jumps
// out of callbacks included.
#include "tls.h"
#include <stdexcept>

static void message(int, int, int, const void *, size_t, SSL *, void *any) {
	char local[64];
	snprintf(local, sizeof local, "%p", any);
	if (*static_cast<int *>(any))
		throw std::runtime_error(local);
}

int main() {
	int angry = 1, caught = 0;
	SSL_CTX *context = zoo_context();
	SSL_CTX_set_msg_callback(context, message);
	SSL_CTX_set_msg_callback_arg(context, &angry);
	for (int i = 0; i < 10; i++) {
		SSL *ssl = zoo_client(context, TLS_AT_ONCE);
		try {
			SSL_do_handshake(ssl);
		} catch (const std::exception &) {
			caught++;
		}
		close(SSL_get_fd(ssl));
	}
	angry = 0;
	zoo_look_up("name.zoo.test");
	zoo_talk(context);
	ZOO_WITNESS_OPENSSL();
	printf("caught %d\n", caught);
}
