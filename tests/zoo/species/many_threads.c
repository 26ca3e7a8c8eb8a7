/* More threads inside than the kernel has places to step over a probed instruction (32 a process), some
 * of which end there with their process. */
#include "zoo.h"
#include <pthread.h>

static int good;

static void *look_up(void *any) {
	struct addrinfo hints, *found;
	int i;
	memset(&hints, 0, sizeof hints);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	for (i = 0; i < 10; i++)
		if (!getaddrinfo(i % 2 ? "127.0.0.1" : "::1", "80", &hints, &found)) {
			freeaddrinfo(found);
			__atomic_add_fetch(&good, 1, __ATOMIC_SEQ_CST);
		}
	return any;
}
static void *for_ever(void *any) {
	for (;;)
		look_up(any);
}

int main(void) {
	pthread_t threads[80], one;
	int i, status;
	pid_t child = fork();
	if (!child) {
		for (i = 0; i < 8; i++)
			pthread_create(&one, NULL, for_ever, NULL);
		usleep(3000);
		_exit(5);
	}
	for (i = 0; i < 80; i++)
		pthread_create(&threads[i], NULL, look_up, NULL);
	for (i = 0; i < 80; i++)
		pthread_join(threads[i], NULL);
	waitpid(child, &status, 0);
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	printf("%d good, child %d\n", good, WIFEXITED(status) ? WEXITSTATUS(status) : -status);
	return 0;
}
