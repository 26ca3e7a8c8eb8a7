"""ClientHello and ServerHello, put together from their packets, kept until the record is made."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from monitor.decode import HelloEvent
from monitor.wire.hello import (
    ClientHello,
    ServerHello,
    parse_client_hello,
    parse_server_hello,
)
from monitor.wire.http1 import HEAD_MOST, is_head_over, request_host
from monitor.wire.http2 import Piece
from monitor.wire.http2 import Reader as Http2Reader
from monitor.wire.quic import Datagram
from monitor.wire.quic import Reader as QuicReader

__all__ = ["HelloTable", "Hellos"]

# As many as connections can be open: each TLS connection waits here with its parsed hellos.
MAX_CONNECTIONS: Final = 65_536
MAX_BYTES: Final = 4096  # HELLO_MAX in bpf/event.h
MAX_PARTS: Final = 128  # of both hellos, each parsed with what came before; after that
PART_BYTES: Final = 64  # ... once for so many more
HTTP2: Final = 3  # HelloEvent.number of HTTP/2's first bytes
HTTP1: Final = 4  # ... and of a plain HTTP/1 request's


@dataclass(slots=True)
class Hellos:
    """What one connection's hellos said; None where not (or not wholly) seen."""

    client: ClientHello | None = None
    server: ServerHello | None = None
    _client_bytes: bytes = b""
    _server_bytes: bytes = b""
    _server_number: int = 0
    _parts: int = 0
    http2: Http2Reader | None = None
    """HTTP/2's first bytes. Its times, and QUIC's, are since the connection began."""
    quic: QuicReader | None = None
    _head: bytes = b""
    _host: str | None = None

    def host(self, before: bytes = b"") -> str | None:
        """Whom a plain HTTP/1 request asks for.

        Args:
            before: its bytes that came before those that were handed over.
        """
        return self._host if self._host is not None else request_host(before + self._head)

    def quic_client(self) -> ClientHello | None:
        """QUIC's ClientHello, from the datagrams sent so far."""
        return self.quic.seen(one_rtt_us=None).client if self.quic is not None else None

    def add(self, event: HelloEvent) -> None:
        """Take in one part."""
        at_us = (event.ts_ns - event.connect_ns) // 1000
        if event.number == HTTP2:
            self.http2 = self.http2 or Http2Reader()
            self.http2.add(Piece(at_us, event.seq, event.data), received=event.received)
            return
        if event.number == HTTP1:
            self._add_head(event.data)
            return
        if not event.number:
            self.quic = self.quic or QuicReader()
            self.quic.add(Datagram(at_us, event.received, event.data))
            return
        self._parts += 1
        if not event.received:
            before = len(self._client_bytes)
            self._client_bytes = (self._client_bytes + event.data)[:MAX_BYTES]
            if not self._is_due(self._client_bytes, before):
                return
            self.client = parse_client_hello(self._client_bytes)
            if self.client is not None and not self.client.truncated:
                self._client_bytes = b""
            return
        if event.number != self._server_number:
            # A second ServerHello only ever follows a HelloRetryRequest; what else looks like one
            # is the first byte of an encrypted Finished.
            if self.server is not None and not self.server.hello_retry:
                return
            self._server_number = event.number
            self._server_bytes = b""
        before = len(self._server_bytes)
        self._server_bytes = (self._server_bytes + event.data)[:MAX_BYTES]
        if not self._is_due(self._server_bytes, before):
            return
        self.server = parse_server_hello(self._server_bytes) or self.server
        if self.server is not None and not self.server.truncated:
            self._server_bytes = b""

    # Of most requests the host is in the first piece, and nothing more needs to be kept.
    def _add_head(self, data: bytes) -> None:
        if self._host is not None or len(self._head) >= HEAD_MOST:
            return
        self._head = (self._head + data)[:HEAD_MOST]
        if is_head_over(self._head):
            self._host = request_host(self._head)
            if self._host is not None:
                self._head = b""

    # Whether to parse what is there: all of its first record at the latest.
    def _is_due(self, data: bytes, before: int) -> bool:
        if self._parts <= MAX_PARTS or before // PART_BYTES < len(data) // PART_BYTES:
            return True
        return len(data) >= 5 and before < 5 + (data[3] << 8 | data[4]) <= len(data)


class HelloTable:
    """Hellos by connection: (sock address, connect time)."""

    def __init__(self, *, most: int = MAX_CONNECTIONS) -> None:
        self._most = most
        self._by_conn: OrderedDict[tuple[int, int], Hellos] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_conn)

    def add(self, event: HelloEvent) -> None:
        """Take in one part of a hello. Past the bound the oldest connection's are dropped."""
        key = (event.sk, event.connect_ns)
        hellos = self._by_conn.get(key)
        if hellos is None:
            if len(self._by_conn) >= self._most:
                self._by_conn.popitem(last=False)
            hellos = self._by_conn[key] = Hellos()
        hellos.add(event)

    def get(self, sk: int, connect_ns: int) -> Hellos | None:
        """The hellos of an open connection."""
        return self._by_conn.get((sk, connect_ns))

    def take(self, sk: int, connect_ns: int) -> Hellos | None:
        """The hellos of a connection that ended."""
        return self._by_conn.pop((sk, connect_ns), None)
