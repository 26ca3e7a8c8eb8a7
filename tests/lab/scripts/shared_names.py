"""Threads of one pool that look names up and connect by whosever answer comes next; prints each
connection's local port, its peer and its name.

    shared_names.py SEED PORT THREADS CONNECTIONS NAME...
"""

import contextlib
import queue
import random
import socket
import sys
import threading

seed, port, threads, count = map(int, sys.argv[1:5])
names = sys.argv[5:]
work = queue.Queue()
lock = threading.Lock()


def look_up(name):
    for _ in range(50):  # the lab's resolver cannot answer all at once
        try:
            info = socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0]
        except socket.gaierror:
            continue
        work.put((connect, name, info))  # whichever thread is free next
        return
    raise SystemExit(f"{name} is not to be looked up")


def connect(name, info):
    family, kind, protocol, _, address = info
    with socket.socket(family, kind, protocol) as sock, contextlib.suppress(OSError):
        sock.connect(address)
        with lock:
            print(sock.getsockname()[1], address[0], name)
        sock.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        while sock.recv(999):
            pass
    begin()


def begin():
    with lock:
        name = next(asked, None)
    work.put((look_up, name) if name is not None else None)


def run():
    ends = 0
    while ends < PIPES:
        job = work.get()
        if job is None:
            ends += 1
        else:
            job[0](*job[1:])


PIPES = 2  # of each thread: a name to look up and to connect to, over and over
chance = random.Random(seed)
asked = iter([chance.choice(names) for _ in range(count)])
for _ in range(PIPES * threads):
    begin()
workers = [threading.Thread(target=run) for _ in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
