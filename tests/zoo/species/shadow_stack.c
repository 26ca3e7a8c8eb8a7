/* Under a shadow stack of the CPU (CET) a return to another place than the caller's faults. */
#include "tls.h"
#include <sys/syscall.h>

#define ARCH_SHSTK_ENABLE 0x5001
#define ARCH_SHSTK_SHSTK 1

int main(void) {
	SSL_CTX *context = zoo_context();
	zoo_look_up("warm.zoo.test"); /* binds lazily what must be bound before */
	zoo_talk(context);
	/* main() must not return from here on: its own caller is not on the shadow stack */
	if (syscall(SYS_arch_prctl, ARCH_SHSTK_ENABLE, ARCH_SHSTK_SHSTK)) {
		puts("no shadow stack");
		exit(1);
	}
	zoo_look_up("name.zoo.test");
	zoo_talk(context);
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	fflush(stdout);
	_exit(0);
}
