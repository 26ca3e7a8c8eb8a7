"""HTTP and TLS peers whose delays and misbehaviour are known, and that note what they saw.

Every connection leaves a ``Witness``: the second opinion on what conmond reports.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass, field

from tests.lab.clock import be_punctual
from tests.lab.netns import Namespace

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, no time: close() sends RST
PATIENCE_S = 15.0  # longest wait for a client that says nothing
TLS_HANDSHAKE = 22
HEAD_END = b"\r\n\r\n"
SNI_NOTE = "lab_sni"  # attribute put on an SSLObject; one context serves many at once


class Cut(enum.Enum):
    """Where, and how, a server breaks off."""

    FIN_AFTER_HELLO = enum.auto()
    RESET_AFTER_HELLO = enum.auto()
    SILENT_AFTER_HELLO = enum.auto()
    FIN_AFTER_REQUEST = enum.auto()
    RESET_AFTER_REQUEST = enum.auto()
    SILENT_AFTER_REQUEST = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What a server does with each connection.

    Args:
        tls: speak TLS with this context; None is plaintext.
        hello_delay_s: from the ClientHello's arrival to the server's first reply.
        response_delay_s: from the request's arrival to the response's first byte.
        tickets_with_response: hold TLS 1.3 tickets back until the response.
        greeting: sent before the client says anything, ``greeting_delay_s`` after accept.
        cut: break off instead of answering.
        body_bytes: length of the response body.
    """

    tls: ssl.SSLContext | None = None
    hello_delay_s: float = 0.0
    response_delay_s: float = 0.0
    tickets_with_response: bool = False
    greeting: bytes | None = None
    greeting_delay_s: float = 0.0
    cut: Cut | None = None
    body_bytes: int = 23


@dataclass
class Request:
    """One request as the server saw it, CLOCK_MONOTONIC."""

    line: str
    first_byte_ns: int
    response_ns: int | None = None  # just before the response was handed to the kernel


@dataclass
class Witness:
    """One connection as the server saw it, CLOCK_MONOTONIC."""

    peer: tuple[str, int]
    accepted_ns: int
    hello_ns: int | None = None  # the whole ClientHello had arrived
    hello_reply_ns: int | None = None
    tls_done_ns: int | None = None
    tls_version: str | None = None
    tls_cipher: str | None = None
    tls_resumed: bool | None = None
    alpn: str | None = None
    sni: str | None = None
    greeting_ns: int | None = None
    requests: list[Request] = field(default_factory=list)
    bytes_received: int = 0  # TCP payload
    bytes_sent: int = 0
    error: str | None = None


class Server:
    """One listener on ``(address, port)`` in ``space``; a thread for each connection.

    ``witnesses`` grows by one when a connection is accepted.
    """

    def __init__(self, space: Namespace, address: str, port: int, behaviour: Behaviour) -> None:
        self.address = address
        self.port = port
        self.behaviour = behaviour
        self.witnesses: list[Witness] = []
        if behaviour.tls is not None:
            behaviour.tls.sni_callback = _note_sni
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def listen() -> socket.socket:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(256)
            return sock

        self._listener = space.call(listen)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def witness(self, lport: int) -> Witness:
        """The newest connection that came from the client's port ``lport``."""
        return next(seen for seen in reversed(self.witnesses) if seen.peer[1] == lport)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=2)

    def _accept(self) -> None:
        be_punctual()
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            seen = Witness(peer=peer[:2], accepted_ns=time.monotonic_ns())
            self.witnesses.append(seen)
            threading.Thread(target=self._serve, args=(sock, seen), daemon=True).start()

    def _serve(self, sock: socket.socket, seen: Witness) -> None:
        be_punctual()
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock:
            try:
                _Conversation(sock, seen, self.behaviour).run()
            except (OSError, ssl.SSLError, EOFError) as exc:  # the client's doing; noted
                seen.error = f"{type(exc).__name__}: {exc}"


def _note_sni(
    tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext
) -> None:
    setattr(tls, SNI_NOTE, name)


def _sleep_until(start_ns: int, delay_s: float) -> None:
    time.sleep(max(0.0, start_ns / 1e9 + delay_s - time.monotonic()))


class _Conversation:
    # One connection. TLS runs over memory, so that every flight leaves at a known moment.

    def __init__(self, sock: socket.socket, seen: Witness, behaviour: Behaviour) -> None:
        self._sock = sock
        self._seen = seen
        self._do = behaviour
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()

    def run(self) -> None:
        if self._do.greeting is not None:
            _sleep_until(self._seen.accepted_ns, self._do.greeting_delay_s)
            self._seen.greeting_ns = time.monotonic_ns()
            self._send(self._do.greeting)
        if self._do.tls is not None and not self._handshake(self._do.tls):
            return
        while self._answer_one():
            pass
        if self._do.cut is None:
            self._hang_up()

    def _handshake(self, context: ssl.SSLContext) -> bool:
        hello = self._recv()
        while len(hello) < 5 or len(hello) < 5 + int.from_bytes(hello[3:5]):
            if hello[0] != TLS_HANDSHAKE:
                raise OSError("no ClientHello")
            hello += self._recv()
        self._seen.hello_ns = time.monotonic_ns()
        if self._cut(Cut.FIN_AFTER_HELLO, Cut.RESET_AFTER_HELLO, Cut.SILENT_AFTER_HELLO):
            return False
        _sleep_until(self._seen.hello_ns, self._do.hello_delay_s)
        self._incoming.write(hello)
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._incoming.write(self._recv())
            except ssl.SSLError:
                self._flush()  # the alert
                self._hang_up()
                raise
        self._tls = tls
        self._seen.tls_done_ns = time.monotonic_ns()
        self._seen.tls_version = tls.version()
        cipher = tls.cipher()
        self._seen.tls_cipher = cipher[0] if cipher else None
        self._seen.tls_resumed = tls.session_reused
        self._seen.alpn = tls.selected_alpn_protocol()
        self._seen.sni = getattr(tls, SNI_NOTE, None)
        if not self._do.tickets_with_response:
            self._flush()
        return True

    def _answer_one(self) -> bool:
        # One request and its response; False when no other will come.
        head = b""
        first_byte_ns = 0
        while HEAD_END not in head:
            more = self._read()
            if not more:
                return False
            first_byte_ns = first_byte_ns or time.monotonic_ns()
            head += more
        lines = head.partition(HEAD_END)[0].decode("latin-1").split("\r\n")
        request = Request(lines[0], first_byte_ns)
        self._seen.requests.append(request)
        if self._cut(Cut.FIN_AFTER_REQUEST, Cut.RESET_AFTER_REQUEST, Cut.SILENT_AFTER_REQUEST):
            return False
        method, path, version = lines[0].split(" ")
        headers = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        kept = headers.get("connection") != "close" and version == "HTTP/1.1"
        status = int(path.rpartition("/")[2]) if path.startswith("/status/") else 200
        body = b"" if method == "HEAD" or status in (204, 304) else b"x" * self._do.body_bytes
        response = (
            f"HTTP/1.1 {status} Lab\r\nContent-Type: text/plain\r\n"
            + ("" if status in (204, 304) else f"Content-Length: {self._do.body_bytes}\r\n")
            + f"Connection: {'keep-alive' if kept else 'close'}\r\n\r\n"
        ).encode("ascii") + body
        _sleep_until(first_byte_ns, self._do.response_delay_s)
        request.response_ns = time.monotonic_ns()
        self._write(response)
        return kept

    def _cut(self, fin: Cut, reset: Cut, silent: Cut) -> bool:
        if self._do.cut is fin:
            self._hang_up()
        elif self._do.cut is reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        elif self._do.cut is silent:
            self._drain()
        return self._do.cut in (fin, reset, silent)

    def _hang_up(self) -> None:
        # FIN, never RST: nothing unread is left when the socket is closed.
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError, OSError):
                self._tls.unwrap()
            self._flush()
        self._sock.shutdown(socket.SHUT_WR)
        self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(EOFError, TimeoutError):
            while True:
                self._recv()

    def _read(self) -> bytes:
        # Decrypted bytes, b"" when the client has ended.
        while True:
            try:
                return self._recv() if self._tls is None else self._tls.read(65536)
            except ssl.SSLWantReadError:
                try:
                    self._incoming.write(self._recv())
                except EOFError:
                    return b""
            except (EOFError, ssl.SSLZeroReturnError):
                return b""

    def _write(self, data: bytes) -> None:
        if self._tls is None:
            self._send(data)
        else:
            self._tls.write(data)
            self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            if self._seen.hello_reply_ns is None:
                self._seen.hello_reply_ns = time.monotonic_ns()
            self._send(self._outgoing.read())

    def _recv(self) -> bytes:
        data = self._sock.recv(65536)
        if not data:
            raise EOFError("the client hung up")
        self._seen.bytes_received += len(data)
        return data

    def _send(self, data: bytes) -> None:
        self._sock.sendall(data)
        self._seen.bytes_sent += len(data)
