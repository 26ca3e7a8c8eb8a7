// A thread is cancelled inside getaddrinfo(): the forced unwinding must run its destructors.
#include "zoo.h"
#include <pthread.h>

static int released;
struct Held {
	~Held() { __atomic_add_fetch(&released, 1, __ATOMIC_SEQ_CST); }
};
static void *look_up(void *) {
	Held held;
	addrinfo *found;
	for (;;)
		getaddrinfo("silent.zoo.test", "80", nullptr, &found);
}

int main() {
	pthread_t threads[4];
	for (pthread_t &thread : threads)
		pthread_create(&thread, nullptr, look_up, nullptr);
	usleep(15000);
	for (pthread_t &thread : threads)
		pthread_cancel(thread);
	for (pthread_t &thread : threads)
		pthread_join(thread, nullptr);
	zoo_witness("getaddrinfo", reinterpret_cast<const void *>(getaddrinfo));
	printf("released %d\n", released);
}
