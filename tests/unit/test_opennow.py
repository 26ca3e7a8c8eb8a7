"""Which of the connections that are open are listed, in what order, and how many there are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from monitor import decode as decoder
from monitor.api.parameters import Filters
from monitor.decode import CONN_BYTES, peek_conns
from monitor.opennow import OpenNow, OpenRow

COUNT = 6_000
BATCH = 257


def entry(place: int, at_ns: int, *, phase: int = 3) -> bytes:
    """A struct conn_event as far as listing reads it. pid and uid are of three kinds each."""
    fields = [0] * 4 + [place % 3 + 1, 0, place % 5 % 3, bytes(16), 1000 + place, place + 1]
    return decoder._PEEK.pack(*fields, at_ns, 0, phase)


@pytest.fixture(scope="module")
def begun() -> list[int]:
    """When each began, in the order of a hash map: none."""
    return random.Random(5).sample(range(1, 10 * COUNT), COUNT)


def open_now(entries: list[bytes], older: dict[int, object]) -> OpenNow:
    def batches() -> Iterator[memoryview]:
        for start in range(0, len(entries), BATCH):
            yield memoryview(b"".join(entries[start : start + BATCH]))

    return OpenNow(
        kernel=SimpleNamespace(connection_batches=batches),  # type: ignore[arg-type]
        core=None,  # type: ignore[arg-type]
        identities=None,  # type: ignore[arg-type]
        clock=None,  # type: ignore[arg-type]
        boot_offset_ns=0,
        older=SimpleNamespace(listed=older.values),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("most", [0, 1, 500, COUNT, COUNT + 500, None])
@pytest.mark.parametrize("filters", [Filters(), Filters(pid=2), Filters(uid_only=1, pid=3)])
def test_the_first_of_all_in_order_and_how_many_there_are(begun, filters, most, newest):
    entries = [entry(place, at) for place, at in enumerate(begun)]
    entries[7] = entry(7, begun[7], phase=0)  # being made at this moment
    assert {len(each) for each in entries} == {CONN_BYTES}
    older = {
        cookie: SimpleNamespace(cookie=cookie, pid=cookie % 3 + 1, uid=cookie % 2)
        for cookie in (4, 90_000, 90_001, 90_002)  # 4 has been connected once more
    }
    rows, total = open_now(entries, older).rows(filters, most, newest=newest)

    peeks = [fields for each in entries for fields in peek_conns(memoryview(each))]
    wanted = [
        OpenRow(fields[10], fields[8], fields[9])
        for fields in peeks
        if fields[12] and filters.match_process(fields[4], fields[6])
    ]
    before = [
        OpenRow(0, 0, conn.cookie, conn)
        for conn in older.values()
        if conn.cookie != 4 and filters.match_process(conn.pid, conn.uid)
    ]
    wanted.sort(reverse=newest)
    wanted = wanted + before if newest else before + wanted
    assert rows == wanted[:most]
    assert total == len(wanted)


def test_what_only_the_record_decides_is_left_to_the_caller(begun):
    entries = [entry(place, at) for place, at in enumerate(begun)]
    rows, total = open_now(entries, {}).rows(Filters(host="one.example"), 10)
    assert len(rows) == total == COUNT


def test_statistics_count_what_is_still_connecting(begun):
    connecting, being_made, established = 2, 0, 3
    entries = [
        entry(place, begun[place], phase=phase)
        for place, phase in enumerate((connecting, being_made, established))
    ]
    opened = open_now(entries, {})
    opened.kernel.live_bytes = lambda sockets: [(1, 2)] * len(sockets)
    opened.core = SimpleNamespace(open_host=lambda key: None)  # type: ignore[assignment]
    opened.clock = SimpleNamespace(offset_ns=0)  # type: ignore[assignment]
    who = SimpleNamespace(comm="c", exe=None, unit=None, container=None)
    opened.identities = SimpleNamespace(identify=lambda **_: who)  # type: ignore[assignment]
    groups = opened.groups()
    assert sum(len(group.began_ns) for group in groups) == 2
    assert sum(group.received for group in groups) == 4
