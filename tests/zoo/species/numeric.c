/* A lookup of an address and a connection that is refused; needs no server. */
#include "zoo.h"

int main(void) {
	struct addrinfo hints, *found;
	int code, failed;
	memset(&hints, 0, sizeof hints);
	hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
	hints.ai_socktype = SOCK_STREAM;
	code = getaddrinfo("127.0.0.1", "9", &hints, &found);
	failed = connect(socket(AF_INET, SOCK_STREAM, 0), found->ai_addr, found->ai_addrlen);
	printf("%d %d\n", code, failed ? errno : 0);
	return 0;
}
