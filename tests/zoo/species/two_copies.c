/* Two copies of libssl in one process, one from memory (memfd) by way of dlmopen, both at work. */
#include "zoo.h"
#include <dlfcn.h>
#include <openssl/ssl.h>
#include <sys/mman.h>

static void shake(void *library, const char *what) {
	SSL_CTX *(*new_context)(const SSL_METHOD *) = dlsym(library, "SSL_CTX_new");
	const SSL_METHOD *(*method)(void) = dlsym(library, "TLS_client_method");
	SSL *(*new_ssl)(SSL_CTX *) = dlsym(library, "SSL_new");
	int (*set_fd)(SSL *, int) = dlsym(library, "SSL_set_fd");
	void (*set_connect)(SSL *) = dlsym(library, "SSL_set_connect_state");
	int (*handshake)(SSL *) = dlsym(library, "SSL_do_handshake");
	SSL *ssl = new_ssl(new_context(method()));
	zoo_wait_for_probe((const void *)handshake);
	set_fd(ssl, zoo_connect(TLS_AT_ONCE));
	set_connect(ssl);
	printf("%s %d\n", what, handshake(ssl));
	zoo_witness(what, (const void *)handshake);
}

int main(void) {
	void *system = dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL), *copy;
	Dl_info info;
	char path[64], block[1 << 16];
	int size, from, to = memfd_create("libssl", 0);
	if (!system || !dladdr(dlsym(system, "SSL_new"), &info))
		return 1;
	from = open(info.dli_fname, O_RDONLY);
	while ((size = read(from, block, sizeof block)) > 0)
		if (write(to, block, size) != size)
			return 1;
	snprintf(path, sizeof path, "/proc/self/fd/%d", to);
	copy = dlmopen(LM_ID_NEWLM, path, RTLD_NOW);
	if (!copy) {
		puts(dlerror());
		return 1;
	}
	shake(system, "SSL_do_handshake");
	shake(copy, "memfd");
	shake(system, "SSL_do_handshake");
	return 0;
}
