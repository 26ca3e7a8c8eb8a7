"""The application data records of a TLS connection, and the turns found among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["JAVA_PADDING", "LATE_US", "After", "Record", "Turns"]

Record = tuple[int, int, int, bool, bool]
"""One TLS record start: at_us, length field, content type, received, first in its packet."""

LATE_US = 0xFFFFFFFF
"""What the log says of this time and of any later one."""

JAVA_PADDING = 16
"""Bytes that Java adds to every TLS 1.3 record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """Application data records, in order of time, that follow a handshake (or early data).

    ``*_overhead`` is a record's length less the plaintext in it, 0 where that varies;
    ``rx_may_pad``: or JAVA_PADDING more. ``trip_us``: what a round trip takes at most, 0 where
    that was not seen; ``least_trip_us``: the shortest one seen, 0
    where only a server's answers tell. ``ticket_limit_us``: by then session tickets have
    come, if any do; None where they are not sent as data (up to TLS 1.2). ``certificate``: the
    client sent one, which is then in its tickets. ``finished``: lengths of a record with nothing
    but a Finished. ``left_us``: when the client sent its closing alert.
    """

    data: Sequence[Record]
    tx_overhead: int
    rx_overhead: int
    rx_may_pad: bool = False
    trip_us: int = 0
    least_trip_us: int = 0
    ticket_limit_us: int | None = None
    certificate: bool = False
    finished: Sequence[int] = ()
    left_us: int | None = None


@dataclass(slots=True)
class Turns:
    """What find_turns() found; the fields are those of handshake.Wire, but for times that are
    LATE_US here. ``quiet``: nothing was said but what needs no request."""

    h2: bool = False
    quiet: bool = True
    tickets: int | None = None
    greeting_us: int | None = None
    request_us: int | None = None
    response_us: int | None = None
    open_request_us: int | None = None
    count: int = 0
    sum_us: int = 0
    max_us: int = 0
    timed: bool = True
    unsettled: bool = False

    def ask(self, at_us: int) -> None:
        """Something was sent: a request, or more of the one that is open."""
        if self.open_request_us is None:
            self.open_request_us = at_us
        if self.request_us is None:
            self.request_us = at_us

    def answer(self, at_us: int) -> None:
        """Something was received: an answer, if a request is open."""
        if self.open_request_us is None:
            return
        took = max(at_us - self.open_request_us, 0)
        self.open_request_us = None
        if self.response_us is None:
            self.response_us = at_us
        self.count += 1
        if at_us >= LATE_US:
            self.timed = False
            return
        self.sum_us += took
        self.max_us = max(self.max_us, took)
