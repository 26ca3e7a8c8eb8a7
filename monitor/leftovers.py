"""Entries of the kernel side's map whose connection has ended, though nothing said so.

The map empties itself as connections end. Where the kernel skipped the program that would have
seen it, or could not delete, an entry is left over: it would be open for ever, with figures read
from memory that is another's by now. So all are looked at now and then; what is left over at the
first look is one look later ended as a record that says so, or only deleted where it had been
handed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from monitor.decode import ConnEvent, ConnFlag, Phase, decode_conn, peek_keys

__all__ = ["Leftovers"]

# Together with CONFIRM_NS under the 10 s within which what is left over is to be gone.
LOOK_NS: Final = 7_000_000_000
# A program that is ending a connection at this moment is done by then.
CONFIRM_NS: Final = 1_000_000_000


class _Map(Protocol):
    def connection_batches(self) -> Iterator[memoryview]: ...
    def connection(self, sk: int) -> bytes | None: ...
    def forget_connection(self, sk: int, connect_ns: int) -> bool: ...
    def gone(self, connections: Sequence[tuple[int, int]]) -> list[bool]: ...
    def counters(self) -> dict[str, int]: ...


class Leftovers:
    """Finds them.

    Args:
        conns: the map, as :class:`monitor.kernel.kernel.Kernel` shows it.
    """

    def __init__(self, conns: _Map) -> None:
        self._conns = conns
        self._suspects: list[tuple[int, int]] = []
        self._look_ns = 0
        self._confirm_ns = 0
        self._ended = 0

    def total(self) -> int:
        """Return how many connections were ended because their socket was gone, those that the
        kernel side found in the way of a new one among them.
        """
        return self._ended + self._conns.counters()["stale"]

    def due(self, now_ns: int) -> bool:
        """Whether :meth:`turn` has something to do."""
        return now_ns >= self._look_ns or bool(self._suspects and now_ns >= self._confirm_ns)

    def turn(self, now_ns: int) -> list[ConnEvent]:
        """Look, or look again; return the ends of connections that the kernel side did not see,
        with the flag END_UNSEEN and the time at which they were found.

        What the ring held before has been fed.
        """
        ended = []
        if self._suspects and now_ns >= self._confirm_ns:
            suspects, self._suspects = self._suspects, []
            for sk, connect_ns in suspects:
                conn = self._end(sk, connect_ns, now_ns)
                if conn is not None:
                    ended.append(conn)
        if now_ns >= self._look_ns:
            self._look_ns = now_ns + LOOK_NS
            self._confirm_ns = now_ns + CONFIRM_NS
            self._suspects = list(self._look())
        return ended

    def _look(self) -> Iterator[tuple[int, int]]:
        for batch in self._conns.connection_batches():
            conns = []
            for sk, cookie, connect_ns, phase in peek_keys(batch):
                if phase in (Phase.SYN_SENT, Phase.ESTABLISHED):
                    conns.append((sk, cookie, connect_ns))
                elif phase >= Phase.FAILED:
                    yield sk, connect_ns
            gone = self._conns.gone([(sk, cookie) for sk, cookie, _ in conns])
            for (sk, _, connect_ns), is_gone in zip(conns, gone, strict=False):
                if is_gone:
                    yield sk, connect_ns

    def _end(self, sk: int, connect_ns: int, now_ns: int) -> ConnEvent | None:
        data = self._conns.connection(sk)
        if data is None:
            return None
        conn = decode_conn(data)
        if conn.connect_ns != connect_ns:
            return None
        left = conn.phase >= Phase.FAILED  # handed over, and not deleted
        if not left and not any(self._conns.gone([(sk, conn.cookie)])):
            return None
        if not self._conns.forget_connection(sk, connect_ns) or left:
            return None
        self._ended += 1
        return conn._replace(
            phase=Phase.CLOSED, end_ns=now_ns, flags=conn.flags | ConnFlag.END_UNSEEN
        )
