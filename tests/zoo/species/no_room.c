/* No address is left in the process for the mapping that the kernel makes at its first probe: then the
 * probed instruction must still be passed. In a child, which is given up after a time. */
#include "zoo.h"
#include <sys/mman.h>

int main(void) {
	struct addrinfo hints, *found = NULL;
	int status, waited;
	size_t size;
	pid_t child;
	memset(&hints, 0, sizeof hints);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	free(malloc(1 << 16)); /* the heap, before */
	if (!(child = fork())) {
		for (size = 1ul << 46; size >= 4096; size /= 2)
			while (mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) !=
			       MAP_FAILED)
				;
		_exit(getaddrinfo("127.0.0.1", "80", &hints, &found) || !found ? 1 : 23);
	}
	for (waited = 0; waitpid(child, &status, WNOHANG) == 0; waited++) {
		if (waited > 3000) {
			puts("stuck");
			kill(child, SIGKILL);
		}
		usleep(1000);
	}
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	printf("ended %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -status);
	return 0;
}
