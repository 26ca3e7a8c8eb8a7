"""monitor.correlate: which name a connection went to."""

from __future__ import annotations

import dns.message
import dns.rrset
import hpack
import pytest

from monitor.correlate.choice import PER_PROCESS
from monitor.correlate.hellos import HelloTable
from monitor.correlate.lookups import LookupTable
from monitor.decode import ConnFlag, DnsEvent, DnsFlag, ExecEvent, ForkEvent, Task
from tests.unit.events import (
    PID,
    START_NS,
    World,
    at,
    client_hello,
    conn,
    ended,
    hello,
    lookup,
    only,
    process_exit,
)

A, B, V6 = "192.0.2.1", "192.0.2.2", "2001:db8::1"


@pytest.fixture
def world() -> World:
    return World()


def tls(connection):
    return connection._replace(flags=connection.flags | int(ConnFlag.TLS))


def test_a_lookup_of_the_same_thread_names_the_connection(world: World) -> None:
    assert world.feed(lookup(3, "one.example", A, V6, end=10)) == []
    record = only(world.feed(conn(17, A, took=12, end=900)))
    assert (record.host, record.host_source, record.dns_match) == (
        "one.example",
        "lookup",
        "thread",
    )
    assert (record.dns, record.dns_disp, record.dns_source) == ((A, V6), 1, "getaddrinfo")
    assert (record.dns_us, record.dns_age_us, record.sockconn_us) == (7_000, 7_000, 12_000)
    assert record.start.endswith(".003000Z")  # the lookup's begin
    assert (record.peer, record.raddr, record.family) == (A, A, "ipv4")


def test_a_lookup_of_another_thread_serves_where_the_own_has_none(world: World) -> None:
    world.feed(lookup(0, "one.example", A, tid=5000))
    assert only(world.feed(conn(10, A, end=20))).dns_match == "process"


@pytest.mark.parametrize(
    "other",
    [
        lookup(0, "one.example", A, pid=4712),
        lookup(0, "one.example", A, start_ns=100),  # the pid's owner before
        lookup(0, "one.example", B),
        lookup(8, "one.example", A, end=11),  # returned after connect()
    ],
    ids=["another process", "a pid used again", "another address", "too late"],
)
def test_what_cannot_have_led_here_names_nothing(world: World, other) -> None:
    world.feed(other)
    record = only(world.feed(conn(10, A, end=20)))
    assert (record.host, record.host_source, record.dns, record.dns_us) == (None, None, None, None)
    assert (record.dns_disp, record.dns_source, record.dns_match) == (0, None, None)


def test_without_the_probes_nobody_knows_whether_there_was_a_lookup() -> None:
    record = only(World(lookups_seen=False).feed(conn(10, A, end=20)))
    assert record.dns_disp is None


# -- both families by a call each --------------------------------------------------------------

V4_ONLY, V6_ONLY = 2, 10
NODATA = -5


def test_calls_for_both_families_are_one_lookup(world: World) -> None:
    world.feed(lookup(1, "one.example", A, end=20, tid=5002, hint_family=V4_ONLY))
    world.feed(lookup(0, "one.example", V6, end=30, tid=5001, hint_family=V6_ONLY))
    record = only(world.feed(conn(40, A, end=90)))
    assert (record.host, record.dns, record.dns_us) == ("one.example", (A, V6), 30_000)
    assert record.dns_age_us == 10_000
    # one that did not wait for the other family
    early = only(world.feed(conn(25, A, end=90)))
    assert (early.dns_us, early.dns_age_us) == (20_000, 5_000)


def test_attempts_at_addresses_of_both_calls_are_one_record(world: World) -> None:
    world.feed(lookup(0, "one.example", V6, tid=5001, hint_family=V6_ONLY))
    world.feed(lookup(0, "one.example", A, tid=5002, hint_family=V4_ONLY))
    assert world.feed(conn(10, V6, took=None, end=11, err=111)) == []
    record = only(world.feed(conn(12, A, end=90)))
    assert [attempt.result for attempt in record.attempts] == ["refused", "ok"]


@pytest.mark.parametrize("first", ["found", "missing"])
def test_a_family_that_a_name_has_not_is_no_failure(world: World, first: str) -> None:
    found = lookup(0, "one.example", A, end=20, tid=5001, hint_family=V4_ONLY)
    missing = lookup(1, "one.example", end=21, ret=NODATA, tid=5002, hint_family=V6_ONLY)
    world.feed(*((found, missing) if first == "found" else (missing, found)))
    assert world.snapshot(5_000) == []


def test_a_name_that_neither_family_has_fails_once(world: World) -> None:
    asked = ((5001, V4_ONLY, 21), (5002, V6_ONLY, 22))
    for tid, family, end in asked:
        world.feed(lookup(0, "none.example", end=end, ret=NODATA, tid=tid, hint_family=family))
    record = only(world.snapshot(5_000))
    assert (record.host, record.error, record.dns_us) == ("none.example", "EAI_NODATA", 22_000)


def test_a_family_asked_for_later_is_a_lookup_of_its_own(world: World) -> None:
    world.feed(lookup(0, "one.example", A, hint_family=V4_ONLY))
    world.feed(lookup(1_000, "one.example", end=1_020, ret=NODATA, hint_family=V6_ONLY, tid=9))
    assert only(world.snapshot(5_000)).error == "EAI_NODATA"


# -- several names with one address ------------------------------------------------------------


# What became of connections that were in doubt: one event after another, then a snapshot.
def settled(world: World, *events) -> list[str | None]:
    records = world.feed(*events)
    records += world.snapshot(100_000)
    return [record.host for record in sorted(records, key=lambda record: record.lport)]


def made(begin: float, end: float, number: int, **fields):
    return conn(begin, A, end=end, lport=number, cookie=number, **fields)


def test_each_thread_gets_the_name_it_asked_for_itself(world: World) -> None:
    world.feed(lookup(0, "one.example", A, tid=5001), lookup(1, "two.example", A, tid=5002))
    first, second = made(10, 40, 1, tid=5001), made(11, 30, 2, tid=5002)
    assert settled(world, second, first) == ["one.example", "two.example"]


def test_names_asked_for_in_turn_are_each_their_connections(world: World) -> None:
    world.feed(lookup(0, "one.example", A), made(6, 20, 1), lookup(21, "two.example", A))
    assert settled(world, made(30, 40, 2)) == ["two.example"]


def test_a_name_that_was_refused_is_not_the_next_ones(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    refused = conn(6, A, took=None, end=7, err=111, lport=1)
    assert world.feed(refused) == []
    world.feed(lookup(10, "two.example", A))
    again = conn(16, A, took=None, end=17, err=111, lport=2)
    assert settled(world, again) == ["one.example", "two.example"]


def test_of_names_asked_for_before_any_was_used_none_is_taken(world: World) -> None:
    world.feed(lookup(0, "one.example", A), lookup(20, "two.example", A))
    assert settled(world, made(40, 60, 2), made(30, 70, 1)) == [None, None]


def test_a_name_nobody_connected_to_leaves_a_doubt(world: World) -> None:
    world.feed(lookup(0, "checked.example", A), lookup(20, "two.example", A))
    assert settled(world, made(30, 60, 1)) == [None]


def test_connections_seen_open_together_have_their_names_before_they_close(world: World) -> None:
    first, second = conn(6, A), conn(30, A)
    world.feed(lookup(0, "one.example", A), lookup(20, "two.example", A))
    world.snapshot(50, second, first)
    assert only(world.feed(ended(second, 60))).host == "two.example"
    assert only(world.feed(ended(first, 70))).host == "one.example"


def test_the_server_name_of_one_seen_open_in_doubt_decides_at_its_end(world: World) -> None:
    opened = tls(conn(30, A))
    world.feed(lookup(0, "one.example", A), lookup(20, "two.example", A))
    world.snapshot(50, opened)
    world.feed(hello(opened, client_hello("one.example")))
    record = only(world.feed(ended(opened, 60)))
    assert (record.host, record.host_source) == ("one.example", "lookup")


def test_a_name_asked_for_long_before_is_no_rival(world: World) -> None:
    world.feed(lookup(0, "old.example", A), lookup(3000, "new.example", A))
    assert settled(world, made(3010, 3020, 1)) == ["new.example"]


def test_an_answer_that_was_used_already_serves_no_other_of_two(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    assert only(world.feed(made(6, 9, 1))).host == "one.example"
    assert only(world.feed(made(7, 9, 2))).host == "one.example"
    world.feed(lookup(10, "two.example", A))
    assert settled(world, made(16, 20, 3)) == ["two.example"]
    assert settled(world, made(30, 40, 4)) == [None]  # by which answer it had


def test_an_event_loop_connects_by_answers_in_their_order(world: World) -> None:
    def asked():
        return [lookup(0, f"{n}.example", A, tid=9000 + n, end=20 + n / 10) for n in (1, 2, 3)]

    world.feed(*asked())
    opened = [made(21 + n / 10, 90 - n, n) for n in (1, 2, 3)]
    assert settled(world, *reversed(opened)) == ["1.example", "2.example", "3.example"]


@pytest.mark.parametrize("begun", [(21, 22), (21, 22, 29), (29, 30, 31), (21, 22, 23, 24)])
def test_an_event_loops_other_connections_are_in_doubt(world: World, begun) -> None:
    world.feed(*(lookup(0, f"{n}.example", A, tid=9000 + n, end=20 + n / 10) for n in (1, 2, 3)))
    opened = [made(at, 90, n) for n, at in enumerate(begun, 1)]
    assert set(settled(world, *opened)) == {None}


def test_threads_that_connect_by_each_others_answers_give_no_names(world: World) -> None:
    # two in a row of a thread that connects, too: one was for another thread
    world.feed(lookup(0, "one.example", A, tid=1), lookup(10, "two.example", A, tid=1))
    world.feed(lookup(11, "three.example", A, tid=2))
    assert settled(world, made(20, 40, 1, tid=2), made(21, 40, 2, tid=1)) == [None, None]


def test_a_thread_that_never_asked_shows_that_answers_are_handed_on(world: World) -> None:
    world.feed(lookup(0, "one.example", A, tid=1), lookup(1, "two.example", A, tid=2))
    opened = [made(20, 40, 1, tid=3), made(21, 40, 2, tid=1), made(22, 40, 3, tid=2)]
    assert settled(world, *opened) == [None, None, None]


def test_a_pool_that_only_looks_names_up_does_not_unsettle_the_others(world: World) -> None:
    world.feed(lookup(0, "one.example", A, tid=9), lookup(6, "two.example", A, tid=9))
    world.feed(lookup(11, "three.example", A, tid=2))
    assert settled(world, made(20, 40, 1, tid=1), made(21, 40, 2, tid=2)) == [None, "three.example"]


def test_a_name_that_may_be_another_threads_is_none(world: World) -> None:
    # thread 1 asks, connects, and then connects again: by its own answer or by thread 2's?
    world.feed(lookup(0, "one.example", A, tid=1, end=5))
    assert only(world.feed(made(10, 15, 1, tid=1))).host == "one.example"
    assert only(world.feed(made(20, 25, 2, tid=1))).host == "one.example"
    world.feed(lookup(26, "two.example", A, tid=2, end=28))
    # and threads that never asked, beside others that connect
    in_doubt = made(30, 35, 3, tid=1), made(40, 45, 4, tid=3), made(50, 55, 5, tid=4)
    assert settled(world, *in_doubt) == [None, None, None]


def test_a_name_that_is_not_kept_any_more_may_have_been_the_one(world: World) -> None:
    world.feed(lookup(0, "one.example", A, end=10))
    world.feed(*(lookup(11, f"{i}.example", B, end=12) for i in range(PER_PROCESS - 1)))
    world.feed(lookup(13, "two.example", A, end=14))
    assert only(world.feed(made(20, 30, 1))).host is None
    assert only(world.feed(made(2020, 2030, 1))).host == "two.example"


def test_the_same_name_asked_for_very_often_stays_certain(world: World) -> None:
    world.feed(*(lookup(i, "one.example", A, end=i + 1) for i in range(3 * PER_PROCESS)))
    assert only(world.feed(made(3 * PER_PROCESS + 2, 3000, 1))).host == "one.example"
    world.feed(lookup(3001, "two.example", A, end=3002))
    world.feed(*(lookup(3003 + i / 9, "one.example", A, end=3004) for i in range(PER_PROCESS)))
    assert only(world.feed(made(3040, 3050, 2))).host is None  # "two" was let go just now


def test_one_name_in_two_spellings_is_one_name(world: World) -> None:
    world.feed(lookup(0, "One.example", A), lookup(6, "one.example.", A))
    assert only(world.feed(made(20, 30, 1))).host == "one.example."


def test_a_server_name_outweighs_an_old_answer_that_says_another(world: World) -> None:
    world.feed(lookup(0, "one.example", A, end=5))
    first, later = tls(conn(10, A)), tls(conn(60_000, A))
    for opened in (first, later):
        world.feed(hello(opened, client_hello("two.example")))
    # one may ask a server for another name than its own, as a front
    assert only(world.feed(ended(first, 20))).host == "one.example"
    record = only(world.feed(ended(later, 60_020)))
    assert (record.host, record.host_source, record.dns) == ("two.example", "sni", None)


def test_a_server_name_behind_a_proxy_is_not_the_proxys(world: World) -> None:
    world.feed(lookup(0, "proxy.example", A, end=5))
    opened = conn(60_000, A)
    opened = opened._replace(flags=opened.flags | int(ConnFlag.TLS | ConnFlag.TLS_LATE))
    world.feed(hello(opened, client_hello("site.example")))
    assert only(world.feed(ended(opened, 60_020))).host == "proxy.example"


def test_the_server_name_decides_at_once(world: World) -> None:
    world.feed(lookup(0, "one.example", A), lookup(20, "two.example", A))
    first, second = tls(conn(30, A)), tls(conn(40, A))
    world.feed(
        hello(first, client_hello("TWO.example")), hello(second, client_hello("one.example"))
    )
    assert only(world.feed(ended(first, 60))).host == "two.example"
    assert only(world.feed(ended(second, 61))).host == "one.example"


def test_the_server_name_stands_in_where_no_lookup_was_seen(world: World) -> None:
    connection = tls(conn(30, A))
    world.feed(hello(connection, client_hello("one.example")))
    record = only(world.feed(ended(connection, 60)))
    assert (record.host, record.host_source, record.dns_disp) == ("one.example", "sni", 0)


def test_the_port_asked_for_decides_between_names(world: World) -> None:
    world.feed(lookup(0, "web.example", A, port=443), lookup(1, "mail.example", A, port=25))
    assert only(world.feed(conn(10, A, rport=443, end=20))).host == "web.example"
    assert only(world.feed(conn(10, A, rport=25, end=20))).host == "mail.example"


def test_the_same_name_asked_twice_leaves_no_doubt(world: World) -> None:
    world.feed(lookup(0, "one.example", A), lookup(20, "one.example", A))
    assert only(world.feed(conn(30, A, end=40))).host == "one.example"


@pytest.mark.parametrize(
    ("text", "address"),
    [(A, A), ("0x7f.1", "127.0.0.1"), ("3221225985", A), (V6, V6), ("fe80::1%2", "fe80::1")],
)
def test_a_literal_is_no_name(world: World, text: str, address: str) -> None:
    world.feed(lookup(0, text, address))
    record = only(world.feed(conn(10, address, end=20)))
    assert (record.host, record.dns, record.dns_us) == (None, None, None)
    assert (record.dns_source, record.dns_disp) == ("literal", 0)


def test_a_literal_of_another_address_says_nothing(world: World) -> None:
    world.feed(lookup(0, B, B))
    assert only(world.feed(conn(10, A, end=20))).dns_source is None


def test_ipv4_through_an_ipv6_socket_is_ipv4(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    mapped = conn(10, f"::ffff:{A}", laddr=bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 99]))
    record = only(world.feed(ended(mapped, 20)))
    assert (record.host, record.raddr, record.peer, record.laddr) == (
        "one.example",
        A,
        A,
        "192.0.2.99",
    )
    assert record.family == "ipv4"


def test_a_mapped_answer_fits_an_ipv4_connection(world: World) -> None:
    world.feed(lookup(0, "one.example", f"::ffff:{A}"))
    record = only(world.feed(conn(10, A, end=20)))
    assert (record.host, record.dns) == ("one.example", (A,))


def test_a_remembered_answer_is_no_part_of_the_wait(world: World) -> None:
    world.feed(lookup(0, "one.example", A, end=5))
    record = only(world.feed(conn(7005, A, end=7020)))
    assert (record.host, record.dns_age_us) == ("one.example", 7_000_000)
    assert record.start.endswith("27.005000Z")


def test_addresses_repeated_per_socket_type_are_told_once_in_order(world: World) -> None:
    world.feed(lookup(0, "one.example", V6, A, V6, B, A, "fe80::1%3"))
    assert only(world.feed(conn(10, A, end=20))).dns == (V6, A, B, "fe80::1%3")


def test_a_name_that_is_no_text_stays_readable(world: World) -> None:
    world.feed(lookup(0, b"caf\xe9\x1b.example", A))
    assert only(world.feed(conn(10, A, end=20))).host == "caf\\xe9\x1b.example"


def test_an_open_connection_keeps_its_name_whatever_is_asked_after(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    opened = conn(10, A)
    assert world.core.wants_snapshot()
    world.snapshot(20, opened)
    assert not world.core.wants_snapshot()
    world.feed(*(lookup(21, f"{i}.example", B) for i in range(PER_PROCESS)))
    assert only(world.feed(ended(opened, 30_000))).host == "one.example"
    forgotten = only(world.feed(conn(10, A, end=30_000)))
    assert forgotten.host is None


# ---- bounds --------------------------------------------------------------------------------------


def test_the_table_of_lookups_is_bounded_and_counts_right() -> None:
    table = LookupTable(total=100)
    events = [lookup(i, f"{i}.example", A, pid=1 + i % 37) for i in range(370)]
    for i in range(100_000):
        table.add(events[i % 370])
        assert len(table) <= 100
        if i % 97 == 0:
            table.forget(1 + i % 37, 99)
    assert len(table) == sum(len(list(table.of(pid, 99))) for pid in range(1, 38))
    assert len(table) > 0


def test_one_process_keeps_its_newest_names() -> None:
    table = LookupTable()
    for i in range(3 * PER_PROCESS):
        table.add(lookup(i, f"{i}.example", A))
    names = [kept.name for kept in table.of(4711, 99)]
    assert len(table) == len(names) == PER_PROCESS
    assert names[0] == f"{3 * PER_PROCESS - 1}.example"
    table.forget((4711, 99), at(10_000))
    assert len(table) == 0 and (4711, 99) not in table


def test_hellos_are_bounded_and_put_together_from_their_parts() -> None:
    table = HelloTable(most=3)
    connection = conn(0, A)
    data = client_hello("one.example")
    for byte in data:
        table.add(hello(connection, bytes([byte])))
    assert table.get(connection.sk, connection.connect_ns).client.sni == "one.example"
    for _ in range(9):
        table.add(hello(conn(0, A), data))
        assert len(table) <= 3
    assert table.get(connection.sk, connection.connect_ns) is None


def test_a_snapshot_wants_only_open_connections_that_it_has_a_use_for():
    world = World()
    opened = conn(20, end=None)
    key, process = (opened.sk, opened.connect_ns), (PID, START_NS)

    def wants(established: bool = True, live: World = world) -> bool:
        return live.core.wants(key, process, 1, established=established)

    assert not wants()  # its process has looked up nothing
    assert wants(live=World(live=True))
    world.feed(lookup(0, "one.example", "192.0.2.1", end=10))
    assert wants()
    world.snapshot(30, opened)
    assert not wants()  # its lookup is remembered
    assert world.core.snapshot([], others=[key], now_ns=at(1000)) == []
    assert world.core.snapshot([], others=[key], now_ns=at(2000)) == []
    record = only(world.feed(ended(opened, 3000)))
    assert record.host == "one.example"
    assert world.core.vanished == 0


def test_a_server_that_looked_up_its_clients_address_was_not_asked_by_that_name() -> None:
    world = World()
    world.feed(lookup(0, "client.example", A, end=10))
    accepted = conn(20, A)._replace(flags=ConnFlag.INBOUND | ConnFlag.PACKETS)
    record = only(world.feed(ended(accepted, 100, flags=accepted.flags)))
    assert (record.role, record.host, record.dns_disp) == ("server", None, None)
    still_open = accepted._replace(connect_ns=at(200), sk=77)
    world.feed(lookup(150, "client.example", A, end=160))
    assert world.snapshot(300, still_open) == []
    assert only(world.feed(ended(still_open, 400, flags=accepted.flags))).host is None


# -- by another process -----------------------------------------------------------------------


def executed(pid: int, parent: int) -> ExecEvent:
    task = Task(START_NS, 0, 0, 0, pid, pid, parent, 0, 0, b"")
    return ExecEvent(task, at(0), b"/bin/x")


def test_a_child_looks_up_for_its_parent() -> None:
    world = World()
    world.feed(lookup(0, "one.example", A, end=10, pid=700)._replace(task=child_of(PID, 700)))
    record = only(world.feed(ended(conn(20, A), 100)))
    assert (record.host, record.dns_match, record.dns_us) == ("one.example", "host", 10_000)


def test_a_grandchild_does_and_a_stranger_does_not() -> None:
    world = World()
    world.feed(executed(600, PID), executed(650, 600))
    world.feed(lookup(0, "one.example", A, end=10, pid=700)._replace(task=child_of(650, 700)))
    assert only(world.feed(ended(conn(20, A, pid=99), 100))).host is None
    assert only(world.feed(ended(conn(20, A), 100))).host == "one.example"


def test_a_child_goes_on_with_what_its_parent_looked_up() -> None:
    world = World()
    world.feed(lookup(0, "one.example", A, end=10, pid=1234))
    child = conn(20, A)._replace(ppid=1234)
    assert only(world.feed(ended(child, 100))).dns_match == "host"


def test_siblings_names_late_ones_and_several_names_name_nothing() -> None:
    world = World()
    world.feed(lookup(0, "one.example", A, end=10, pid=700)._replace(task=child_of(1234, 700)))
    assert only(world.feed(ended(conn(20, A)._replace(ppid=1234), 100))).host is None
    world.feed(lookup(200, "one.example", A, end=210, pid=701)._replace(task=child_of(PID, 701)))
    assert only(world.feed(ended(conn(2300, A), 2400))).host is None
    world.feed(lookup(3000, "one.example", A, end=3010, pid=702)._replace(task=child_of(PID, 702)))
    world.feed(lookup(3000, "two.example", A, end=3010, pid=703)._replace(task=child_of(PID, 703)))
    assert only(world.feed(ended(conn(3020, A), 3100))).host is None


def test_what_a_child_looked_up_and_used_itself_was_not_for_its_parent() -> None:
    world = World()
    world.feed(lookup(0, "one.example", A, end=10, pid=700)._replace(task=child_of(PID, 700)))
    own = conn(20, A)._replace(pid=700, tid=700, ppid=PID)
    assert only(world.feed(ended(own, 30))).host == "one.example"
    assert only(world.feed(ended(conn(40, A), 100))).host is None


def child_of(parent: int, pid: int) -> Task:
    return Task(START_NS, 9, 7, 8, pid, pid, parent, 1000, 4026531840, b"helper")


def test_what_processes_looked_up_that_ended_is_forgotten(world: World) -> None:
    for number in range(300):
        ms, pid = 100.0 * number, 1000 + number
        world.feed(lookup(ms, f"n{number}.example", A, pid=pid, start_ns=number))
        world.feed(process_exit(ms + 50, pid, number))
    assert 90 < len(world.core._lookups) < 110
    assert len(world.core._ended) == len(world.core._lookups)


def test_a_connection_that_outlives_its_process_keeps_its_name(world: World) -> None:
    left = conn(10, A)
    world.feed(lookup(0, "one.example", A))
    world.snapshot(1000)
    world.feed(process_exit(2000))
    assert world.core.wants_snapshot()
    world.snapshot(3000, left)
    world.feed(process_exit(60_000, PID + 1))
    assert (PID, START_NS) not in world.core._lookups
    assert only(world.feed(ended(left, 60_100))).host == "one.example"


def test_other_threads_may_go_on_when_the_first_has_ended(world: World) -> None:
    world.feed(lookup(0, "other.example", B), process_exit(100))
    world.feed(lookup(5000, "one.example", A, tid=PID + 1))
    world.feed(process_exit(60_000, PID + 1))
    assert only(world.feed(conn(60_001, A, tid=PID + 1, end=60_100))).host == "one.example"


# -- addresses given as such ------------------------------------------------------------------


def test_a_literal_given_after_the_name_was_used_has_no_name(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    assert only(world.feed(conn(10, A, end=20))).host == "one.example"
    world.feed(lookup(25, A, A, end=26))
    record = only(world.feed(conn(30, A, end=40)))
    assert (record.host, record.dns, record.dns_us, record.dns_match) == (None, None, None, None)
    assert (record.dns_source, record.dns_disp) == ("literal", 0)
    # asked for by name again, it has that name again
    world.feed(lookup(50, "one.example", A))
    assert only(world.feed(conn(60, A, end=70))).host == "one.example"


def test_a_literal_is_told_from_a_name_whose_connection_is_still_open(world: World) -> None:
    world.feed(lookup(0, "one.example", V6))
    first = conn(10, V6)
    world.feed(lookup(25, V6, V6, end=26))
    assert world.feed(conn(30, V6, end=40)) == []
    record = only(world.snapshot(60, first))
    assert (record.host, record.dns_source) == (None, "literal")
    assert only(world.feed(ended(first, 900))).host == "one.example"


def test_an_address_that_was_looked_up_and_kept_as_text_has_its_name_each_time(
    world: World,
) -> None:
    world.feed(lookup(0, "one.example", A))
    for ms in (3_000, 6_000):
        world.feed(lookup(ms, A, A, end=ms + 1))
        assert world.feed(conn(ms + 2, A, end=ms + 20)) == []
        record = only(world.snapshot(ms + 100))
        assert (record.host, record.dns_age_us) == ("one.example", ms * 1_000 - 3_000)


def test_an_address_kept_as_text_keeps_its_name_whatever_port_it_was_asked_for(
    world: World,
) -> None:
    world.feed(lookup(0, "one.example", A, B, port=1), lookup(6, A, A, end=7, port=443))
    assert world.feed(conn(12, A, end=40)) == []
    record = only(world.snapshot(100))
    assert (record.host, record.dns) == ("one.example", (A, B))


def test_a_literal_of_a_thread_of_its_own_is_no_name(world: World) -> None:
    world.feed(lookup(0, "one.example", A, tid=50))
    assert only(world.feed(conn(10, A, end=20, tid=50))).host == "one.example"
    world.feed(lookup(25, A, A, end=26, tid=51))
    assert only(world.feed(conn(30, A, end=40, tid=51))).host is None
    # who gave no literal goes on with the name
    assert only(world.feed(conn(30, A, end=40, tid=50))).host == "one.example"


def test_a_name_and_a_literal_of_other_threads_leave_a_doubt(world: World) -> None:
    world.feed(lookup(0, A, A, end=4, tid=50), lookup(0, "one.example", A, end=5, tid=51))
    assert world.feed(conn(10, A, end=20)) == []
    record = only(world.snapshot(100))
    assert (record.host, record.dns_source) == (None, "literal")


# -- answers that newer ones replaced ---------------------------------------------------------


def test_an_answer_that_a_newer_one_replaced_names_nothing(world: World) -> None:
    world.feed(lookup(0, "one.example", A), lookup(10, "one.example", B))
    record = only(world.feed(conn(20, A, end=30)))
    assert (record.host, record.dns_disp) == (None, None)
    assert only(world.feed(conn(20, B, end=30))).host == "one.example"
    # one that has it still is the one
    world.feed(lookup(40, "one.example", A, B))
    assert only(world.feed(conn(50, A, end=60))).host == "one.example"


@pytest.mark.parametrize(
    "newer",
    [
        lookup(10, "two.example", B),
        lookup(10, "one.example", ret=-3),
        lookup(200, "one.example", V6, hint_family=V6_ONLY, tid=9),  # another family's
        lookup(10, "one.example", B, end=31),  # it came later
        lookup(10, "one.example", B, flags=1),  # there was more than was read
    ],
    ids=["another name", "failed", "another family", "later", "cut"],
)
def test_what_says_nothing_of_an_address_does_not_replace_it(world: World, newer) -> None:
    world.feed(lookup(0, "one.example", A), newer)
    begin = 30 if newer.end_ns < at(31) or newer.end_ns == at(31) else 300
    assert only(world.feed(conn(begin, A, end=begin + 10))).host == "one.example"


def test_what_two_threads_are_answered_at_about_the_same_time_is_each_ones_own(
    world: World,
) -> None:
    world.feed(lookup(0, "one.example", A, tid=50), lookup(1, "one.example", B, tid=51))
    assert only(world.feed(conn(20, A, end=30, tid=50))).host == "one.example"
    # used by now, and again once the newer answer is the one that counts
    assert only(world.feed(conn(40, A, end=50, tid=50))).host is None


# -- forks ------------------------------------------------------------------------------------

CHILD, CHILD_START = 900, 500


def fork(ms: float, child: int = CHILD, start_ns: int = CHILD_START, **parent: int) -> ForkEvent:
    of, of_start = parent.get("of", PID), parent.get("of_start", START_NS)
    return ForkEvent(at(ms), start_ns, of_start, child, of)


def childs(begin: float, raddr: str = A, pid: int = CHILD, start_ns: int = CHILD_START, **more):
    fields = {"pid": pid, "tid": pid, "start_ns": start_ns, "ppid": 1, "sk": int(begin), **more}
    return conn(begin, raddr, end=begin + 10, **fields)


def test_a_child_connects_for_days_by_what_its_parent_looked_up(world: World) -> None:
    world.feed(lookup(0, "one.example", A), fork(100))
    day = 86_400_000
    record = only(world.feed(childs(day)))
    assert (record.host, record.dns_match, record.dns_us) == ("one.example", "host", 5_000)
    assert record.dns_age_us == (day - 5) * 1_000
    assert only(world.feed(childs(2 * day))).host == "one.example"


def test_a_grandchild_does_whose_ancestors_have_gone(world: World) -> None:
    world.feed(lookup(0, "one.example", A), fork(100), process_exit(200))
    world.feed(fork(300, 901, 501, of=CHILD, of_start=CHILD_START))
    world.feed(process_exit(400, CHILD, CHILD_START))
    for ms in range(10_000, 60_000, 5_000):
        world.feed(process_exit(ms, 4))
    assert only(world.feed(childs(70_000, pid=901, start_ns=501))).host == "one.example"
    # with the last of them what was looked up goes, too
    world.feed(process_exit(80_000, 901, 501))
    for ms in range(90_000, 130_000, 5_000):
        world.feed(process_exit(ms, 4))
    assert len(world.core._lookups) == 0
    assert not world.core._lookups._forked and not world.core._lookups._forked_from


@pytest.mark.parametrize(
    ("events", "made"),
    [
        ([fork(100)], {"uid": 33}),
        ([fork(3)], {}),  # before the answer
        ([fork(100, of_start=98)], {}),  # its pid was another's
        ([fork(100)], {"start_ns": 501}),
        ([fork(100)], {"raddr": B}),
    ],
    ids=["another user", "before", "parent's pid used again", "pid used again", "elsewhere"],
)
def test_what_a_child_cannot_know_names_nothing(world: World, events, made) -> None:
    world.feed(lookup(0, "one.example", A), *events)
    record = only(world.feed(childs(5_000, **made)))
    assert (record.host, record.dns) == (None, None)


def test_a_program_that_took_the_childs_place_knows_nothing(world: World) -> None:
    task = Task(CHILD_START, 0, 0, 0, CHILD, CHILD, PID, 1000, 0, b"")
    world.feed(lookup(0, "one.example", A), fork(100), ExecEvent(task, at(200), b"/bin/x"))
    assert only(world.feed(childs(5_000))).host is None


def test_of_several_names_a_child_was_forked_with_none_is_taken(world: World) -> None:
    world.feed(lookup(0, "one.example", A), lookup(6, "two.example", A), fork(100))
    record = only(world.feed(childs(200)))
    assert (record.host, record.dns_disp) == (None, None)
    # what it looks up itself is its own
    world.feed(lookup(300, "three.example", A, pid=CHILD, start_ns=CHILD_START))
    assert only(world.feed(childs(310))).host == "three.example"


def test_children_that_give_what_their_parent_kept_as_text_have_its_name(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    for number in range(3):
        ms, pid = 3_000 * (number + 1), 900 + number
        world.feed(fork(ms, pid, pid), lookup(ms + 10, A, A, end=ms + 11, pid=pid, start_ns=pid))
        assert world.feed(childs(ms + 20, pid=pid, start_ns=pid)) == []
        assert only(world.snapshot(ms + 100)).host == "one.example"


def test_forks_are_bounded_and_one_parents_take_no_others_place(world: World) -> None:
    world.feed(lookup(0, "one.example", A), fork(6))
    for parent in range(1, 10):
        world.feed(lookup(0, "two.example", B, pid=parent, start_ns=parent))
        for number in range(1_100):
            child = 10_000 + 2_000 * parent + number
            world.feed(fork(10, child, number, of=parent, of_start=parent))
        if parent == 7:
            assert only(world.feed(childs(5_000))).host == "one.example"
    table = world.core._lookups
    assert len(table._forked) == 8_192
    assert table._forked_from[(9, 9)] == 1_024
    assert sum(table._forked_from.values()) == 8_192


def test_names_are_not_shared_across_users() -> None:
    world = World()
    root = child_of(PID, 700)._replace(uid=0)
    world.feed(lookup(0, "one.example", A, end=10, pid=700)._replace(task=root))
    assert only(world.feed(ended(conn(20, A), 100))).host is None
    theirs = lookup(200, "two.example", B, end=210, pid=1234)
    world.feed(theirs._replace(task=theirs.task._replace(uid=0)))
    assert only(world.feed(ended(conn(220, B)._replace(ppid=1234), 300))).host is None


def test_a_pid_used_again_is_no_relative() -> None:
    world = World()
    world.feed(lookup(0, "one.example", A, end=10, pid=1234), process_exit(15, 1234))
    assert only(world.feed(ended(conn(20, A)._replace(ppid=1234), 100))).host is None
    helper = child_of(PID, 700)._replace(start_ns=START_NS - 1)  # older than its parent's pid is
    world.feed(lookup(0, "one.example", A, end=10, pid=700)._replace(task=helper))
    assert only(world.feed(ended(conn(20, A, sk=7), 100))).host is None


# -- a server's names outlive others' ---------------------------------------------------------


def test_who_looks_up_very_many_names_gives_way_to_who_has_few() -> None:
    table = LookupTable(total=1000)
    table.add(lookup(0, "upstream.example", A))
    for number in range(5_000):
        table.add(lookup(10 + number, f"n{number}.example", B, pid=1 + number % 4))
        assert len(table) <= 1000
    assert [x.name for x in table.of(PID, START_NS)] == ["upstream.example"]


# -- what the request asks for ----------------------------------------------------------------


def http(connection, *fields: str, line: str = "GET / HTTP/1.1", prot: bool = True, **more):
    """With this request in its event."""
    head = "\r\n".join((line, *fields, "", "")).encode()
    answered = {"rx_head": b"HTTP/1.1 200 OK\r\n".ljust(32, b"\0"), "rx_head_len": 17}
    return connection._replace(
        flags=connection.flags | int(ConnFlag.HTTP),
        tx_head=head[:32].ljust(32, b"\0"),
        tx_head_len=min(len(head), 32),
        log=head.ljust(-(-len(head) // 8) * 8, b"\0"),
        log_len=-(-len(head) // 8),
        log_merged=len(head),
        **(answered if prot else {}),
        **more,
    )


def names_up_front(world: World, *names: str, address: str = A) -> None:
    for number, name in enumerate(names):
        world.feed(lookup(number, name, address, tid=50))


@pytest.mark.parametrize("address", [A, V6])
def test_the_host_of_a_request_decides_at_once(world: World, address: str) -> None:
    names_up_front(world, "one.example", "two.example", address=address)
    for name in ("two.example", "one.example"):
        made = http(conn(20, address, end=30), f"Host: {name}:443")
        record = only(world.feed(made))
        assert (record.host, record.host_source, record.dns_disp) == (name, "http", 1)
        assert record.prot_specific == {
            "protocol": "http", "resp": 200, "method": "GET", "version": "1.1",
        }  # fmt: skip


def test_a_request_sent_later_corrects_what_was_settled_before(world: World) -> None:
    world.feed(lookup(0, "one.example", A), lookup(5_000, "two.example", A))
    opened = conn(5_010, A)
    world.snapshot(5_020, opened)
    record = only(world.feed(http(ended(opened, 5_100), "Host: one.example")))
    assert (record.host, record.host_source) == ("one.example", "http")


def test_another_host_than_the_one_looked_up_is_told_beside_it(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    for begin in (20, 5_000):  # fresh, and kept for long
        record = only(world.feed(http(conn(begin, A, end=begin + 9), "Host: www.example")))
        assert (record.host, record.host_source) == ("one.example", "lookup")
        assert record.prot_specific["host"] == "www.example"


def test_a_host_that_is_none_of_several_names_leaves_them_in_doubt(world: World) -> None:
    names_up_front(world, "one.example", "two.example")
    assert world.feed(http(conn(20, A, end=30), "Host: www.example")) == []
    record = only(world.snapshot(100))
    assert (record.host, record.host_source) == ("www.example", "http")
    assert (record.dns, record.dns_disp, record.dns_source) == (None, None, None)


def test_the_host_stands_in_where_no_lookup_was_seen(world: World) -> None:
    record = only(world.feed(http(conn(20, A, end=30), "Host: One.Example:443")))
    assert (record.host, record.host_source, record.dns_disp) == ("one.example", "http", 0)


@pytest.mark.parametrize(
    "line", ["GET http://one.example/ HTTP/1.1", "CONNECT one.example:443 HTTP/1.1"]
)
def test_what_a_proxy_is_asked_for_is_not_its_name(world: World, line: str) -> None:
    made = http(conn(20, A, end=30), "Host: one.example", line=line)
    assert only(world.feed(made)).host is None


def test_an_address_in_the_request_is_no_name(world: World) -> None:
    world.feed(lookup(0, "one.example", A))
    assert only(world.feed(conn(10, A, end=20))).host == "one.example"
    record = only(world.feed(http(conn(30, A, end=40), f"Host: {A}:443")))
    assert (record.host, record.host_source, record.dns) == (None, None, None)
    assert "host" not in record.prot_specific
    # just looked up, and put into a URL by the program itself
    world.feed(lookup(50, "one.example", A))
    record = only(world.feed(http(conn(60, A, end=70), f"Host: {A}")))
    assert (record.host, record.prot_specific["host"]) == ("one.example", A)


def test_ipv6_in_the_request_is_an_address(world: World) -> None:
    record = only(world.feed(http(conn(30, V6, end=40), f"Host: [{V6}]:443")))
    assert (record.host, "host" in record.prot_specific) == (None, False)


def test_the_host_of_a_long_request_comes_as_an_event(world: World) -> None:
    names_up_front(world, "one.example", "two.example")
    opened = conn(20, A)
    head = b"GET /" + b"x" * 300 + b" HTTP/1.1\r\nAccept: */*\r\nHost: one.exa"
    world.feed(hello(opened, head, number=4), hello(opened, b"mple\r\n\r\n", number=4))
    record = only(world.feed(ended(opened, 30, flags=ConnFlag.HTTP | ConnFlag.PACKETS)))
    assert (record.host, record.host_source) == ("one.example", "http")
    assert len(world.core._hellos) == 0


def test_the_authority_of_http2_in_the_clear_decides(world: World) -> None:
    names_up_front(world, "one.example", "two.example")
    opened = conn(20, A)
    encoder = hpack.Encoder()
    block = encoder.encode([(":method", "POST"), (":path", "/"), (":authority", "two.example:50")])
    frame = len(block).to_bytes(3, "big") + b"\1\4\0\0\0\1" + block
    world.feed(hello(opened, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame, number=3))
    record = only(world.feed(ended(opened, 30, flags=ConnFlag.H2 | ConnFlag.PACKETS)))
    assert (record.host, record.host_source) == ("two.example", "http")


def test_where_there_was_a_lookup_but_nobody_knows_which_that_is_not_none(world: World) -> None:
    names_up_front(world, "one.example", "two.example")
    assert world.feed(conn(20, A, end=30)) == []
    assert only(world.snapshot(100)).dns_disp is None
    assert only(world.feed(conn(120, B, end=130))).dns_disp == 0


def test_a_doubt_between_two_names_is_not_settled_by_which_went_over_the_wire(
    world: World,
) -> None:
    names_up_front(world, "one.example", "two.example")
    question = dns.message.make_query("one.example", "A")
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text("one.example.", 60, "IN", "A", A))
    asker = Task(START_NS, 0, 0, 0, PID, 50, 1, 1000, 0, b"")
    inside = int(DnsFlag.INSIDE)
    world.feed(DnsEvent(asker, 1, at(0), inside, 0, question.to_wire()))
    nobody = Task(0, 0, 0, 0, 0, 0, 0, 0, 0, b"")
    world.feed(DnsEvent(nobody, 1, at(4), int(DnsFlag.RECEIVED), 0, answer.to_wire()))
    assert world.feed(conn(20, A, end=30)) == []
    assert only(world.snapshot(100)).host is None
