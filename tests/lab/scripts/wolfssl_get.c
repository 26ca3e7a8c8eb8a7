/* One HTTPS request by wolfSSL. */
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>

#include <netdb.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *info;
	const char request[] = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
	char answer[512];
	WOLFSSL_CTX *context;
	WOLFSSL *tls;
	int sock;

	if (argc != 4 || getaddrinfo(argv[1], argv[2], &hints, &info))
		return 1;
	sock = socket(info->ai_family, SOCK_STREAM, 0);
	if (connect(sock, info->ai_addr, info->ai_addrlen))
		return 2;
	wolfSSL_Init();
	context = wolfSSL_CTX_new(wolfSSLv23_client_method());
	wolfSSL_CTX_set_verify(context, WOLFSSL_VERIFY_PEER, 0); /* not the default on Debian */
	wolfSSL_CTX_load_verify_locations(context, argv[3], 0);
	tls = wolfSSL_new(context);
	wolfSSL_UseSNI(tls, WOLFSSL_SNI_HOST_NAME, argv[1], strlen(argv[1]));
	wolfSSL_set_fd(tls, sock);
	if (wolfSSL_connect(tls) != SSL_SUCCESS)
		return 3;
	wolfSSL_write(tls, request, sizeof(request) - 1);
	while (wolfSSL_read(tls, answer, sizeof(answer)) > 0)
		;
	return 0;
}
