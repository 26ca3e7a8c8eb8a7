/* Looks up what nobody answers. */
#include "zoo.h"

int main(void) {
	struct addrinfo *found;
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	return getaddrinfo("silent.zoo.test", "80", NULL, &found);
}
