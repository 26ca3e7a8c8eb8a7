"""monitor.correlate: several connect() calls that are one connection, and lookups that fail."""

from __future__ import annotations

import pytest

from conmon.names import AI_NUMERICHOST
from monitor.correlate import core as core_module
from monitor.decode import ConnFlag, Phase
from tests.unit.events import (
    MS,
    REFUSED,
    TIMED_OUT,
    UNREACHABLE,
    World,
    at,
    client_hello,
    conn,
    ended,
    failed,
    hello,
    lookup,
    only,
    process_exit,
)

V4, V4_TOO, V6 = "192.0.2.1", "192.0.2.2", "2001:db8::1"
NAME = "one.example"
NONAME, AGAIN = -2, -3
AI_CANONNAME = 0x2
HOLD_MS = core_module.HOLD_NS // MS


@pytest.fixture
def world() -> World:
    made = World()
    made.feed(lookup(0, NAME, V6, V4, V4_TOO))
    return made


def told(record):
    return [(a.raddr, a.result, a.errno, a.offset_us, a.us) for a in record.attempts]


# ---- Happy Eyeballs and retries ------------------------------------------------------------------


def test_an_attempt_refused_before_another_address_won_is_told_with_it(world: World) -> None:
    assert world.feed(failed(10, V6, 12, REFUSED)) == []
    record = only(world.feed(conn(13, V4, took=7, end=100)))
    assert told(record) == [
        (V6, "refused", "ECONNREFUSED", 0, 2_000),
        (V4, "ok", None, 3_000, 7_000),
    ]
    assert (record.state, record.error, record.peer, record.host) == ("closed", None, V4, NAME)
    assert record.sockconn_us == 7_000
    assert world.deadline_ms() is None


def test_a_loser_given_up_while_the_winner_is_open_is_told_with_it(world: World) -> None:
    winner = conn(260, V4, took=5)
    world.feed(failed(10, V6, 266, retransmits=0))
    assert world.deadline_ms() == 266 + HOLD_MS
    assert world.snapshot(300, winner) == []
    assert world.deadline_ms() is None
    record = only(world.feed(ended(winner, 5000)))
    assert told(record) == [
        (V6, "abandoned", None, 0, 256_000),
        (V4, "ok", None, 250_000, 5_000),
    ]
    assert record.error is None


def test_a_loser_that_waited_long_is_no_timeout_when_another_won(world: World) -> None:
    world.feed(failed(10, V6, 2010, retransmits=1))
    record = only(world.feed(conn(1900, V4, took=109, end=3000)))
    assert [attempt.result for attempt in record.attempts] == ["abandoned", "ok"]


def test_a_second_address_after_a_timeout_is_the_same_connection(world: World) -> None:
    world.feed(failed(10, V6, 127_010, TIMED_OUT, retransmits=6))
    record = only(world.feed(conn(127_020, V4, end=127_100)))
    assert [a.errno for a in record.attempts] == ["ETIMEDOUT", None]
    assert record.attempts[1].offset_us == 127_010_000


def test_three_addresses_of_which_the_last_wins(world: World) -> None:
    world.feed(failed(10, V6, 11, REFUSED), failed(12, V4, 13, REFUSED))
    record = only(world.feed(conn(14, V4_TOO, end=20)))
    assert [a.raddr for a in record.attempts] == [V6, V4, V4_TOO]


def test_where_all_addresses_fail_there_is_one_record_of_the_last(world: World) -> None:
    world.feed(failed(10, V6, 11, UNREACHABLE), failed(12, V4, 14, REFUSED))
    assert world.snapshot(13 + HOLD_MS) == []
    record = only(world.snapshot(14 + HOLD_MS))
    assert (record.state, record.error, record.peer) == ("failed", "ECONNREFUSED", None)
    assert (record.raddr, record.host, record.tcp) == (V4, NAME, None)
    assert [a.result for a in record.attempts] == ["unreachable", "refused"]
    assert record.sockconn_us is None
    assert world.deadline_ms() is None


def test_no_failure_is_told_while_another_address_is_tried(world: World) -> None:
    trying = conn(15, V4, took=None)
    world.feed(failed(10, V6, 11, REFUSED))
    for now in range(500, 5000, 500):
        assert world.snapshot(now, trying) == []
    record = only(
        world.feed(ended(trying._replace(established_ns=trying.connect_ns + 5000 * MS), 6000))
    )
    assert [a.result for a in record.attempts] == ["refused", "ok"]


def test_the_end_of_the_process_ends_the_wait(world: World) -> None:
    world.feed(failed(10, V6, 11, REFUSED), lookup(12, "none.example", ret=NONAME))
    long = world.deadline_ms()
    world.feed(process_exit(20, pid=4712), process_exit(20, start_ns=100))
    assert world.deadline_ms() == long
    world.feed(process_exit(20))
    assert world.deadline_ms() == 40
    assert world.snapshot(39) == []
    assert {r.error for r in world.snapshot(40)} == {"ECONNREFUSED", "EAI_NONAME"}


def test_a_connection_long_after_is_another_one(world: World) -> None:
    world.feed(failed(10, V6, 11, REFUSED))
    later = only(world.feed(conn(11 + 301, V4, end=400)))
    assert len(later.attempts) == 1
    assert only(world.finish()).error == "ECONNREFUSED"


@pytest.mark.parametrize(
    "other",
    [
        conn(13, V6, end=20),
        conn(13, V4, rport=80, end=20),
        conn(13, V4, pid=4712, tid=4712, end=20),
    ],
    ids=["same address again", "another port", "another process"],
)
def test_what_belongs_elsewhere_takes_no_attempt(world: World, other) -> None:
    world.feed(lookup(5, NAME, V4, pid=4712))
    world.feed(failed(10, V6, 11, REFUSED))
    assert len(only(world.feed(other)).attempts) == 1
    assert only(world.finish()).state == "failed"


def test_what_waits_is_told_when_the_monitor_ends(world: World) -> None:
    world.feed(failed(10, V6, 11, REFUSED), lookup(12, "none.example", ret=NONAME))
    assert sorted(r.error for r in world.finish()) == ["EAI_NONAME", "ECONNREFUSED"]
    assert world.finish() == [] and world.deadline_ms() is None


# ---- how one attempt fails -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "result", "errno", "error", "us"),
    [
        ({"err": REFUSED}, "refused", "ECONNREFUSED", "ECONNREFUSED", 500_000),
        ({"err": TIMED_OUT}, "timeout", "ETIMEDOUT", "ETIMEDOUT", 500_000),
        ({"retransmits": 1}, "timeout", None, "ETIMEDOUT", 500_000),
        ({"end": 10 + 900}, "timeout", None, "ETIMEDOUT", 900_000),
        ({"end": 10 + 899}, "abandoned", None, "ECANCELED", 899_000),
        ({}, "abandoned", None, "ECANCELED", 500_000),
    ],
)  # fmt: skip
def test_how_a_connect_failed(fields, result, errno, error, us) -> None:
    record = only(World().feed(failed(10, V4, **{"end": 510, **fields})))
    assert told(record) == [(V4, result, errno, 0, us)]
    assert (record.state, record.error, record.peer) == ("failed", error, None)
    assert record.duration_us == us


@pytest.mark.parametrize(
    ("err", "result", "error"),
    [
        (UNREACHABLE, "unreachable", "ENETUNREACH"),
        (13, "denied", "EACCES"),
        (22, "failed", "EINVAL"),
        (0, "failed", None),
    ],
)
def test_a_connect_that_sent_nothing_took_no_time(err, result, error) -> None:
    event = failed(10, V4, 3010, err, lport=0, laddr=bytes(16), flags=int(ConnFlag.SYNC_FAIL))
    record = only(World().feed(event))
    assert told(record) == [(V4, result, error, 0, None)]
    assert (record.error, record.lport, record.laddr) == (error, None, None)


# ---- lookups that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ret", "error", "disposition"),
    [(NONAME, "EAI_NONAME", 3), (AGAIN, "EAI_AGAIN", 2), (-8, "EAI_SERVICE", 0)],
)
def test_a_lookup_that_failed_is_a_record_of_its_own(ret, error, disposition) -> None:
    world = World()
    world.feed(lookup(3, "none.example", end=8, ret=ret))
    assert world.deadline_ms() == 8 + HOLD_MS
    assert world.snapshot(7 + HOLD_MS) == []
    record = only(world.snapshot(8 + HOLD_MS))
    assert (record.state, record.error, record.dns_disp) == ("failed", error, disposition)
    assert (record.host, record.host_source, record.dns) == ("none.example", "lookup", ())
    assert (record.dns_us, record.attempts, record.peer) == (5_000, (), None)
    assert (record.raddr, record.rport, record.family, record.tcp) == (None, None, None, None)
    assert (record.pid, record.comm) == (4711, "client")
    assert record.start.endswith(".003000Z")


def test_the_same_name_asked_for_again_is_one_failed_lookup() -> None:
    world = World()
    world.feed(lookup(0, "none.example", end=5, ret=AGAIN))
    world.feed(lookup(6, "none.example", end=9, ret=NONAME))
    record = only(world.finish())
    assert (record.error, record.dns_us) == ("EAI_NONAME", 9_000)


def test_asking_in_another_way_is_the_same_lookup_and_in_the_same_way_another_try() -> None:
    world = World()
    for begin in (0, 20):
        world.feed(lookup(begin, "none.example", ret=NONAME, service=b"443"))
        world.feed(lookup(begin + 6, "none.example", ret=NONAME, service=b"https"))
    assert [record.dns_us for record in world.finish()] == [11_000, 11_000]


@pytest.mark.parametrize(
    "other", [{"tid": 5}, {"name": "other.example"}, {"pid": 4712, "start_ns": 5}]
)
def test_lookups_of_others_are_not_merged(other) -> None:
    world = World()
    world.feed(lookup(0, "none.example", ret=NONAME))
    world.feed(lookup(6, **{"name": "none.example", "ret": NONAME, **other}))
    assert len(world.finish()) == 2


def test_a_lookup_that_worked_in_the_end_did_not_fail() -> None:
    world = World()
    world.feed(lookup(0, NAME, ret=NONAME), lookup(6, NAME, V4))
    assert only(world.feed(conn(20, V4, end=30))).host == NAME
    assert world.finish() == []


def test_asking_whether_a_text_is_an_address_is_no_lookup() -> None:
    world = World()
    world.feed(lookup(0, NAME, ret=NONAME, hints=AI_NUMERICHOST))
    assert world.deadline_ms() is None and world.finish() == []


def test_asking_for_the_own_name_is_no_failed_connection() -> None:
    world = World()
    world.feed(lookup(0, "myhost", ret=NONAME, hints=AI_CANONNAME))
    assert world.finish() == []
    # as Java asks for every name
    world.feed(lookup(0, NAME, ret=NONAME, hints=AI_CANONNAME))
    assert only(world.finish()).host == NAME


# ---- losses, snapshots, the live view ------------------------------------------------------------


def test_a_record_says_when_events_before_its_end_were_lost() -> None:
    world = World()
    early, late = conn(10, V4), conn(60, V4)
    assert not only(world.feed(conn(1, V4, end=9))).lost_before
    world.lose(50)
    assert only(world.feed(ended(early, 80))).lost_before
    assert not only(world.feed(ended(late, 80))).lost_before
    world.lose(40)  # an older loss takes nothing back
    assert only(world.feed(conn(45, V4, end=80))).lost_before


def test_a_connection_that_left_without_its_event_is_counted_and_forgotten(world: World) -> None:
    opened = conn(10, V4, flags=int(ConnFlag.PACKETS | ConnFlag.TLS))
    world.feed(hello(opened, client_hello(NAME)))
    world.snapshot(20, opened)
    world.snapshot(30)
    assert world.core.vanished == 0  # its event may be on its way
    world.snapshot(40, opened)
    world.snapshot(50)
    assert world.core.vanished == 0
    world.snapshot(60)
    assert world.core.vanished == 1
    assert len(world.core._open) == len(world.core._hellos) == 0


def test_the_end_of_a_process_costs_its_own_attempts_alone(world: World) -> None:
    processes = range(1000, 1100)
    for pid in processes:
        world.feed(lookup(0, NAME, V4, pid=pid), failed(10, V4, 20, err=REFUSED, pid=pid))
    assert {group[0] for of in world.core._held._of_process.values() for group in of} == {
        *processes
    }
    world.feed(process_exit(21, pid=1007))
    first = only(world.snapshot(21 + core_module.EXIT_HOLD_NS / MS))
    assert first.pid == 1007
    assert len(world.snapshot(21 + HOLD_MS)) == 99
    assert not world.core._held._of_process and not len(world.core._held)


@pytest.mark.parametrize("end_while_reading", [True, False])
def test_the_live_view_shows_no_connection_as_open_that_was_told_to_have_ended(
    end_while_reading,
) -> None:
    world = World(live=True)
    opened = conn(0, "192.0.2.1", first_resp_ns=at(50))
    closed = ended(opened, 60)
    if not end_while_reading:  # its entry goes a moment after its event comes
        assert only(world.feed(closed)).state == "closed"
    world.core.begin_snapshot()
    if end_while_reading:
        assert only(world.feed(closed)).state == "closed"
    assert world.snapshot(70, opened) == []
    assert not world.core.knows((opened.sk, opened.connect_ns))
    again = conn(100, "192.0.2.1", first_resp_ns=at(150), sk=opened.sk)
    world.core.begin_snapshot()
    assert only(world.snapshot(170, again)).state == "open"


def test_the_live_view_shows_a_connection_once_and_again_at_its_end() -> None:
    world = World(live=True)
    world.feed(lookup(0, NAME, V4))
    opened = conn(10, V4, phase=Phase.ESTABLISHED)
    assert world.snapshot(20, opened) == []
    answered = opened._replace(
        first_tx_ns=opened.connect_ns + 12 * MS, first_resp_ns=opened.connect_ns + 20 * MS
    )
    record = only(world.snapshot(40, answered))
    assert (record.state, record.host, record.txn_resp_us) == ("open", NAME, 8_000)
    assert (record.tcp, record.duration_us) == (None, None)
    assert world.snapshot(50, answered) == []
    closed = only(world.feed(ended(answered, 60)))
    assert (closed.state, closed.id) == ("closed", record.id)


def session(world: World) -> list[object]:
    """Feeds one of each kind; the events are made anew for each world alike."""
    loser, winner = failed(10, V6, 12, REFUSED, cookie=1, sk=1), conn(13, V4, cookie=2, sk=2)
    rival = conn(40, V4, cookie=3, sk=3)
    world.feed(lookup(0, NAME, V6, V4), loser)
    world.snapshot(20, winner)
    world.feed(ended(winner, 30), lookup(31, "a.example", V4), lookup(32, "b.example", V4))
    world.feed(ended(rival, 50), lookup(51, "none.example", ret=NONAME), process_exit(52))
    world.snapshot(120)
    world.feed(failed(130, V6, 131, REFUSED, cookie=4, sk=4))
    world.finish()
    return world.handed_out


def test_the_same_events_give_the_same_records() -> None:
    first, second = session(World()), session(World())
    assert first == second
    assert [r.host for r in first] == [NAME, None, "none.example", NAME]


# ---- bounds --------------------------------------------------------------------------------------


def test_many_lookups_and_failures_take_bounded_room(monkeypatch) -> None:
    monkeypatch.setattr(core_module, "MAX_HELD", 100)
    monkeypatch.setattr(core_module, "MAX_OPEN", 300)
    core = World().core  # without the schema, which would take a minute
    told = 0
    for i in range(12_000):
        core.feed(lookup(i, f"{i}.example", V4, pid=i % 400))
        core.feed(lookup(i, f"none{i}.example", ret=NONAME, pid=i % 400))
        told += len(core.feed(failed(i + 6, V4, i + 7, REFUSED, pid=i % 400, tid=i % 400)))
        if i % 4_000 == 0:
            core.snapshot((conn(i, V4) for _ in range(1000)), now_ns=0)
            assert len(core._open) <= 300
    assert len(core._lookups) <= 8192
    assert len(core._held) <= 100
    assert len(core._deferred) <= 100
    assert len(core._failed_lookups) <= 100
    assert told > 10_000
