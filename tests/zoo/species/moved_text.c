/* Copies a library's text into memory of its own and runs it there, as large-page loaders do (node
 * --use-largepages, hugify): a breakpoint that is copied belongs to nobody. */
#include "zoo.h"
#include <sys/mman.h>

int main(void) {
	char line[512];
	unsigned long from = 0, to = 0, function = (unsigned long)getaddrinfo;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 && function >= from && function < to)
			break;
	fclose(maps);
	/* its page alone, so that what copies it is not taken from under itself */
	from = function & ~4095ul;
	to = from + 4096;
	char *copy = mmap(NULL, to - from, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	zoo_witness("getaddrinfo", (const void *)function);
	memcpy(copy, (void *)from, to - from);
	mprotect(copy, to - from, PROT_READ | PROT_EXEC);
	if (mremap(copy, to - from, to - from, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)from) == MAP_FAILED)
		return 1;
	zoo_look_up("name.zoo.test");
	return 0;
}
