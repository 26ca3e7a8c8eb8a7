/* Writes one file over another in place by a shared mapping, as some linkers and package managers do:
 * nothing is written by write(), and the times are put back. */
#include "zoo.h"
#include <sys/mman.h>
#include <sys/stat.h>

int main(int argc, char **argv) {
	struct stat from, to;
	struct timespec times[2];
	int in = open(argv[1], O_RDONLY), out = open(argv[2], O_RDWR);
	char *source, *target;
	if (argc < 3 || in < 0 || out < 0 || fstat(in, &from) || fstat(out, &to))
		return 1;
	if (ftruncate(out, from.st_size))
		return 1;
	source = mmap(NULL, from.st_size, PROT_READ, MAP_PRIVATE, in, 0);
	target = mmap(NULL, from.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, out, 0);
	memcpy(target, source, from.st_size);
	munmap(target, from.st_size);
	times[0] = to.st_atim;
	times[1] = to.st_mtim;
	futimens(out, times);
	return 0;
}
