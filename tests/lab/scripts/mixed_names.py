"""Threads that look names up and connect, some of them twice for one lookup, some by a pool's
answer; prints each connection's local port, its
peer and its name.

    mixed_names.py SEED PORT THREADS CONNECTIONS-OF-EACH NAME...
"""

import concurrent.futures
import contextlib
import random
import socket
import sys
import threading

seed, port, threads, each = map(int, sys.argv[1:5])
names = sys.argv[5:]
pool = concurrent.futures.ThreadPoolExecutor(4)
lock = threading.Lock()


def connect(name, info):
    family, kind, protocol, _, address = info
    with socket.socket(family, kind, protocol) as sock:
        # a thousand at once may be too many for the lab's server, too
        try:
            sock.connect(address)
        except OSError:
            return
        with lock:
            print(sock.getsockname()[1], address[0], name)
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            while sock.recv(999):
                pass


def look_up(name):
    for _ in range(50):  # the lab's resolver cannot answer a thousand at once
        try:
            return socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0]
        except socket.gaierror:
            continue
    raise SystemExit(f"{name} is not to be looked up")


def work(number):
    chance = random.Random(1000 * seed + number)
    made = 0
    while made < each:
        name = chance.choice(names)
        elsewhere = chance.random() < 0.3  # another thread's lookup
        info = pool.submit(look_up, name).result() if elsewhere else look_up(name)
        connect(name, info)
        made += 1
        if made < each and chance.random() < 0.2:  # the same answer again
            connect(name, info)
            made += 1


workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
pool.shutdown()
