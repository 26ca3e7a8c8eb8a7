# Go calls getaddrinfo() by way of cgo, on a stack that is not the goroutine's own.
GODEBUG=netdns=cgo hey -n 4 -c 2 -t 5 https://name.zoo.test:4430/ 2>&1 |
	sed -nE 's/.*([[][0-9]+[]]).*(malformed HTTP response|refused|no such host).*/\1 \2/p'
