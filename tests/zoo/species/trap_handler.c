/* Programs with breakpoints of their own: SIGTRAP from int3 and from the trap flag goes to their
 * handler, at the right address and as often as before. */
#include "zoo.h"
#include <ucontext.h>

static volatile sig_atomic_t breakpoints, steps;
static struct addrinfo hints, *found;

static void on_trap(int signal, siginfo_t *info, void *context) {
	ucontext_t *where = context;
	(void)signal;
	/* the code of a step over a probed instruction is SI_USER: docs/harmless.md */
	if (info->si_code == SI_KERNEL)
		breakpoints += ((unsigned char *)where->uc_mcontext.gregs[REG_RIP])[-1] == ZOO_INT3;
	else
		steps++;
}

int main(void) {
	struct sigaction action;
	int i, failed = 0;
	memset(&action, 0, sizeof action);
	action.sa_sigaction = on_trap;
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGTRAP, &action, NULL);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	getaddrinfo("127.0.0.1", "80", &hints, &found);
	for (i = 0; i < 5; i++) {
		__asm__ volatile("int3");
		__asm__ volatile("pushfq\n orl $0x100,(%%rsp)\n popfq" ::: "memory", "cc");
		failed += getaddrinfo("127.0.0.1", "80", &hints, &found);
		__asm__ volatile("pushfq\n andl $~0x100,(%%rsp)\n popfq" ::: "memory", "cc");
	}
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	printf("%d breakpoints, %s, %d failed\n", (int)breakpoints, steps > 5000 ? "many steps" : "few steps", failed);
	return 0;
}
