/* Calls the function of a library whose segments were moved (based_lib.c). */
#include "zoo.h"
#include <dlfcn.h>

int main(void) {
	int i, sum = 0;
	void *function = dlsym(RTLD_DEFAULT, "getaddrinfo");
	zoo_wait_for_probe(function);
	for (i = 0; i < 300; i++) {
		sum += getaddrinfo("name.zoo.test", NULL, NULL, NULL);
		usleep(50);
	}
	zoo_witness("getaddrinfo", function);
	printf("sum %d\n", sum);
	return 0;
}
