"""Names looked up by one thread, connected to by others that ask by name; prints each connection's
local port, the name that was looked up and the host that was asked for.

    asked_names.py PORT NAME...
"""

import itertools
import socket
import sys
import threading
import time

port, names = int(sys.argv[1]), sys.argv[2:]
answers = {name: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0] for name in names}
FIELDS = "User-Agent: a program\r\nAccept: */*\r\n"
CLOSE = "Connection: close\r\n\r\n"


def usual(host):
    return [f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\n{FIELDS}{CLOSE}"]


def last(host):
    return [f"POST / HTTP/1.1\r\n{FIELDS}Connection: close\r\nhost:{host}\r\n\r\n"]


def long(host):
    return [f"GET /{'x' * 800} HTTP/1.1\r\n{FIELDS}Host: {host}\r\n{CLOSE}"]


def by_line(host):
    return ["HEAD / HTTP/1.1\r\n", f"Host: {host}\r\n", f"{FIELDS}{CLOSE}"]


def byte_by_byte(host):
    return [*f"GET / HTTP/1.1\r\nHost: {host}\r\n", CLOSE]


def other(host):
    return [f"GET / HTTP/1.1\r\nHost: other.{host}\r\n{CLOSE}"]


def nobody(host):
    return [f"GET / HTTP/1.1\r\n{FIELDS}{CLOSE}"]


lock = threading.Lock()


def connect(name, form):
    family, kind, protocol, _, address = answers[name]
    with socket.socket(family, kind, protocol) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(address)
        with lock:
            print(sock.getsockname()[1], name, form.__name__)
        for piece in form(name):
            sock.sendall(piece.encode())
            time.sleep(0.002)
        while sock.recv(999):
            pass


jobs = itertools.product(names, (usual, last, long, by_line, byte_by_byte, other, nobody))
threads = [threading.Thread(target=connect, args=job) for job in jobs]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
