/* Signals on an alternate stack arrive all the time, in the probed calls too, and their handler
 * looks at who called: main() must always be among them. */
#include "tls.h"
#include <execinfo.h>

static volatile sig_atomic_t signals, without_main, deepest;
static void *main_begin, *main_end;

static void on_signal(int signal) {
	void *frames[64];
	int i, count = backtrace(frames, 64), seen = 0;
	(void)signal;
	for (i = 0; i < count; i++)
		seen |= frames[i] >= main_begin && frames[i] < main_end;
	signals++;
	without_main += !seen;
}

/* The callback is certainly inside: there a signal is raised, whatever the timer does. */
static void message(int out, int version, int type, const void *bytes, size_t size, SSL *ssl, void *any) {
	(void)out, (void)version, (void)type, (void)bytes, (void)size, (void)ssl, (void)any;
	raise(SIGUSR1);
}

__attribute__((noinline)) static void work(void) {
	int i;
	SSL_CTX *context = zoo_context();
	SSL_CTX_set_msg_callback(context, message);
	for (i = 0; i < 5; i++) {
		zoo_look_up("name.zoo.test");
		zoo_talk(context);
	}
}

int main(void) {
	struct sigaction action;
	struct itimerval often = {{0, 1000}, {0, 1000}};
	void *frames[4];
	stack_t stack;
	main_begin = (void *)main;
	main_end = &&end;
	memset(&stack, 0, sizeof stack);
	stack.ss_sp = malloc(1 << 17);
	stack.ss_size = 1 << 17;
	sigaltstack(&stack, NULL);
	backtrace(frames, 4); /* loads the unwinder now and not in a handler */
	memset(&action, 0, sizeof action);
	action.sa_handler = on_signal;
	action.sa_flags = SA_ONSTACK | SA_RESTART;
	sigaction(SIGALRM, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	work();
	setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	ZOO_WITNESS_OPENSSL();
	/* a signal in the kernel's own entry page or in a library's start-up has main() above it too */
	printf("signals %s, without main %d\n", signals > 5 ? "came" : "did not come", (int)without_main);
end:
	return deepest;
}
