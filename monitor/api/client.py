"""One client of the query socket: what it asked, and what of the answer has yet to be sent."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import h11

from monitor.api.access import Asker
from monitor.api.answer import NDJSON, Answer, Feed, Stream

__all__ = ["Client", "whole"]

_REQUEST_BYTES: Final = 8 << 10  # line and headers, until they are complete
_AHEAD_BYTES: Final = 16 << 10  # of requests that came before the answer to the last had gone
_PIECES: Final = 64  # that one system call sends
_SERVER_NAME: Final = "conmond"


@dataclass(slots=True, eq=False)
class Client:
    """A connection: bytes to requests, answers to bytes. It decides nothing about others.

    Args:
        sock: does not block.
        asker: who is at the other end.
        deadline: CLOCK_MONOTONIC seconds; what has to happen until then depends on its state.
        since: likewise, of when it last had its answer, or came.
    """

    sock: socket.socket
    asker: Asker
    deadline: float
    since: float
    http: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_BYTES)
    )
    out: deque[bytes | memoryview] = field(default_factory=deque)
    waiting: int = 0
    """Bytes in ``out``."""
    body: Iterator[bytes] | None = None
    stream: Stream | None = None
    feed: Feed | None = None
    busy: bool = False
    """Its answer is being found in another thread."""
    ended: bool = False
    """It sends nothing more; it may still read."""
    closing: bool = False
    """To be closed when ``out`` has been written."""
    gone: bool = False
    said_at: float = 0.0
    watched: int = 0
    _head: bool = False
    """It asked for the headers alone."""

    @property
    def answering(self) -> bool:
        """Whether anything of an answer is still to come."""
        return bool(self.out or self.body or self.stream or self.feed or self.busy)

    @property
    def idle(self) -> bool:
        """Whether it neither asks nor waits for anything."""
        return (
            not self.answering
            and not self.closing
            and self.http.their_state is h11.IDLE
            and not self.http.trailing_data[0]
        )

    @property
    def full(self) -> bool:
        """Whether it has asked so far ahead that no more is read of it."""
        return len(self.http.trailing_data[0]) >= _AHEAD_BYTES

    @property
    def hung_up(self) -> bool:
        """Whether nobody is at the other end, who could also have stopped sending alone."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(0))

    # -- requests -----------------------------------------------------------------------------

    def next_request(self) -> h11.Request | h11.ConnectionClosed | None:
        """Return a request that has arrived whole; None: more has to come.

        Raises:
            h11.RemoteProtocolError: what came is no HTTP.
        """
        event = self.http.next_event()
        if isinstance(event, h11.ConnectionClosed):
            return event
        if not isinstance(event, h11.Request):
            return None
        self._head = event.method == b"HEAD"
        return event

    def end_of_request(self) -> None:
        """Take in the end of a request that has no body."""
        self.http.next_event()

    @property
    def can_be_answered(self) -> bool:
        """Whether an answer would not be in the middle of another."""
        return self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    # -- answers ------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Put an answer, or its headers alone where it asked for them, on its way."""
        if isinstance(answer.body, bytes):
            self.put(whole(self.http, answer, head=self._head))
            self._next()
            return
        if self._begin(answer):
            self.body = answer.body

    def begin_lines(self) -> bool:
        """Begin an answer of lines that :meth:`line` adds; False where it is complete so."""
        return self._begin(Answer(200, b"", NDJSON))

    def line(self, line: bytes) -> None:
        """Add to an answer of lines."""
        self.put(self.http.send(h11.Data(data=line)) or b"")

    def end_lines(self) -> None:
        """No more lines follow."""
        self.put(self.http.send(h11.EndOfMessage()) or b"")
        self._next()

    def make_piece(self) -> None:
        """Make the next piece of a long answer."""
        assert self.body is not None
        piece = next(self.body, None)
        if piece is None:
            self.body = None
            self.end_lines()
        elif piece:
            self.line(piece)

    def put(self, data: bytes) -> None:
        """Have bytes sent."""
        if data:
            self.out.append(data)
            self.waiting += len(data)

    def send(self, most: int) -> int:
        """Send some of what waits.

        Args:
            most: bytes.
        Returns:
            How many bytes went.
        Raises:
            BlockingIOError: it has to read first.
            OSError: it has gone.
        """
        pieces: list[bytes | memoryview] = []
        for piece in self.out:
            if most <= 0 or len(pieces) == _PIECES:
                break
            pieces.append(piece if len(piece) <= most else memoryview(piece)[:most])
            most -= len(piece)
        left = sent = self.sock.sendmsg(pieces)
        self.waiting -= sent
        while left:
            piece = self.out[0]
            if left < len(piece):
                self.out[0] = memoryview(piece)[left:]
                break
            left -= len(piece)
            self.out.popleft()
        return sent

    # Whether a body is to follow.
    def _begin(self, answer: Answer) -> bool:
        self.put(self.http.send(_response(answer)) or b"")
        head = self._head
        if head:
            self.end_lines()
        return not head

    def _next(self) -> None:
        # the answer is complete: the next request, or the end
        if self.http.our_state is h11.MUST_CLOSE:
            self.closing = True
        elif self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
            self._head = False


def whole(http: h11.Connection, answer: Answer, *, head: bool = False) -> bytes:
    """Return the bytes of an answer that is not made in pieces.

    Args:
        head: the headers alone, with the length that the body would have.
    """
    assert isinstance(answer.body, bytes)
    length = ("Content-Length", str(len(answer.body)))
    events: list[h11.Event] = [_response(answer, length)]
    if answer.body and not head:
        events.append(h11.Data(data=answer.body))
    events.append(h11.EndOfMessage())
    return b"".join(http.send(event) or b"" for event in events)


def _response(answer: Answer, *length: tuple[str, str]) -> h11.Response:
    headers = [
        ("Server", _SERVER_NAME),
        ("Content-Type", answer.content_type),
        ("Cache-Control", "no-store"),
        *answer.headers,
        *length,
    ]
    return h11.Response(status_code=answer.status, headers=headers)
