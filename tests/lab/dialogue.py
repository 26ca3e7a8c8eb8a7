"""Servers that speak in the clear before TLS begins: each a short script of who says what."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.lab.clock import be_punctual
from tests.lab.netns import Namespace

PATIENCE_S = 15.0


@dataclass(frozen=True)
class Say:
    """Send this, after so long."""

    data: bytes
    after_s: float = 0.0


@dataclass(frozen=True)
class Hear:
    """Read up to and with this; or so many bytes."""

    until: bytes | int = b"\n"


@dataclass(frozen=True)
class Secure:
    """Shake hands, so long after the ClientHello has come."""

    context: ssl.SSLContext
    after_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """Answer each line until the client ends."""

    reply: Callable[[bytes], bytes]
    after_s: float = 0.0


Step = Say | Hear | Secure | Answer


@dataclass
class Dialogue:
    """A server of one such script on ``(address, port)``; a thread for each connection."""

    space: Namespace
    address: str
    port: int
    steps: Sequence[Step]
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET

        def listen() -> socket.socket:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.address, self.port))
            sock.listen(16)
            return sock

        self._listener = self.space.call(listen)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=2)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        be_punctual()
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: sock.close())
            try:
                for step in self.steps:
                    sock = _take(step, sock)
            except (OSError, EOFError) as exc:  # the client's doing; noted
                self.errors.append(f"{type(exc).__name__}: {exc}")


def _take(step: Step, sock: socket.socket) -> socket.socket:
    match step:
        case Say(data, after_s):
            time.sleep(after_s)
            sock.sendall(data)
        case Hear(until):
            _hear(sock, until)
        case Secure(context, after_s):
            sock.recv(1, socket.MSG_PEEK)
            time.sleep(after_s)
            return context.wrap_socket(sock, server_side=True)
        case Answer(reply, after_s):
            with contextlib.suppress(EOFError, OSError):
                while True:
                    line = _hear(sock, b"\n")
                    time.sleep(after_s)
                    sock.sendall(reply(line))
    return sock


def _hear(sock: socket.socket, until: bytes | int) -> bytes:
    heard = b""
    while len(heard) < until if isinstance(until, int) else not heard.endswith(until):
        more = sock.recv(min(until - len(heard), 65536) if isinstance(until, int) else 1)
        if not more:
            raise EOFError("the client hung up")
        heard += more
    return heard
