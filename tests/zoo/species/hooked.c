/* Hooks a function inline, as Frida, Detours and sandboxes do: its first bytes are copied to where they
 * run before a jump to the rest, and a jump to the hook is written over them. */
#include "zoo.h"
#include <sys/mman.h>

#ifdef LIBRARY
__asm__(".text\n.balign 16\n.globl getaddrinfo\n.type getaddrinfo,@function\n"
	"getaddrinfo: push %rbp\n mov %rsp,%rbp\n lea 7(%rdi),%rax\n nop\n nop\n nop\n nop\n nop\n nop\n"
	" nop\n nop\n pop %rbp\n ret\n.size getaddrinfo,.-getaddrinfo\n");
#else
static int hooked;
static long (*original)(long);
static long hook(long number) {
	hooked++;
	return original(number);
}
static void jump(unsigned char *at, const void *to) {
	static const unsigned char code[] = {0xff, 0x25, 0, 0, 0, 0}; /* jmp *0(%rip) */
	memcpy(at, code, sizeof code);
	memcpy(at + sizeof code, &to, sizeof to);
}

int main(void) {
	unsigned char *function = (unsigned char *)(void *)getaddrinfo;
	unsigned char *page = (unsigned char *)((unsigned long)function & ~4095ul);
	unsigned char *moved = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long sum = 0, i;
	long (*call)(long) = (long (*)(long))(void *)function;
	zoo_wait_for_probe(function);
	zoo_witness("getaddrinfo", function);
	memcpy(moved, function, 14); /* up to a nop */
	jump(moved + 14, function + 14);
	original = (long (*)(long))(void *)moved;
	if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC))
		return 1;
	jump(function, (const void *)hook);
	for (i = 0; i < 100; i++)
		sum += call(i);
	printf("hooked %d, sum %ld\n", hooked, sum);
	return 0;
}
#endif
