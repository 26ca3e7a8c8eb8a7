/* Another tool's probe on the same function, at entry: its count must be exact whatever conmond does. */
#include "zoo.h"
#include <dlfcn.h>
#include <elf.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>

static long offset_of(const char *path, unsigned long address) {
	char line[512];
	unsigned long from, to, offset;
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx %*s %lx", &from, &to, &offset) == 3 && address >= from && address < to) {
			fclose(maps);
			return address - from + offset;
		}
	(void)path;
	return -1;
}

int main(void) {
	struct perf_event_attr attr;
	struct addrinfo hints, *found;
	Dl_info info;
	unsigned long long count = 0;
	int i, type = -1, fd;
	FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
	if (!file || fscanf(file, "%d", &type) != 1 || !dladdr((void *)getaddrinfo, &info))
		return 1;
	memset(&hints, 0, sizeof hints);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	memset(&attr, 0, sizeof attr);
	attr.type = type;
	attr.size = sizeof attr;
	attr.config1 = (unsigned long)info.dli_fname;
	attr.config2 = offset_of(info.dli_fname, (unsigned long)getaddrinfo);
	zoo_witness("getaddrinfo", (const void *)getaddrinfo); /* before one of our own is there */
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd < 0) {
		perror("perf_event_open");
		return 1;
	}
	for (i = 0; i < 300; i++) {
		getaddrinfo("127.0.0.1", "80", &hints, &found);
		freeaddrinfo(found);
		if (i % 50 == 0)
			usleep(2000);
	}
	if (read(fd, &count, sizeof count) != sizeof count)
		return 1;
	printf("counted %llu\n", count);
	return 0;
}
