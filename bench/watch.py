"""What ``conmon.watch()`` costs each connection of the program that it watches."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Iterator

import conmon

__all__ = ["measure"]


def measure(count: int, rounds: int) -> Iterator[tuple[str, str]]:
    """Yield a label and a sentence: connections on loopback, with and without, in turn.

    Args:
        count: connections of each round; each sends and receives once.
        rounds: of each kind.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    address = listener.getsockname()

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                if sock.recv(64):
                    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()

    def load() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            with socket.create_connection(address) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                while sock.recv(4096):
                    pass
        return (time.perf_counter() - begin) / count * 1e6

    load()
    without, watched = [], []
    for _ in range(rounds):
        without.append(load())
        with conmon.watch() as records:
            watched.append(load())
        if len(records) != count:
            raise RuntimeError(f"{len(records)} records of {count} connections")
    listener.close()
    yield "without", f"{statistics.median(without):.1f} µs a connection"
    yield "watched", f"{statistics.median(watched):.1f} µs a connection"
    extra = statistics.median(b - a for a, b in zip(without, watched, strict=True))
    yield "conmon.watch() costs", f"{extra:.1f} µs a connection (aim: under 50 µs)"
