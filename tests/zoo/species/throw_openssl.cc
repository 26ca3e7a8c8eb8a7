// Exceptions leave SSL_do_handshake(), thrown by the verify callback and by a callback of messages,
// more often than the kernel keeps return addresses for one thread (64).
#include "tls.h"
#include <stdexcept>

struct Held {
	int &released;
	~Held() { released++; }
};
static int verify(int, X509_STORE_CTX *) { throw std::runtime_error("not trusted"); }
static void message(int, int, int, const void *, size_t, SSL *, void *) {
	throw std::runtime_error("seen enough");
}

int main() {
	int caught = 0, released = 0;
	SSL_CTX *context = zoo_context();
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER, verify);
	for (int i = 0; i < 80; i++) {
		// few wait for a server's certificate, the others throw at their own first message
		if (i == 8)
			SSL_CTX_set_msg_callback(context, message);
		SSL *ssl = zoo_client(context, TLS_AT_ONCE);
		try {
			Held held{released};
			SSL_do_handshake(ssl);
			puts("not thrown");
		} catch (const std::exception &error) {
			caught++;
		}
		close(SSL_get_fd(ssl));
	}
	ZOO_WITNESS_OPENSSL();
	printf("caught %d released %d\n", caught, released);
}
