/* Programs that write to their own text (profilers, JITs, tracers): another function on the page of a
 * probed one is made writable, changed, called, and made executable again, then its page is taken away
 * and mapped anew. */
#include "zoo.h"
#include <sys/mman.h>

#ifdef LIBRARY
__asm__(".text\n.balign 4096\n.globl first_page, getaddrinfo, constant\n.type getaddrinfo,@function\n"
	"first_page: nop\ngetaddrinfo: lea 7(%rdi),%eax\n ret\n.size getaddrinfo,.-getaddrinfo\n"
	".type constant,@function\nconstant: mov $1,%eax\n ret\n.size constant,.-constant\n.balign 4096\n");
#else
extern int constant(void);

int main(void) {
	int i, sum = 0;
	char *first_page = (char *)((unsigned long)getaddrinfo & ~4095ul);
	int (*probed)(long) = (int (*)(long))(void *)getaddrinfo;
	zoo_wait_for_probe((const void *)getaddrinfo);
	for (i = 0; i < 200; i++) {
		if (mprotect(first_page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC))
			return 1;
		((volatile unsigned char *)(void *)constant)[1] = i;
		if (mprotect(first_page, 4096, PROT_READ | PROT_EXEC))
			return 1;
		sum += constant() + probed(i);
		if (i == 150)
			zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	}
	/* back to what the file has, probes included */
	madvise(first_page, 4096, MADV_DONTNEED);
	sum += constant() * 100000 + probed(1);
	printf("sum %d\n", sum);
	return 0;
}
#endif
