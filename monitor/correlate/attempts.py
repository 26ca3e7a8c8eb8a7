"""Which failed attempts and which connection were tries at the same thing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from monitor.correlate.lookups import Join
from monitor.decode import ConnEvent

__all__ = ["Group", "Held", "Trial", "belongs", "group_of", "trial_of"]

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
