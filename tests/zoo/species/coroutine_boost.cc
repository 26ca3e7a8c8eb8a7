// boost.context fibers inside SSL_do_handshake(), resumed from the BIO's read; as coroutine_ucontext.
#include "tls.h"
#include <boost/context/fiber.hpp>
#include <vector>

namespace ctx = boost::context;

struct Fiber {
	int fd = -1, result = -2;
	bool done = false;
	ctx::fiber self, home;
};
static std::vector<Fiber> fibers(3);

static int bio_read(BIO *bio, char *into, int size) {
	Fiber &fiber = *static_cast<Fiber *>(BIO_get_data(bio));
	int got;
	while ((got = recv(fiber.fd, into, size, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
		fiber.home = std::move(fiber.home).resume();
	return got;
}
static int bio_write(BIO *bio, const char *from, int size) {
	return send(static_cast<Fiber *>(BIO_get_data(bio))->fd, from, size, MSG_NOSIGNAL);
}
static long bio_ctrl(BIO *, int command, long, void *) { return command == BIO_CTRL_FLUSH; }
static int bio_create(BIO *bio) {
	BIO_set_init(bio, 1);
	return 1;
}

int main() {
	SSL_CTX *context = zoo_context();
	BIO_METHOD *method = BIO_meth_new(0x480, "fiber");
	BIO_meth_set_read(method, bio_read);
	BIO_meth_set_write(method, bio_write);
	BIO_meth_set_ctrl(method, bio_ctrl);
	BIO_meth_set_create(method, bio_create);
	const int ports[] = {TLS_AT_ONCE, TLS_AFTER_10_MS, TLS_AFTER_30_MS};
	for (int i = 0; i < 3; i++) {
		Fiber &fiber = fibers[i];
		fiber.fd = zoo_connect(ports[i]);
		fiber.self = ctx::fiber([&fiber, context, method](ctx::fiber &&home) {
			fiber.home = std::move(home);
			BIO *bio = BIO_new(method);
			SSL *ssl = SSL_new(context);
			BIO_set_data(bio, &fiber);
			SSL_set_bio(ssl, bio, bio);
			SSL_set_connect_state(ssl);
			fiber.result = SSL_do_handshake(ssl);
			fiber.done = true;
			return std::move(fiber.home);
		});
		fiber.self = std::move(fiber.self).resume();
	}
	for (int left = 3; left;) {
		usleep(500);
		left = 0;
		for (Fiber &fiber : fibers)
			if (!fiber.done) {
				fiber.self = std::move(fiber.self).resume();
				left += !fiber.done;
			}
	}
	ZOO_WITNESS_OPENSSL();
	for (int i = 0; i < 3; i++)
		printf("%d: %d\n", i, fibers[i].result);
	puts("all done");
}
