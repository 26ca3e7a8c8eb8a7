"""One connection, one request, timed: what ``conmonctl probe`` and ``python -m conmon probe`` do.

Every end has its record: a failed lookup, a refused connect, a rejected certificate, a server that
says nothing, garbage or too much. Time and memory are bounded whatever the peer does.
"""

from __future__ import annotations

import base64
import errno
import os
import selectors
import socket
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .connecting import establish, handshake, look_up
from .errors import ConmonError
from .measure import Measurement, now_ns
from .reasons import connect_failure
from .record import Record

__all__ = ["Probe", "Target", "UrlError", "parse_url"]

MAX_HEAD_BYTES = 64 << 10  # of an answer; most servers stop at 8 KB themselves
_CHUNK = 16 << 10
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_TLS = frozenset(("https", "wss", "tls"))
_SCHEMES = ("http", "https", "ws", "wss", "tcp", "tls")


class UrlError(ConmonError, ValueError):
    """Not a URL that can be probed: one sentence."""


@dataclass(frozen=True)
class Target:
    """Where to connect, and what to ask there."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in _TLS

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if _PORTS.get(self.scheme) == self.port else f"{host}:{self.port}"


def parse_url(url: str) -> Target:
    """Take a URL apart: http, https, ws, wss, tcp://host:port or tls://host:port.

    Raises:
        UrlError: it is none of these.
    """
    if any(ord(char) <= 32 or ord(char) == 127 for char in url):
        raise UrlError("a URL has no blanks or control characters")
    if "://" not in url:
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise UrlError(f"not a URL: {exc}") from exc
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        raise UrlError(f"{scheme}: is not probed; these are: {', '.join(_SCHEMES)}")
    if not host:
        raise UrlError("the URL names no host")
    if port is None:
        port = _PORTS.get(scheme)
    if not port:
        raise UrlError(f"{scheme}:// needs a port: {scheme}://host:port")
    path = parts.path or "/"
    if parts.query:
        path += f"?{parts.query}"
    return Target(url, scheme, host, port, path)


@dataclass(frozen=True)
class Probe:
    """How to probe.

    Args:
        timeout: seconds for all but the lookup.
        family: ``socket.AF_INET`` or ``AF_INET6`` alone; 0 is both.
        cafile: trusted besides nothing else; None is the system's.
        insecure: accept any certificate.
        http2: offer HTTP/2, for which the library ``h2`` must be there.
        connect_to: host and port to look up and connect to instead of the URL's.
    """

    timeout: float = 10.0
    family: int = 0
    cafile: str | None = None
    insecure: bool = False
    http2: bool = False
    connect_to: tuple[str, int] | None = None

    def run(self, target: Target) -> Record:
        """Connect and ask once; the record, whatever becomes of it."""
        measurement = Measurement()
        deadline_ns = now_ns() + int(self.timeout * 1e9)
        host, port = self.connect_to or (target.host, target.port)
        try:
            found = look_up(measurement, host, port, self.family)
            sock = establish(measurement, found, deadline_ns)
            if target.tls:
                context = self.context(target)
                sock = handshake(measurement, sock, context, target.host, deadline_ns)
        except (OSError, UnicodeError):
            return measurement.record()
        with sock:
            try:
                _Exchange(measurement, sock, deadline_ns).ask(target)
            except OSError as exc:
                measurement.fail(_error_of(exc), now_ns())
            measurement.look_at(sock)
            measurement.closed(now_ns())
        return measurement.record()

    def context(self, target: Target) -> ssl.SSLContext:
        """What TLS trusts and offers."""
        context = ssl.create_default_context(cafile=self.cafile)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if target.scheme == "https":
            context.set_alpn_protocols(["h2", "http/1.1"] if self.http2 else ["http/1.1"])
        elif target.scheme == "wss":
            context.set_alpn_protocols(["http/1.1"])
        return context


class _Exchange:
    """One request and the head of its answer, on a non-blocking socket."""

    def __init__(self, measurement: Measurement, sock: socket.socket, deadline_ns: int) -> None:
        self._measurement = measurement
        self._sock = sock
        self._deadline_ns = deadline_ns

    def ask(self, target: Target) -> None:
        """Send what the scheme calls for; tcp and tls send nothing.

        Raises:
            OSError: no proper answer came.
        """
        if target.scheme in ("tcp", "tls"):
            return
        chosen = None
        if isinstance(self._sock, ssl.SSLSocket):
            chosen = self._sock.selected_alpn_protocol()
        if chosen == "h2":
            self._ask_http2(target)
            return
        self._send(_request(target))
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._receive()
            if not data:
                raise ConnectionAbortedError(errno.EPROTO, "the server closed before it answered")
            head += data
            if not b"HTTP/1.".startswith(head[:7]) and not head.startswith(b"HTTP/1."):
                raise OSError(errno.EPROTO, "the answer is not HTTP")
            if len(head) > MAX_HEAD_BYTES:
                raise OSError(errno.EMSGSIZE, "the answer's headers are too long")

    def _ask_http2(self, target: Target) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.events import ResponseReceived, StreamEnded, StreamReset
        from h2.exceptions import H2Error

        session = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        session.initiate_connection()
        session.send_headers(
            1,
            [
                (":method", "GET"),
                (":scheme", target.scheme),
                (":authority", target.authority),
                (":path", target.path),
            ],
            end_stream=True,
        )
        self._send(session.data_to_send())
        seen = 0
        while True:
            data = self._receive()
            seen += len(data)
            if not data or seen > MAX_HEAD_BYTES * 4:
                raise OSError(errno.EPROTO, "the server sent no HTTP/2 response")
            try:
                events = session.receive_data(data)
            except H2Error as exc:
                raise OSError(errno.EPROTO, "the answer is not HTTP/2") from exc
            for event in events:
                if isinstance(event, ResponseReceived):
                    status = str(dict(event.headers or ()).get(":status", ""))
                    protocol: dict[str, Any] = {"protocol": "http"}
                    if status.isdigit():
                        protocol["resp"] = int(status)
                    self._measurement.protocol = {**protocol, "method": "GET", "version": "2"}
                    return
                if isinstance(event, (StreamEnded, StreamReset)):
                    raise OSError(errno.EPROTO, "the server ended the HTTP/2 stream")
            reply = session.data_to_send()
            if reply:
                self._send(reply)

    def _send(self, data: bytes) -> None:
        self._measurement.sent(data, now_ns())
        view = memoryview(data)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(selectors.EVENT_WRITE)
            except ssl.SSLWantReadError:
                self._wait(selectors.EVENT_READ)

    def _receive(self) -> bytes:
        while True:
            try:
                data = self._sock.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(selectors.EVENT_READ)
            except ssl.SSLWantWriteError:
                self._wait(selectors.EVENT_WRITE)
            else:
                if data:
                    self._measurement.received(data, now_ns())
                return data

    def _wait(self, event: int) -> None:
        left = (self._deadline_ns - now_ns()) / 1e9
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, event)
            if left <= 0 or not selector.select(left):
                raise TimeoutError(errno.ETIMEDOUT, "timed out")


def _request(target: Target) -> bytes:
    lines = [f"GET {target.path} HTTP/1.1", f"Host: {target.authority}", "User-Agent: conmon"]
    if target.scheme in ("ws", "wss"):
        key = base64.b64encode(os.urandom(16)).decode("ascii")
        lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += [f"Sec-WebSocket-Key: {key}"]
    else:
        lines += ["Accept: */*", "Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


def _error_of(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return "EPROTO"
    return connect_failure(exc).error or "EIO"
