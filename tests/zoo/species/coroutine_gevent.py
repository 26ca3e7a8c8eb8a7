"""Greenlets copy pieces of the C stack away and back: here within OpenSSL's handshake, from a
server name callback that lets the others run."""

import gevent
from gevent import monkey

monkey.patch_all()

import socket  # noqa: E402
import ssl  # noqa: E402
import sys  # noqa: E402

from tests.zoo.witness import say  # noqa: E402

server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(*sys.argv[1:3])
waits = {"first": 0.005, "second": 0.01, "third": 0.015}
server.sni_callback = lambda sock, name, context: gevent.sleep(waits[name])
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
listener = socket.create_server(("127.0.0.1", 0))
order = []


def serve(sock):
    with server.wrap_socket(sock, server_side=True) as tls:
        tls.sendall(b"ok")


def accept():
    for _ in waits:
        gevent.spawn(serve, listener.accept()[0])


def talk(name):
    with (
        socket.create_connection(("localhost", listener.getsockname()[1])) as tcp,
        client.wrap_socket(tcp, server_hostname=name) as tls,
    ):
        order.append((name, tls.recv(2)))


gevent.joinall([gevent.spawn(accept), *(gevent.spawn(talk, name) for name in waits)], timeout=10)
print(sorted(order))
say("SSL_do_handshake")
