"""Names from DNS messages, for connections that no getaddrinfo() explains."""

from __future__ import annotations

import dns.message
import dns.rcode
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from monitor.correlate.dns_wire import PER_PROCESS, DnsTable, parse_answer
from monitor.decode import DnsEvent, Task
from tests.unit.events import PID, START_NS, World, at, conn, ended, lookup, only

A, B, V6 = "192.0.2.1", "192.0.2.2", "2001:db8::1"


def messages(name: str, kind: str, *addresses: str, number: int = 7) -> tuple[bytes, bytes]:
    question = dns.message.make_query(name, kind, id=number)
    answer = dns.message.make_response(question)
    if addresses:
        answer.answer.append(dns.rrset.from_text(name + ".", 60, "IN", kind, *addresses))
    return question.to_wire(), answer.to_wire()


def event(data: bytes, ms: float, *, received: bool, sk: int = 1, tid: int = PID) -> DnsEvent:
    pid, start_ns = (0, 0) if received else (PID, START_NS)
    task = Task(start_ns, 0, 0, 0, pid, 0 if received else tid, 0, 0, 0, b"")
    return DnsEvent(task, sk, at(ms), received, False, data)


def exchange(
    name: str, kind: str, *addresses: str, asked: float, answered: float, **more: int
) -> list[DnsEvent]:
    question, answer = messages(name, kind, *addresses)
    return [
        event(question, asked, received=False, **more),
        event(answer, answered, received=True, sk=more.get("sk", 1)),
    ]


def test_an_answer_names_the_connection_that_follows():
    world = World()
    world.feed(*exchange("one.example", "A", A, B, asked=0, answered=20, sk=1, tid=5))
    world.feed(*exchange("one.example", "AAAA", V6, asked=1, answered=30, sk=2, tid=5))
    record = only(world.feed(ended(conn(40, A), 100)))
    assert (record.host, record.host_source) == ("one.example", "lookup")
    assert (record.dns_source, record.dns_match) == ("wire", "process")
    assert (record.dns_us, record.dns_disp) == (30_000, 1)
    # dnspython writes the records of a name in any order; A was answered before AAAA
    assert set(record.dns[:2]) == {A, B}
    assert record.dns[2:] == (V6,)
    assert record.dns_age_us == 10_000


def test_the_thread_is_said_where_it_is_the_same():
    world = World()
    plain = conn(40, A)
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20, tid=plain.tid))
    assert only(world.feed(ended(plain, 100))).dns_match == "thread"


def test_two_names_for_one_address_name_nothing():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20, sk=1))
    world.feed(*exchange("two.example", "A", A, asked=5, answered=25, sk=2))
    record = only(world.feed(ended(conn(40, A), 100)))
    assert (record.host, record.dns_source) == (None, None)


def test_getaddrinfo_comes_first():
    world = World()
    world.feed(*exchange("one.example.search.example", "A", A, asked=1, answered=20))
    world.feed(lookup(0, "one.example", A, end=21))
    record = only(world.feed(ended(conn(40, A), 100)))
    assert (record.host, record.dns_source) == ("one.example", "getaddrinfo")


def test_an_answer_that_came_too_late_or_to_another_explains_nothing():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=50))
    assert only(world.feed(ended(conn(40, A), 100))).host is None
    other = World()
    other.feed(*exchange("one.example", "A", A, asked=0, answered=20))
    assert only(other.feed(ended(conn(40, A, pid=99), 100))).host is None
    unasked = World()
    unasked.feed(exchange("one.example", "A", A, asked=0, answered=20)[1])
    assert only(unasked.feed(ended(conn(40, A), 100))).host is None


def test_attempts_at_one_answer_are_one_record():
    world = World()
    world.feed(*exchange("one.example", "A", A, B, asked=0, answered=20))
    assert world.feed(conn(40, A, took=None, end=41, err=111)) == []
    record = only(world.feed(ended(conn(42, B), 100)))
    assert [attempt.result for attempt in record.attempts] == ["refused", "ok"]
    assert record.peer == B


def test_a_name_with_an_alias_keeps_the_name_asked_for():
    question = dns.message.make_query("www.example", "A")
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text("www.example.", 60, "IN", "CNAME", "far.example."))
    answer.answer.append(dns.rrset.from_text("far.example.", 60, "IN", "A", A))
    name, addresses = parse_answer(answer.to_wire())
    assert name == "www.example"
    assert addresses == [(2, bytes([192, 0, 2, 1]) + bytes(12))]


def test_what_is_kept_is_bounded():
    table = DnsTable()
    for number in range(20_000):
        question, answer = messages("one.example", "A", A, number=number % 65_536)
        table.add(event(question, number, received=False, sk=number))
        if number % 2:
            table.add(event(answer, number, received=True, sk=number))
    assert len(table._asked) <= 4096
    assert [len(kept) for kept in table._answered.values()] == [PER_PROCESS]


@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_not_but_never_raise(data):
    name, addresses = parse_answer(data)
    assert name is None or isinstance(name, str)
    assert all(len(address) == 16 for _, address in addresses)


@given(st.data())
def test_a_damaged_answer_never_raises(data):
    raw = bytearray(messages("one.example", "A", A, B)[1])
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    parse_answer(bytes(raw))
    table = DnsTable()
    table.add(event(bytes(raw), 1, received=True))
