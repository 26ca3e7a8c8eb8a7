/* The old and the next build of a program and of its library, for overwritten*.sh: the old ones have a
 * function that conmond looks for where the next ones have the middle of their instructions. */
#include "zoo.h"

#ifdef OLD
__asm__(".text\n.space 4096,0x90\n.globl getaddrinfo\n.type getaddrinfo,@function\n"
	"getaddrinfo: xor %eax,%eax\n ret\n.size getaddrinfo,.-getaddrinfo\n.space 4096,0x90\n");
int act(void) {
	int (*function)(void) = (int (*)(void))(void *)getaddrinfo;
	zoo_wait_for_probe((const void *)getaddrinfo);
	function();
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	puts("old ok");
	return 0;
}
#else
__asm__(".text\n.globl sum\nsum: xor %eax,%eax\n.rept 900\n movabs $0x1122334455667788,%rcx\n"
	" add %rcx,%rax\n.endr\n ret\n");
__attribute__((visibility("hidden"))) unsigned long sum(void);
int act(void) {
	puts(sum() == 0x1122334455667788 * 900 ? "new ok" : "new: WRONG SUM");
	return 0;
}
#endif

#ifdef PROGRAM
int main(void) {
	return act();
}
#endif
