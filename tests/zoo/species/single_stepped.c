/* A parent steps its child through a whole lookup, one instruction at a time, and reads where it is:
 * it must come back to the caller's next instruction, with the result. */
#include "zoo.h"
#include <sys/ptrace.h>
#include <sys/user.h>

static struct addrinfo hints, *found;

__attribute__((noinline)) static int look_up(void) {
	return getaddrinfo("127.0.0.1", "80", &hints, &found);
}

int main(void) {
	int status;
	long steps = 0, inside = 0;
	pid_t child;
	struct user_regs_struct registers;
	unsigned long function = (unsigned long)getaddrinfo;
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	hints.ai_socktype = SOCK_STREAM;
	look_up();
	if (!(child = fork())) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		status = look_up();
		_exit(status || !found ? 1 : 42);
	}
	waitpid(child, &status, 0);
	for (; WIFSTOPPED(status); steps++) {
		int signal = WSTOPSIG(status);
		ptrace(PTRACE_GETREGS, child, NULL, &registers);
		inside += registers.rip == function;
		if (signal != SIGTRAP && signal != SIGSTOP)
			printf("signal %d\n", signal);
		/* behind the lookup it may run */
		if (ptrace(PTRACE_SINGLESTEP, child, NULL, signal == SIGTRAP || signal == SIGSTOP ? 0 : signal))
			break;
		if (waitpid(child, &status, 0) < 0)
			break;
	}
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	printf("ended %d, entered %s, steps %s\n", WIFEXITED(status) ? WEXITSTATUS(status) : -status,
	       inside ? "once" : "never", steps > 1000 ? "many" : "few");
	return 0;
}
