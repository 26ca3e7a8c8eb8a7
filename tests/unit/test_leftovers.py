"""Entries that nothing ended: found within ten seconds, ended once, and never too early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monitor import decode as decoder
from monitor.decode import ConnEvent, ConnFlag, Phase
from monitor.leftovers import CONFIRM_NS, LOOK_NS, Leftovers
from tests.unit.events import at, conn, ended

SECOND = 1_000_000_000


class Conns:
    """The map, and the sockets."""

    def __init__(self, *conns: ConnEvent) -> None:
        self.conns = {each.sk: each for each in conns}
        self.dead: set[int] = set()

    def connection_batches(self) -> Iterator[memoryview]:
        yield memoryview(b"".join(map(self._data, self.conns.values())))

    def connection(self, sk: int) -> bytes | None:
        return self._data(self.conns[sk]) if sk in self.conns else None

    def forget_connection(self, sk: int, connect_ns: int) -> bool:
        if sk not in self.conns or self.conns[sk].connect_ns != connect_ns:
            return False
        del self.conns[sk]
        return True

    def gone(self, connections: Sequence[tuple[int, int]]) -> list[bool]:
        return [cookie in self.dead for _, cookie in connections]

    def counters(self) -> dict[str, int]:
        return {"stale": 100}

    @staticmethod
    def _data(each: ConnEvent) -> bytes:
        return decoder._CONN.pack(*each[:-1]).ljust(decoder.CONN_BYTES, b"\0")


def run(leftovers: Leftovers, start_ns: int, seconds: int) -> list[tuple[int, ConnEvent]]:
    """Turns every 50 ms: what was ended, and after how long."""
    found = []
    for now_ns in range(start_ns, start_ns + seconds * SECOND, SECOND // 20):
        if leftovers.due(now_ns):
            found += [(now_ns - start_ns, each) for each in leftovers.turn(now_ns)]
    return found


def test_what_has_no_socket_any_more_is_ended_within_ten_seconds() -> None:
    gone, alive, calling = conn(1), conn(2), conn(3, took=None, phase=Phase.CALLING)
    conns = Conns(gone, alive, calling)
    leftovers = Leftovers(conns)
    assert run(leftovers, at(0), 3) == []
    conns.dead = {gone.cookie, calling.cookie}  # one that is calling is closed as yet
    ((took_ns, told),) = run(leftovers, at(3000), 20)
    assert took_ns <= 10 * SECOND
    assert told._replace(flags=0, end_ns=0, phase=0) == gone._replace(flags=0, phase=0)
    assert told.flags & ConnFlag.END_UNSEEN and told.phase == Phase.CLOSED and told.end_ns
    assert set(conns.conns) == {alive.sk, calling.sk}
    assert leftovers.total() == 101


def test_one_look_is_not_enough() -> None:
    ending, renewed = conn(1), conn(2)
    conns = Conns(ending, renewed)
    conns.dead = {ending.cookie, renewed.cookie}
    leftovers = Leftovers(conns)
    assert leftovers.turn(at(0)) == [] and not leftovers.due(at(0) + CONFIRM_NS - 1)
    del conns.conns[ending.sk]  # it was just being ended
    conns.conns[renewed.sk] = renewed._replace(connect_ns=at(5), cookie=renewed.cookie)
    assert leftovers.turn(at(0) + CONFIRM_NS) == []
    conns.dead.clear()
    assert leftovers.turn(at(0) + LOOK_NS) == []
    assert set(conns.conns) == {renewed.sk}


def test_what_was_handed_over_but_not_deleted_is_deleted_and_not_told_again() -> None:
    left = ended(conn(1), 9)
    conns = Conns(left)
    leftovers = Leftovers(conns)
    assert run(leftovers, at(10), 3) == []
    assert conns.conns == {} and leftovers.total() == 100
