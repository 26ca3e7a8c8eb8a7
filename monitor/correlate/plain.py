"""What a TLS library read and wrote in the clear, put together to requests and answers. Pure.

Only what a record says of them is kept: protocol, method, version and the answer's code. Of the
bytes themselves no more than the first of a turn are held, until its answer has been read.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from conmon.heads import parse_heads
from monitor.decode import ConnEvent, PlainEvent
from monitor.wire.http2 import PREFACE, Piece, Reader

__all__ = ["Turn", "TurnTable"]

MAX_TALKS: Final = 2048  # MAX_DEEP_TALKS in bpf/maps.h
HEAD_BYTES: Final = 512  # of a request or an answer, to tell what it is
ENOUGH_BYTES: Final = 64  # of an answer that is of no known protocol


class Turn(NamedTuple):
    """One request and its answer."""

    connection: tuple[int, int] | None
    """sk and connect_ns; None where the socket is not known."""
    at_ns: int
    """The call that wrote the request was entered (a server's: read it), CLOCK_MONOTONIC."""
    us: int
    """... until the call that read (wrote) the answer's first bytes returned."""
    prot_specific: dict[str, Any] | None


@dataclass(slots=True)
class _Talk:
    """One library object."""

    connection: tuple[int, int] | None = None
    begun_ns: int = 0
    prot: dict[str, Any] | None = None
    """Of the first turn that is of a known protocol."""
    server: bool = False
    seen: set[bool] = field(default_factory=set)
    _http2: bool = False
    _reader: Reader | None = None
    _request: bytes = b""
    _answer: bytes = b""
    _request_ns: int | None = None
    _answer_ns: int = 0

    def add(self, event: PlainEvent) -> list[Turn]:
        turns: list[Turn] = []
        if not self.seen:
            self.begun_ns = event.enter_ns
            self.server = event.received and parse_heads(event.data[:HEAD_BYTES], b"") is not None
        self.seen.add(event.received)
        asks = event.received == self.server
        if asks and not event.offset and event.data.startswith(PREFACE[: len(event.data)]):
            self._http2 = len(event.data) >= len(PREFACE)
            self._reader = Reader() if self._http2 else None
        if self._http2:
            return self._add_http2(event, asks)
        if asks:
            if event.turned:
                turns = self.flush()
                self._request, self._answer = b"", b""
                self._request_ns = event.enter_ns
            self._request = (self._request + event.data)[:HEAD_BYTES]
        elif self._request_ns is not None:
            if not self._answer:
                self._answer_ns = event.exit_ns
            self._answer = (self._answer + event.data)[:HEAD_BYTES]
            found = parse_heads(self._request, self._answer)
            if (found is not None and "resp" in found) or len(self._answer) >= (
                HEAD_BYTES if found is not None else ENOUGH_BYTES
            ):
                turns = self.flush()
        return turns

    def flush(self) -> list[Turn]:
        """The turn that was under way, with what is known of it; none where no answer came."""
        begun_ns, self._request_ns = self._request_ns, None
        if begun_ns is None or not self._answer:
            return []
        found = parse_heads(self._request, self._answer)
        prot = found if found is not None and len(found) > 1 else None
        self.prot = self.prot or prot
        return [Turn(self.connection, begun_ns, (self._answer_ns - begun_ns) // 1000, prot)]

    # Of HTTP/2 the first turn alone: which frames answer which is not followed.
    def _add_http2(self, event: PlainEvent, asks: bool) -> list[Turn]:
        if self._reader is None:
            return []
        at_ns = event.enter_ns if asks else event.exit_ns
        piece = Piece((at_ns - self.begun_ns) // 1000, event.offset, event.data)
        if not self._reader.add(piece, received=not asks):
            return []
        found = self._reader.seen()
        prot = found.prot_specific()
        if prot is None or found.request_us is None or found.response_us is None:
            return []
        self.prot = prot
        self._reader = None
        at_ns = self.begun_ns + found.request_us * 1000
        return [Turn(self.connection, at_ns, found.response_us - found.request_us, prot)]


class TurnTable:
    """Turns by library object, and by connection once the socket is known."""

    def __init__(self, *, most: int = MAX_TALKS) -> None:
        self._most = most
        self._by_object: OrderedDict[tuple[int, int], _Talk] = OrderedDict()
        self._by_conn: OrderedDict[tuple[int, int], _Talk] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_object) + len(self._by_conn)

    def add(self, event: PlainEvent) -> list[Turn]:
        """Take in what a call moved; return the turns that it completes."""
        key = (event.pid, event.object)
        talk = self._by_object.get(key)
        turns: list[Turn] = []
        if talk is None or (not event.offset and event.received in talk.seen):
            if talk is not None:  # the object's memory is another's now
                turns = talk.flush()
            elif len(self._by_object) >= self._most:
                self._by_object.popitem(last=False)
            talk = self._by_object[key] = _Talk()
        if event.sk and talk.connection is None:
            talk.connection = (event.sk, event.connect_ns)
            if len(self._by_conn) >= self._most:
                self._by_conn.popitem(last=False)
            self._by_conn[talk.connection] = talk
        return turns + talk.add(event)

    def protocol(self, conn: ConnEvent) -> dict[str, Any] | None:
        """What was spoken on a connection, as the record's ``prot_specific``."""
        talk = self._find(conn)
        return talk.prot if talk is not None else None

    def flush(self, conn: ConnEvent) -> list[Turn]:
        """A connection has ended: the turn that was under way, if it had an answer."""
        talk = self._find(conn)
        return talk.flush() if talk is not None else []

    def forget(self, conn: ConnEvent) -> None:
        """Nobody will ask about this connection any more."""
        talk = self._find(conn)
        self._by_conn.pop((conn.sk, conn.connect_ns), None)
        key = (conn.pid, conn.ssl)
        if talk is not None and self._by_object.get(key) is talk:
            del self._by_object[key]

    def _find(self, conn: ConnEvent) -> _Talk | None:
        talk = self._by_conn.get((conn.sk, conn.connect_ns))
        if talk is not None or not conn.ssl:
            return talk
        # its socket was not seen in the call; the handshake's object is the same
        talk = self._by_object.get((conn.pid, conn.ssl))
        if talk is None or talk.connection is not None or talk.begun_ns < conn.ssl_first_ns:
            return None
        return None if conn.end_ns and talk.begun_ns > conn.end_ns else talk

    def drop(self, pid: int) -> None:
        """Nobody reads this process any more."""
        for key in [key for key in self._by_object if key[0] == pid]:
            talk = self._by_object.pop(key)
            if talk.connection is not None and talk.prot is None:
                self._by_conn.pop(talk.connection, None)
