/* SPDX-License-Identifier: MIT */
/*
 * Makes connections as fast as it can, or at a set rate, and counts them.
 *
 * Client threads connect to a server, a child process (the limit of open files is per process),
 * over loopback, in a network namespace of their own, so that the sockets left in TIME_WAIT go
 * with it. A connection is one small HTTP/1.1 request and its response; the client closes first,
 * the usual way.
 *
 *   load THREADS CONNECTIONS SECONDS RATE   until either bound is met; RATE 0: full speed
 *   load hold CONNECTIONS                   opens them and keeps them until stdin ends
 *
 * Says one line of JSON on stdout: {"established":N,"failed":N,"seconds":S}. In the first form it
 * is the last thing, in the second it comes once all are open.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 64
#define SOURCES     250 /* addresses 127.1.THREAD.1 and up: 28,000 ports each */

static const char request[] = "GET /bench HTTP/1.1\r\nHost: bench\r\n\r\n";
static const char response[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

static struct sockaddr_in server = {.sin_family = AF_INET};
static int listener, epoll;
static atomic_long tickets; /* connections still to be begun */
static double end_s, rate;
static long threads;

struct client {
	pthread_t thread;
	unsigned number;
	long established, failed;
};

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void sleep_until(double at_s)
{
	struct timespec ts = {.tv_sec = (time_t)at_s};

	ts.tv_nsec = (long)((at_s - ts.tv_sec) * 1e9);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

static void enter_own_network(void)
{
	struct ifreq lo = {.ifr_name = "lo"};
	int fd;

	if (unshare(CLONE_NEWNET))
		die("a network namespace");
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &lo))
		die("lo");
	lo.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &lo))
		die("lo up");
	close(fd);
}

static void accept_all(void)
{
	struct epoll_event event = {.events = EPOLLIN};

	while ((event.data.fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event))
			die("epoll_ctl");
	if (errno != EAGAIN && errno != ECONNABORTED)
		die("accept");
}

static void answer(int fd)
{
	char buffer[256];

	if (recv(fd, buffer, sizeof(buffer), 0) <= 0 ||
	    send(fd, response, sizeof(response) - 1, MSG_NOSIGNAL) < 0)
		close(fd);
}

static void serve(void)
{
	struct epoll_event events[128];

	for (;;) {
		int count = epoll_wait(epoll, events, 128, -1);

		for (int i = 0; i < count; i++) {
			if (events[i].data.fd == listener)
				accept_all();
			else
				answer(events[i].data.fd);
		}
	}
}

static void start_server(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	socklen_t size = sizeof(server);
	pid_t parent = getpid(), child;

	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	epoll = epoll_create1(0);
	event.data.fd = listener;
	if (bind(listener, (struct sockaddr *)&server, size) || listen(listener, 4096) ||
	    getsockname(listener, (struct sockaddr *)&server, &size) ||
	    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
		die("the server");
	child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		/* ends with its parent, however that ends */
		if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
			_exit(1);
		serve();
	}
	close(listener);
	close(epoll);
}

/* Returns a connected socket that has had its answer; -1 if it was not established. */
static int converse(unsigned thread, unsigned source)
{
	struct sockaddr_in from = {.sin_family = AF_INET};
	char buffer[256];
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	from.sin_addr.s_addr = htonl(0x7f010001U | thread << 8);
	from.sin_addr.s_addr += htonl(source % SOURCES);
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&from, sizeof(from)) ||
	    connect(fd, (struct sockaddr *)&server, sizeof(server))) {
		close(fd);
		return -1;
	}
	if (send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) < 0 ||
	    recv(fd, buffer, sizeof(buffer), 0) <= 0)
		die("an established connection");
	return fd;
}

static void *run_client(void *argument)
{
	struct client *client = argument;
	double due_s = now_s() + (rate > 0 ? client->number / rate : 0);
	unsigned source = 0;

	while (now_s() < end_s && atomic_fetch_sub(&tickets, 1) > 0) {
		int fd;

		if (rate > 0) {
			sleep_until(due_s);
			due_s += threads / rate;
		}
		fd = converse(client->number, source++);
		if (fd < 0) {
			client->failed++;
			continue;
		}
		client->established++;
		close(fd);
	}
	return NULL;
}

static void report(long established, long failed, double seconds)
{
	printf("{\"established\":%ld,\"failed\":%ld,\"seconds\":%.6f}\n", established, failed,
	       seconds);
	fflush(stdout);
}

static int hold(long count)
{
	long established = 0, failed = 0;
	double start_s = now_s();
	char end;

	for (long i = 0; i < count; i++) {
		if (converse(0, (unsigned)i) < 0)
			failed++;
		else
			established++;
	}
	report(established, failed, now_s() - start_s);
	while (read(0, &end, 1) > 0)
		;
	return 0;
}

int main(int argc, char **argv)
{
	static struct client clients[MAX_THREADS];
	struct rlimit files;
	long established = 0, failed = 0;
	double start_s;

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	enter_own_network();
	start_server();
	if (argc == 3 && !strcmp(argv[1], "hold"))
		return hold(atol(argv[2]));
	if (argc != 5 || (threads = atol(argv[1])) < 1 || threads > MAX_THREADS) {
		fprintf(stderr, "usage: load THREADS CONNECTIONS SECONDS RATE | load hold N\n");
		return 2;
	}
	atomic_store(&tickets, atol(argv[2]));
	rate = atof(argv[4]);
	start_s = now_s();
	end_s = start_s + atof(argv[3]);
	for (long i = 0; i < threads; i++) {
		clients[i].number = (unsigned)i;
		if (pthread_create(&clients[i].thread, NULL, run_client, &clients[i]))
			die("a thread");
	}
	for (long i = 0; i < threads; i++) {
		pthread_join(clients[i].thread, NULL);
		established += clients[i].established;
		failed += clients[i].failed;
	}
	report(established, failed, now_s() - start_s);
	return 0;
}
