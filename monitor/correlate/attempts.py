"""Which failed attempts and which connection were tries at the same thing. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from monitor.correlate.lookup import Join
from monitor.decode import ConnEvent

__all__ = ["Group", "Held", "HeldAttempts", "Trial", "belongs", "group_of", "trial_of"]

# An attempt belongs to a connection that began at most this long after it ended.
RETRY_NS: Final = 300_000_000

# process, process start, lookup, port: attempts that may belong together
Group = tuple[int, int, int, int]


@dataclass(slots=True)
class Held:
    """Failed attempts of one group, waiting for a winner."""

    join: Join
    conns: list[ConnEvent]
    deadline_ns: int


class Trial(NamedTuple):
    """What of an open connection tells whether a failed attempt belongs to it. The event itself is
    six times as large, and ten thousand are open at a time."""

    pid: int
    start_ns: int
    connect_ns: int
    established_ns: int
    family: int
    rport: int
    raddr: bytes


class HeldAttempts:
    """Failed attempts that wait, by group and by process, the longest held first.

    Args:
        most: groups that are held.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._groups: OrderedDict[Group, Held] = OrderedDict()
        self._of_process: dict[tuple[int, int], set[Group]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def deadlines_ns(self) -> Iterable[int]:
        """When each is over."""
        return (held.deadline_ns for held in self._groups.values())

    def hold(self, conn: ConnEvent, join: Join, until_ns: int) -> Held | None:
        """Hold a failed attempt back; one of another group may have to give way.

        Returns:
            That one.
        """
        group = group_of(conn, join)
        held = self._groups.get(group)
        if held is None:
            held = self._groups[group] = Held(join, [], 0)
            self._of_process.setdefault(group[:2], set()).add(group)
        held.conns.append(conn)
        held.deadline_ns = until_ns
        return self._pop(next(iter(self._groups))) if len(self._groups) > self._most else None

    def take(self, winner: ConnEvent | Trial, join: Join) -> list[ConnEvent]:
        """Let go of the failed attempts that led to a connection."""
        group = group_of(winner, join)
        held = self._groups.get(group)
        if held is None:
            return []
        taken = [conn for conn in held.conns if belongs(conn, winner)]
        held.conns = [conn for conn in held.conns if not belongs(conn, winner)]
        if not held.conns:
            self._pop(group)
        return taken

    def due(self, now_ns: int, trying: Collection[Group], hold_ns: int) -> list[Held]:
        """Let go of those whose time is up.

        Args:
            trying: groups of which another address is being tried: they are held on for hold_ns.
        """
        over = []
        for group in [g for g, held in self._groups.items() if held.deadline_ns <= now_ns]:
            if group in trying:
                self._groups[group].deadline_ns = now_ns + hold_ns
            else:
                over.append(self._pop(group))
        return over

    def process_ended(self, process: tuple[int, int], until_ns: int) -> None:
        """Nothing follows any more."""
        for group in self._of_process.get(process, ()):
            held = self._groups[group]
            held.deadline_ns = min(held.deadline_ns, until_ns)

    def clear(self) -> list[Held]:
        """Let go of all."""
        return [self._pop(group) for group in list(self._groups)]

    def _pop(self, group: Group) -> Held:
        own = self._of_process[group[:2]]
        own.discard(group)
        if not own:
            del self._of_process[group[:2]]
        return self._groups.pop(group)


def trial_of(conn: ConnEvent) -> Trial:
    return Trial(
        conn.pid, conn.start_ns, conn.connect_ns, conn.established_ns, conn.family, conn.rport,
        conn.raddr,
    )  # fmt: skip


def group_of(conn: ConnEvent | Trial, join: Join) -> Group:
    return (conn.pid, conn.start_ns, id(join.lookup), conn.rport)


def belongs(attempt: ConnEvent, winner: ConnEvent | Trial) -> bool:
    """Whether a failed attempt and a connection were tries at the same thing: another address,
    one begun while the other was under way or right after."""
    if attempt.raddr == winner.raddr and attempt.family == winner.family:
        return False
    return (
        attempt.connect_ns <= winner.established_ns
        and winner.connect_ns <= attempt.end_ns + RETRY_NS
    )
