"""The other side of the zoo: a resolver and TLS servers, in a process of their own.

Run in the zoo's network namespace: ``python -m tests.zoo.server CERT KEY``; says ``ready`` when
all sockets listen and ends with its standard input.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
import time

# port -> what passes between accepting a connection and the handshake
TLS_PORTS = {4430: 0.0, 4431: 0.010, 4433: 0.030}
SILENT, SLOW, SLOW_S = b"silent", b"slow", 0.03
TYPE_A, NAME_ERROR = 1, 3
ANSWER = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1"


def resolve(sock: socket.socket) -> None:
    """Every name below ``zoo.test`` is 127.0.0.1 and has no other address; no other name is."""
    while True:
        query, peer = sock.recvfrom(4096)
        label = query[13 : 13 + query[12]]
        if label == SILENT:
            continue
        reply = answer(query)
        if label == SLOW:
            threading.Timer(SLOW_S, sock.sendto, (reply, peer)).start()
        else:
            sock.sendto(reply, peer)


def answer(query: bytes) -> bytes:
    """The reply to one question, as wire bytes."""
    end = 12
    while query[end]:
        end += 1 + query[end]
    question = query[12 : end + 5]
    known = b"\3zoo\4test" in question
    found = known and int.from_bytes(question[-4:-2], "big") == TYPE_A
    head = query[:2] + bytes((0x81, 0x80 | (0 if known else NAME_ERROR)))
    counts = b"\0\1" + (b"\0\1" if found else b"\0\0") + b"\0\0\0\0"
    return head + counts + question + (ANSWER if found else b"")


def shake_hands(listener: socket.socket, context: ssl.SSLContext, delay_s: float) -> None:
    """One thread a connection: wait, shake hands, send ``ok``, wait for the other side's end."""

    def one(sock: socket.socket) -> None:
        sock.settimeout(10)
        time.sleep(delay_s)
        try:
            with context.wrap_socket(sock, server_side=True) as tls:
                tls.sendall(b"ok")
                tls.recv(16)
        except OSError:
            sock.close()  # clients of every kind leave in every way

    while True:
        threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()


def main() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))
    threading.Thread(target=resolve, args=(resolver,), daemon=True).start()
    for port, delay_s in TLS_PORTS.items():
        listener = socket.create_server(("127.0.0.1", port), backlog=512)
        serve = threading.Thread(target=shake_hands, args=(listener, context, delay_s), daemon=True)
        serve.start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
