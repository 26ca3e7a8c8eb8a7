"""Events that never arrived, and which records they could have belonged to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from monitor.decode import ConnEvent, ConnFlag

__all__ = ["Losses", "Lost"]

# A lookup that was lost may belong to what its process connects to within this.
LOOKUP_NS: Final = 10_000_000_000
# An attempt that was lost may belong to a connection that begins within this.
ATTEMPT_NS: Final = 1_000_000_000
_WITH_HELLO: Final = ConnFlag.TLS | ConnFlag.QUIC | ConnFlag.H2


@dataclass(frozen=True, slots=True)
class Lost:
    """Events that never arrived: how many, and when each kind was lost last (0: never)."""

    count: int
    seen_ns: int
    """When a loss of another kind than the following was noticed; it happened before."""
    conn_ns: int = 0
    lookup_ns: int = 0
    """What names a connection's host or program: a lookup, a DNS message, an exec."""
    hello_ns: int = 0


class Losses:
    """What was lost so far. Of each kind only the last time is known: what began before it may
    have lost something, and is said to."""

    def __init__(self) -> None:
        self._until_ns = 0
        self._hello_ns = 0

    def note(self, lost: Lost) -> None:
        """Take in what was lost, before the records that it could belong to are made."""
        until_ns = [self._until_ns, lost.seen_ns]
        if lost.conn_ns:
            until_ns.append(lost.conn_ns + ATTEMPT_NS)
        if lost.lookup_ns:
            until_ns.append(lost.lookup_ns + LOOKUP_NS)
        self._until_ns = max(until_ns)
        self._hello_ns = max(self._hello_ns, lost.hello_ns)

    def before(self, conn: ConnEvent) -> bool:
        """Whether anything was lost that could belong to a connection, but for its hellos."""
        return conn.connect_ns <= self._until_ns

    def hello(self, conn: ConnEvent) -> bool:
        """Whether a part of its hellos may have been lost."""
        return bool(conn.flags & _WITH_HELLO) and conn.connect_ns <= self._hello_ns
