"""Which of several names with one address a connection went to, by who asked and who connected.

See :mod:`monitor.correlate.lookups` for the rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from monitor.correlate.lookup import Join, Lookup
from monitor.correlate.text import address_key
from monitor.decode import ConnEvent

__all__ = ["RIVALS_NS", "Evicted", "Process", "decide", "is_unused", "one_name"]

# A process seldom has more names in use than a browser has tabs' worth of hosts.
PER_PROCESS: Final = 256
# Of names with a common address, one that no connection has used within this was asked for with
# another purpose.
RIVALS_NS: Final = 2_000_000_000
# Answers that came together are connected to in one go, by a program that waits for nothing else.
BURST_NS: Final = 5_000_000
MAX_CONNECTORS: Final = 1024  # threads of a process that connect; with more, any may do anything
MAX_ORPHANS: Final = 8


@dataclass(slots=True)
class Evicted:
    """When the newest answers came that are not kept any more."""

    name: str | bytes = ""
    name_ns: int = 0
    others_ns: int = 0

    def add(self, name: str | bytes, answered_ns: int) -> None:
        """An answer for a name is let go."""
        if name != self.name:
            self.others_ns = max(self.others_ns, self.name_ns)
            self.name, self.name_ns = name, 0
        self.name_ns = max(self.name_ns, answered_ns)

    def but_for(self, name: str | bytes) -> int:
        """When the newest one for another name came; 0: there was none."""
        return self.others_ns if name == self.name else max(self.others_ns, self.name_ns)


@dataclass(slots=True)
class Process:
    """What one process looked up, and how its threads share work."""

    lookups: deque[Lookup] = field(default_factory=lambda: deque(maxlen=PER_PROCESS))
    evicted: Evicted = field(default_factory=Evicted)
    doubted_ns: int = 0
    """Of what was answered by then nobody knows what has been connected to."""
    connected_ns: dict[int, int] = field(default_factory=dict)
    """When each thread that connects did so last."""
    stacked: bool = False
    """A thread that connects has asked for two names in a row: one was for another thread."""
    ended_ns: int = 0
    """Its exit; 0: not seen."""
    orphans: deque[set[int]] = field(default_factory=lambda: deque(maxlen=MAX_ORPHANS))
    """The threads that may have asked for what one that never asked connected to."""

    def crossing(self) -> bool:
        """Whether threads that connect do so by each other's answers."""
        if len(self.connected_ns) < 2:
            return False
        return self.stacked or any(x <= self.connected_ns.keys() for x in self.orphans)

    def note(self, conn: ConnEvent) -> None:
        """A thread has connected."""
        if len(self.connected_ns) >= MAX_CONNECTORS:
            self.stacked = True
            return
        at = self.connected_ns.get(conn.tid, 0)
        self.connected_ns[conn.tid] = max(at, conn.connect_ns)

    def learn(self, conn: ConnEvent) -> None:
        """A thread has connected, in doubt by which answer."""
        before_ns = self.connected_ns.get(conn.tid, 0)
        key = address_key(conn.family, conn.raddr)
        asked = set()
        knows = False
        others = set()
        for x in self.lookups:
            if x.end_ns > conn.connect_ns or x.is_literal or not x.keys:
                continue
            if x.task.tid == conn.tid:
                knows = knows or key in x.keys
                if before_ns < x.end_ns and before_ns < conn.connect_ns:
                    asked.add(x.folded)
            elif key in x.keys and is_unused(x, key):
                others.add(x.task.tid)
        self.stacked = self.stacked or len(asked) > 1
        if not knows and others:
            self.orphans.append(others)
        self.note(conn)


def one_name(lookups: Sequence[Lookup]) -> bool:
    first = lookups[0].folded
    return all(x.folded == first for x in lookups)


def is_unused(lookup: Lookup, key: bytes) -> bool:
    return not lookup.used and key not in lookup.tried


# Several names fit, and SNI is none of them.
def decide(
    process: Process,
    conn: ConnEvent,
    key: bytes,
    fits: Sequence[Lookup],
    following: Sequence[ConnEvent],
) -> Join | None:
    unused = [x for x in fits if is_unused(x, key) and conn.connect_ns - x.end_ns < RIVALS_NS]
    own = [x for x in fits if x.task.tid == conn.tid]
    fresh = [x for x in unused if x.task.tid == conn.tid]
    if fresh:
        if not one_name(fresh) or fresh[0].folded != own[0].folded:
            return None
        rivals = any(x.folded != fresh[0].folded and x.task.tid != conn.tid for x in unused)
        return None if rivals and process.crossing() else Join(fresh[0], "thread")
    if own:
        first = own[0]
        answered_since = any(
            x.folded != first.folded and x.end_ns > first.end_ns
            for x in fits
            if x.task.tid != conn.tid
        )
        again = one_name(own) and not answered_since
        return Join(first, "thread") if again and not process.crossing() else None
    if conn.tid != conn.pid or process.connected_ns.keys() - {conn.tid}:
        return None  # several threads connect, and nothing says which answer is whose
    if unused and one_name(unused):
        return Join(unused[0], "process")
    return _in_turn(process, conn, key, unused, following)


# An event loop was given several answers at once. It connects by each, in the order of the
# answers, before it does anything else; a program that looked names up beforehand does not.
def _in_turn(
    process: Process,
    conn: ConnEvent,
    key: bytes,
    unused: Sequence[Lookup],
    following: Sequence[ConnEvent],
) -> Join | None:
    first: dict[str, Lookup] = {}
    for x in sorted(unused, key=lambda x: x.end_ns):
        first.setdefault(x.folded, x)
    answers = list(first.values())
    if not answers or answers[0].end_ns <= process.doubted_ns:
        return None
    before_ns = answers[-1].end_ns
    burst = 0
    for other in following:
        if (other.pid, other.start_ns) != (conn.pid, conn.start_ns):
            continue
        if address_key(other.family, other.raddr) == key:
            if other.connect_ns - before_ns >= BURST_NS:
                break
            before_ns = other.connect_ns
            burst += 1
    if burst != len(answers):
        process.doubted_ns = answers[-1].end_ns
        return None
    return Join(answers[0], "process")
