/* A child under the strictest filter: read, write, exit, and what a lookup in the hosts file needs;
 * everything else kills it. Then one in strict mode, with a lookup that needs no call at all. */
#include "zoo.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static const int allowed[] = {
	SYS_read, SYS_write, SYS_exit, SYS_exit_group, SYS_openat, SYS_close, SYS_newfstatat, SYS_fstat,
	SYS_mmap, SYS_munmap, SYS_mprotect, SYS_brk, SYS_lseek, SYS_socket, SYS_connect, SYS_sendto,
	SYS_recvfrom, SYS_recvmsg, SYS_sendmsg, SYS_sendmmsg, SYS_bind, SYS_getsockname, SYS_poll, SYS_ioctl,
	SYS_setsockopt, SYS_futex, SYS_getpid, SYS_getrandom, SYS_uname, SYS_clock_gettime,
};
#define COUNT (int)(sizeof allowed / sizeof *allowed)

static void confine(void) {
	struct sock_filter code[COUNT + 3];
	struct sock_fprog program = {COUNT + 3, code};
	int i;
	code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (i = 0; i < COUNT; i++)
		code[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], COUNT - i, 0);
	code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		_exit(97);
}

int main(void) {
	int status, i;
	struct addrinfo hints, *found;
	memset(&hints, 0, sizeof hints);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	fflush(stdout);
	if (!fork()) {
		confine();
		for (i = 0; i < 5; i++)
			if (zoo_look_up("name.zoo.test"))
				_exit(1);
		fflush(stdout);
		_exit(0);
	}
	wait(&status);
	printf("filter %d\n", status);
	getaddrinfo("127.0.0.1", "80", &hints, &found); /* what it loads and allocates, before */
	freeaddrinfo(found);
	fflush(stdout);
	if (!fork()) {
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
		for (i = 0; i < 5; i++)
			if (getaddrinfo("127.0.0.1", "80", &hints, &found))
				syscall(SYS_exit, 1);
			else
				freeaddrinfo(found);
		syscall(SYS_exit, 0);
	}
	wait(&status);
	printf("strict %d\n", status);
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	return 0;
}
