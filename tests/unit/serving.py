"""The query socket's server on a real Unix socket, with clients and answers of a test's own."""

from __future__ import annotations

import json
import os
import socket
import time

from monitor.api.access import Asker
from monitor.api.answer import error, json_answer
from monitor.api.server import Limits, Server

WAIT_S = 10.0
ALICE, BOB, CAROL = 1001, 1002, 1003


class Peer:
    """The other end: sends what it is told and reads HTTP."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(WAIT_S)
        self.unread = b""

    def ask(self, target, method="GET", version="1.1"):
        self.sock.sendall(f"{method} {target} HTTP/{version}\r\nHost: c\r\n\r\n".encode())
        return self

    def get(self, target, method="GET"):
        return self.ask(target, method).answer(head=method == "HEAD")

    def answer(self, *, head=False):
        """Status, headers, body."""
        status, headers = self.start()
        if head:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            pieces = list(iter(self.chunk, b""))
            return status, headers, b"".join(pieces)
        return status, headers, self.read(int(headers["content-length"]))

    def start(self):
        first, *lines = self.line(b"\r\n\r\n").decode().split("\r\n")
        return int(first.split()[1]), {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
        }

    def chunk(self):
        data = self.read(int(self.line(b"\r\n"), 16))
        assert self.read(2) == b"\r\n"
        return data

    def line(self, end):
        while end not in self.unread:
            self.more()
        line, _, self.unread = self.unread.partition(end)
        return line

    def read(self, size):
        while len(self.unread) < size:
            self.more()
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    def more(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError
        self.unread += data

    def ended(self):
        """Whether it was closed, after what it was told."""
        try:
            while data := self.sock.recv(1 << 16):
                self.unread += data
        except ConnectionError:
            pass
        return True

    def leave(self):
        self.sock.close()


class Answers:
    """Stands for the routes: what a path is answered with."""

    def __init__(self):
        self.by_path = {"/hello": lambda: json_answer({"hello": 1})}
        self.asked = 0

    def reply(self, method, target, asker):
        self.asked += 1
        if method not in ("GET", "HEAD"):
            return error(405, "not so")
        return self.by_path[target]()


class Service:
    """A server that runs, whose clients are of whatever uid the test says."""

    def __init__(self, path, askers, **options):
        self.routes = Answers()
        self.said = []
        self._askers = askers
        self._peers = []
        self.server = Server(
            path,
            self.routes,
            lambda record: json.dumps({"comm": record.comm}).encode() + b"\n",
            group=None,
            say=self.said.append,
            **{"limits": Limits(), **options},
        )
        self.server.start()

    def connect(self, uid=0):
        self._askers.append(Asker(uid, sees_all=uid == 0))
        sock = socket.socket(socket.AF_UNIX)
        self._peers.append(sock)
        sock.settimeout(WAIT_S)
        sock.connect(self.server.path)
        until(lambda: not self._askers)
        return Peer(sock)

    def path(self, name, make):
        self.routes.by_path[name] = make

    def close(self):
        for sock in self._peers:
            sock.close()
        if os.path.exists(self.server.path):
            self.server.close()


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)
