/* Children made inside SSL_do_handshake(): by vfork(), which shares the stack, by fork(), of whom one
 * returns through the handshake as its parent does, and by posix_spawn(); and a lookup made by a
 * child of vfork(). */
#include "tls.h"
#include <spawn.h>

extern char **environ;
static int calls, status, forked = -1;

static void message(int out, int version, int type, const void *bytes, size_t size, SSL *ssl, void *any) {
	char *argv[] = {"true", NULL};
	struct addrinfo hints, *found;
	pid_t pid;
	(void)out, (void)version, (void)type, (void)bytes, (void)size, (void)ssl, (void)any;
	if (calls++)
		return;
	if (!(pid = vfork()))
		_exit(7);
	waitpid(pid, &status, 0);
	printf("vfork %d\n", WEXITSTATUS(status));
	if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ))
		puts("no spawn");
	waitpid(pid, &status, 0);
	printf("spawn %d\n", status);
	memset(&hints, 0, sizeof hints);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	if (!(pid = vfork()))
		_exit(10 + getaddrinfo("127.0.0.1", "80", &hints, &found));
	waitpid(pid, &status, 0);
	printf("lookup in vfork %d\n", WEXITSTATUS(status));
	fflush(stdout);
	forked = fork();
	if (!forked)
		SSL_set_fd(ssl, -1); /* its handshake fails: the connection is its parent's */
}

int main(void) {
	SSL_CTX *context = zoo_context();
	SSL *ssl;
	int done;
	SSL_CTX_set_msg_callback(context, message);
	ssl = zoo_client(context, TLS_AT_ONCE);
	done = SSL_do_handshake(ssl);
	if (!forked)
		_exit(done == 1 ? 1 : 23);
	waitpid(forked, &status, 0);
	printf("child %d, parent %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -status, done);
	ZOO_WITNESS_OPENSSL();
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	return 0;
}
