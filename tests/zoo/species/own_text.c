/* Compares its libraries' text in memory with their files, as programs do that look for hooks. */
#include "zoo.h"
#include <dlfcn.h>

int main(void) {
	char line[512], path[256];
	unsigned long from, to, offset, different = 0;
	unsigned long function = (unsigned long)getaddrinfo;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps)) {
		char executable;
		if (sscanf(line, "%lx-%lx %*2c%c%*c %lx %*s %*s %255s", &from, &to, &executable, &offset, path) != 5 ||
		    executable != 'x' || path[0] != '/')
			continue;
		int fd = open(path, O_RDONLY);
		char *bytes = malloc(to - from);
		long size = pread(fd, bytes, to - from, offset), i;
		for (i = 0; i < size; i++)
			different += bytes[i] != ((char *)from)[i];
		free(bytes);
		close(fd);
	}
	fclose(maps);
	zoo_witness("getaddrinfo", (const void *)function);
	printf("%lu bytes differ\n", different);
	return 0;
}
