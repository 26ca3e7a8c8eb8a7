/* A program that looks a name up, found and not found: built static, static-pie, non-PIE, 32-bit, with
 * musl, with AddressSanitizer; its result must not depend on it. */
#include "zoo.h"

int main(void) {
	zoo_wait_for_probe((const void *)getaddrinfo);
	zoo_look_up("name.zoo.test");
	zoo_look_up("name.nowhere.invalid");
	zoo_look_up("127.0.0.1");
	zoo_look_up("slow.zoo.test");
	zoo_witness("getaddrinfo", (const void *)getaddrinfo);
	return 0;
}
