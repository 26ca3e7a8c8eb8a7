/* A library that does not begin at address 0, as prelink left them, and that defines a function which
 * conmond looks for. */
int getaddrinfo(const char *node, const char *service, const void *hints, void **found);
int getaddrinfo(const char *node, const char *service, const void *hints, void **found) {
	int sum = 0;
	(void)service, (void)hints, (void)found;
	while (*node)
		sum = sum * 31 + *node++;
	return sum & 0x7fff;
}
