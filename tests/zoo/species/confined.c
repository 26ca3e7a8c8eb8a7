/* A probe puts one mapping of its own into a process: that must work under every limit on mappings. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif

int main(void) {
	struct rlimit none = {0, 0}, space = {64 << 20, 64 << 20};
	struct addrinfo hints, *found;
	int i;
	memset(&hints, 0, sizeof hints);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	prctl(PR_SET_MDWE, 1, 0, 0, 0); /* from Linux 6.3: no mapping is made executable later */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	mlockall(MCL_CURRENT | MCL_FUTURE);
	setrlimit(RLIMIT_AS, &space);
	setrlimit(RLIMIT_MEMLOCK, &none);
	setrlimit(RLIMIT_NPROC, &none);
	setrlimit(RLIMIT_CORE, &none);
	for (i = 0; i < 3; i++)
		printf("%d\n", getaddrinfo("127.0.0.1", "80", &hints, &found));
	zoo_look_up("name.zoo.test");
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	return 0;
}
