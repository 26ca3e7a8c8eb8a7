/* One HTTP request whose connect, send and receive all go through io_uring. */
#include <arpa/inet.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int done(struct io_uring *ring, int asynchronous, struct io_uring_sqe *sqe)
{
	struct io_uring_cqe *cqe;
	int result;

	if (asynchronous)
		sqe->flags |= IOSQE_ASYNC; /* in a worker of the kernel's, not in this thread */
	io_uring_submit(ring);
	io_uring_wait_cqe(ring, &cqe);
	result = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return result;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = {.sin_family = AF_INET};
	const char request[] = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	char answer[512];
	int sock, asynchronous;

	if (argc != 4 || io_uring_queue_init(8, &ring, 0))
		return 1;
	inet_pton(AF_INET, argv[1], &to.sin_addr);
	to.sin_port = htons(atoi(argv[2]));
	asynchronous = !strcmp(argv[3], "async");
	sock = socket(AF_INET, SOCK_STREAM, 0);
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_connect(sqe, sock, (struct sockaddr *)&to, sizeof(to));
	if (done(&ring, asynchronous, sqe))
		return 2;
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_send(sqe, sock, request, sizeof(request) - 1, 0);
	if (done(&ring, asynchronous, sqe) < 0)
		return 3;
	do {
		sqe = io_uring_get_sqe(&ring);
		io_uring_prep_recv(sqe, sock, answer, sizeof(answer), 0);
	} while (done(&ring, asynchronous, sqe) > 0);
	return 0;
}
