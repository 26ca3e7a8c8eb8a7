/* What the zoo's C and C++ programs share: TLS clients on loopback, and the word of each program
 * itself on whether a probe was in the function that it has just called. That word goes to the file
 * named by ZOO_WITNESS, never to the output that is compared. */
#ifndef ZOO_H
#define ZOO_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define TLS_AT_ONCE 4430
#define TLS_AFTER_10_MS 4431
#define TLS_AFTER_30_MS 4433
#define ZOO_INT3 0xcc

/* Probes stand within a function's first instructions, not always on the first. */
static inline int zoo_has_probe(const void *address) {
	return memchr(address, ZOO_INT3, 8) != NULL;
}

/* address: the function itself, not a stub in the caller's own file. */
static inline void zoo_witness(const char *name, const void *address) {
	const char *path = getenv("ZOO_WITNESS");
	int fd;
	char line[80];
	int length;
	if (!path || !address)
		return;
	fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
	length = snprintf(line, sizeof line, "%s %d\n", name, zoo_has_probe(address));
	if (fd >= 0) {
		if (write(fd, line, length) < 0)
			perror("witness");
		close(fd);
	}
}

/* A mapping that is new to conmond gets its probes some milliseconds later. Every other round waits
 * for them, so that it is certainly a probed one; the others are those whose time is compared. */
static inline void zoo_wait_for_probe(const void *address) {
	int i;
	if (getenv("ZOO_WAIT"))
		for (i = 0; i < 1000 && !zoo_has_probe(address); i++)
			usleep(1000);
}

static inline int zoo_connect(int port) {
	struct sockaddr_in peer;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	memset(&peer, 0, sizeof peer);
	peer.sin_family = AF_INET;
	peer.sin_port = htons(port);
	peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || connect(fd, (struct sockaddr *)&peer, sizeof peer)) {
		perror("connect");
		exit(99);
	}
	return fd;
}

/* One lookup, told on stdout by its result. */
static inline int zoo_look_up(const char *name) {
	struct addrinfo hints, *found = NULL;
	int code;
	char text[64] = "";
	memset(&hints, 0, sizeof hints);
	hints.ai_socktype = SOCK_STREAM;
	code = getaddrinfo(name, "4430", &hints, &found);
	if (!code) {
		getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
		freeaddrinfo(found);
	}
	printf("%s %d %s\n", name, code, text);
	return code;
}

#endif
