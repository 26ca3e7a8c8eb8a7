/* Asks for huge pages below its text and below libc's, as databases do, and goes on. */
#include "zoo.h"
#include <sys/mman.h>
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

int main(void) {
	char line[512];
	int round;
	for (round = 0; round < 3; round++) {
		FILE *maps = fopen("/proc/self/maps", "r");
		while (fgets(line, sizeof line, maps)) {
			unsigned long from, to;
			char executable;
			if (sscanf(line, "%lx-%lx %*2c%c", &from, &to, &executable) == 3 && executable == 'x' &&
			    strchr(line, '/')) {
				madvise((void *)from, to - from, MADV_HUGEPAGE);
				madvise((void *)from, to - from, MADV_COLLAPSE);
			}
		}
		fclose(maps);
		zoo_look_up("name.zoo.test");
	}
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	return 0;
}
