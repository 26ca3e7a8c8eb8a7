/* One HTTPS request by NSS. */
#include <nspr.h>
#include <nss.h>
#include <private/pprio.h>
#include <ssl.h>

#include <netdb.h>
#include <sys/socket.h>

static SECStatus trust_all(void *context, PRFileDesc *fd, PRBool check, PRBool server)
{
	return SECSuccess;
}

int main(int argc, char **argv)
{
	PRSocketOptionData blocking = {.option = PR_SockOpt_Nonblocking, .value = {0}};
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *info;
	const char request[] = "GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
	char answer[512];
	PRFileDesc *tls;
	int sock;

	if (argc != 4 || getaddrinfo(argv[1], argv[2], &hints, &info))
		return 1;
	sock = socket(info->ai_family, SOCK_STREAM, 0);
	if (connect(sock, info->ai_addr, info->ai_addrlen))
		return 2;
	NSS_NoDB_Init(0);
	tls = PR_ImportTCPSocket(sock);
	PR_SetSocketOption(tls, &blocking);
	tls = SSL_ImportFD(0, tls);
	SSL_AuthCertificateHook(tls, trust_all, 0);
	SSL_SetURL(tls, argv[1]);
	SSL_ResetHandshake(tls, PR_FALSE);
	if (SSL_ForceHandshake(tls) != SECSuccess)
		return 3;
	PR_Write(tls, request, sizeof(request) - 1);
	while (PR_Read(tls, answer, sizeof(answer)) > 0)
		;
	return 0;
}
