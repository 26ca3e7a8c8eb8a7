/* One plain HTTP request to a name that is looked up by the function named first. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int look_up(const char *function, const char *name, struct in_addr *found)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *info = 0;
	struct hostent *host = 0, room;
	char buffer[8192];
	int error;

	if (!strcmp(function, "gethostbyname"))
		host = gethostbyname(name);
	if (!strcmp(function, "gethostbyname2"))
		host = gethostbyname2(name, AF_INET);
	if (!strcmp(function, "gethostbyname_r"))
		gethostbyname_r(name, &room, buffer, sizeof(buffer), &host, &error);
	if (!strcmp(function, "gethostbyname2_r"))
		gethostbyname2_r(name, AF_INET, &room, buffer, sizeof(buffer), &host, &error);
	if (!strcmp(function, "getaddrinfo"))
		getaddrinfo(name, 0, &hints, &info);
#ifdef __GLIBC__
	if (!strcmp(function, "getaddrinfo_a")) {
		struct gaicb request = {.ar_name = name, .ar_request = &hints}, *list[1] = {&request};

		getaddrinfo_a(GAI_WAIT, list, 1, 0);
		info = request.ar_result;
	}
#endif
	if (info)
		*found = ((struct sockaddr_in *)info->ai_addr)->sin_addr;
	else if (host)
		memcpy(found, host->h_addr_list[0], sizeof(*found));
	return info || host;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
	const char request[] = "GET / HTTP/1.0\r\n\r\n";
	char answer[512];
	int sock;

	if (argc != 4 || !look_up(argv[1], argv[2], &to.sin_addr))
		return 1;
	sock = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(sock, (struct sockaddr *)&to, sizeof(to)))
		return 2;
	write(sock, request, sizeof(request) - 1);
	while (read(sock, answer, sizeof(answer)) > 0)
		;
	return 0;
}
