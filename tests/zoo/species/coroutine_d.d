// D's fibers inside SSL_do_handshake(), by a BIO that yields; vibe.d and photon are built so.
import core.stdc.config : c_long;
import core.stdc.errno;
import core.sys.posix.arpa.inet;
import core.sys.posix.netinet.in_;
import core.sys.posix.sys.socket;
import core.sys.posix.unistd;
import core.thread;
import std.stdio;

extern (C) {
	struct SSL; struct SSL_CTX; struct SSL_METHOD; struct BIO; struct BIO_METHOD;
	const(SSL_METHOD)* TLS_client_method();
	SSL_CTX* SSL_CTX_new(const SSL_METHOD*);
	SSL* SSL_new(SSL_CTX*);
	void SSL_set_bio(SSL*, BIO*, BIO*);
	void SSL_set_connect_state(SSL*);
	int SSL_do_handshake(SSL*);
	BIO_METHOD* BIO_meth_new(int, const char*);
	int BIO_meth_set_read(BIO_METHOD*, int function(BIO*, char*, int));
	int BIO_meth_set_write(BIO_METHOD*, int function(BIO*, const char*, int));
	int BIO_meth_set_ctrl(BIO_METHOD*, c_long function(BIO*, int, c_long, void*));
	BIO* BIO_new(BIO_METHOD*);
	void BIO_set_data(BIO*, void*);
	void* BIO_get_data(BIO*);
	void BIO_set_init(BIO*, int);
}
enum flush = 11; // BIO_CTRL_FLUSH
enum dontWait = 0x40; // MSG_DONTWAIT, which druntime has not

extern (C) int bioRead(BIO* bio, char* into, int size) {
	immutable fd = cast(int) cast(size_t) BIO_get_data(bio);
	for (;;) {
		immutable got = recv(fd, into, size, dontWait);
		if (got >= 0 || errno != EAGAIN)
			return cast(int) got;
		Fiber.yield();
	}
}
extern (C) int bioWrite(BIO* bio, const char* from, int size) {
	return cast(int) send(cast(int) cast(size_t) BIO_get_data(bio), from, size, MSG_NOSIGNAL);
}
extern (C) c_long bioCtrl(BIO* bio, int command, c_long, void*) { return command == flush; }

void main() {
	auto context = SSL_CTX_new(TLS_client_method());
	auto method = BIO_meth_new(0x480, "fiber");
	BIO_meth_set_read(method, &bioRead);
	BIO_meth_set_write(method, &bioWrite);
	BIO_meth_set_ctrl(method, &bioCtrl);
	Fiber[] fibers;
	int[3] results;
	foreach (number, port; [4430, 4431, 4433]) {
		sockaddr_in peer;
		peer.sin_family = AF_INET;
		peer.sin_port = htons(cast(ushort) port);
		peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		immutable fd = socket(AF_INET, SOCK_STREAM, 0);
		connect(fd, cast(sockaddr*)&peer, peer.sizeof);
		auto body_(size_t number, int fd) {
			return new Fiber({
				auto bio = BIO_new(method);
				auto ssl = SSL_new(context);
				BIO_set_init(bio, 1);
				BIO_set_data(bio, cast(void*) cast(size_t) fd);
				SSL_set_bio(ssl, bio, bio);
				SSL_set_connect_state(ssl);
				results[number] = SSL_do_handshake(ssl);
			}, 1 << 18);
		}
		fibers ~= body_(number, fd);
		fibers[$ - 1].call();
	}
	for (bool left = true; left;) {
		usleep(500);
		left = false;
		foreach (fiber; fibers)
			if (fiber.state == Fiber.State.HOLD) {
				fiber.call();
				left = true;
			}
	}
	foreach (number, result; results)
		writefln("%d: %d", number, result);
	writeln("all done");
}
