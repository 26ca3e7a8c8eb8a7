"""Names from DNS messages, for connections that no getaddrinfo() explains."""

from __future__ import annotations

import time

import dns.ipv4
import dns.ipv6
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.correlate import dns_wire
from monitor.correlate.dns_wire import MAX_UNDECIDED, PER_PROCESS, DnsTable, parse_answer
from monitor.correlate.undecided import UndecidedTable
from monitor.decode import ConnFlag, DnsEvent, DnsFlag, ForkEvent, Task
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


def messages(name: str, kind: str, *addresses: str, number: int = 7) -> tuple[bytes, bytes]:
    question = dns.message.make_query(name, kind, id=number)
    answer = dns.message.make_response(question)
    if addresses:
        answer.answer.append(dns.rrset.from_text(name + ".", 60, "IN", kind, *addresses))
    return question.to_wire(), answer.to_wire()


def event(
    data: bytes,
    ms: float,
    *,
    received: bool,
    sk: int = 1,
    tid: int = PID,
    flags: int = 0,
    seq: int = 0,
) -> DnsEvent:
    pid, start_ns = (0, 0) if received else (PID, START_NS)
    task = Task(start_ns, 0, 0, 0, pid, 0 if received else tid, 0, 0, 0, b"")
    return DnsEvent(task, sk, at(ms), int(received) | flags, seq, data)


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


RECORDS = [
    ("www.example.", "CNAME", "far.example."),
    ("far.example.", "A", A),
    ("far.example.", "A", B),
    ("far.example.", "AAAA", V6),
    ("example.", "TXT", '"192.0.2.9" "far"'),
    ("far.example.", "HTTPS", "1 . ipv4hint=192.0.2.9"),
    ("example.", "SOA", "ns.example. root.example. 1 2 3 4 5"),
    ("a." * 120 + "example.", "A", "192.0.2.3"),
    ("elsewhere.", "A", "192.0.2.4"),
]


@given(st.sampled_from(["A", "AAAA", "MX"]), st.lists(st.sampled_from(RECORDS), max_size=12))
def test_an_answer_is_read_as_dnspython_reads_it(asked, records):
    answer = dns.message.make_response(dns.message.make_query("www.example", asked))
    answer.answer = [dns.rrset.from_text(at, 60, "IN", *record) for at, *record in records]
    wire = answer.to_wire()
    truth = [
        (2, dns.ipv4.inet_aton(record.address))
        if record.rdtype.name == "A"
        else (10, dns.ipv6.inet_aton(record.address))
        for rrset in dns.message.from_wire(wire, one_rr_per_rrset=True).answer
        for record in rrset
        if record.rdtype.name in ("A", "AAAA")
    ]
    expected = ("www.example", truth) if asked != "MX" else (None, [])
    name, addresses = parse_answer(wire)
    assert (
        name,
        [(family, at[: 4 if family == 2 else 16]) for family, at in addresses],
    ) == expected
    if truth and asked != "MX":  # cut anywhere among its answers, it is no answer
        assert parse_answer(wire[:-1]) == (None, [])


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(dns_wire, "MAX_QUESTIONS", 4096)
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


# -- over TCP, and lookups that fail ----------------------------------------------------------


def stream(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_messages_over_tcp_are_put_together(piece: int) -> None:
    question, answer = messages("one.example", "A", A)
    other, other_answer = messages("two.example", "A", B, number=8)
    sent, got = stream(question) + stream(other), stream(answer) + stream(other_answer)
    world = World()
    for ms, received, data in ((0, False, sent), (20, True, got)):
        for at_byte in range(0, len(data), piece):
            part = data[at_byte : at_byte + piece]
            seq = (0xFFFFFFF0 + at_byte) & 0xFFFFFFFF
            world.feed(event(part, ms, received=received, flags=DnsFlag.STREAM, seq=seq))
    assert only(world.feed(ended(conn(40, A), 100))).host == "one.example"
    assert only(world.feed(ended(conn(41, B, sk=2), 100))).host == "two.example"


def test_a_stream_with_a_hole_starts_anew():
    question, answer = messages("one.example", "A", A)
    world = World()
    flags = int(DnsFlag.STREAM)
    world.feed(event(stream(question)[:9], 0, received=False, flags=flags, seq=1))
    world.feed(event(stream(question), 1, received=False, flags=flags, seq=900))
    world.feed(event(stream(answer), 9, received=True, flags=flags, seq=5))
    assert only(world.feed(ended(conn(40, A), 100))).host == "one.example"


def test_an_answer_cut_short_and_asked_for_again_is_one_lookup():
    question, answer = messages("one.example", "A", A)
    cut = bytearray(answer[: len(question)])
    cut[2] |= 2
    cut[6:8] = b"\0\0"
    world = World()
    world.feed(event(question, 0, received=False), event(bytes(cut), 10, received=True))
    flags = int(DnsFlag.STREAM)
    world.feed(event(stream(question), 12, received=False, sk=5, flags=flags, seq=1))
    world.feed(event(stream(answer), 30, received=True, sk=5, flags=flags, seq=1))
    record = only(world.feed(ended(conn(40, A), 100)))
    assert (record.host, record.dns_us) == ("one.example", 30_000)
    assert world.snapshot(60_000) == []


def test_the_first_records_of_an_answer_cut_short_are_not_the_lookup():
    question, answer = messages("one.example", "A", A)
    cut = bytearray(answer)
    cut[2] |= 2
    world = World()
    world.feed(event(question, 0, received=False), event(bytes(cut), 50, received=True))
    flags = int(DnsFlag.STREAM)
    _, whole = messages("one.example", "A", A, B)
    world.feed(event(stream(question), 52, received=False, sk=5, flags=flags, seq=1))
    world.feed(event(stream(whole), 150, received=True, sk=5, flags=flags, seq=1))
    record = only(world.feed(ended(conn(160, A), 200)))
    assert (record.dns_us, set(record.dns)) == (150_000, {A, B})


@pytest.mark.parametrize(("again", "sk"), [(5_000.5, 2), (3_000, 1)], ids=["Go", "c-ares"])
def test_a_question_asked_again_was_one_wait(again: float, sk: int):
    world = World()
    question, answer = messages("one.example", "A", A)
    world.feed(event(question, 0, received=False, sk=1))
    world.feed(event(question, again, received=False, sk=sk))
    world.feed(event(answer, again + 20, received=True, sk=sk))
    record = only(world.feed(ended(conn(again + 30, A), again + 100)))
    assert record.dns_us == (again + 20) * 1000
    # ... and the next lookup is another
    world.feed(*exchange("one.example", "A", A, asked=again + 200, answered=again + 230))
    assert only(world.feed(ended(conn(again + 240, A), again + 300))).dns_us == 30_000


def test_a_family_that_was_never_answered_does_not_lengthen_the_next_lookup():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20, sk=1))
    lost, _ = messages("one.example", "AAAA")
    world.feed(event(lost, 0, received=False, sk=2))
    world.feed(*exchange("one.example", "A", A, asked=3_000, answered=3_030, sk=3))
    world.feed(*exchange("one.example", "AAAA", V6, asked=3_000, answered=3_040, sk=4))
    assert only(world.feed(ended(conn(3_050, A), 3_100))).dns_us == 40_000


def test_a_family_without_addresses_is_part_of_its_own_lookup_alone():
    world = World()
    for ms in (0, 1_300):
        world.feed(*exchange("one.example", "A", A, asked=ms, answered=ms + 40, sk=1))
        world.feed(*exchange("one.example", "AAAA", asked=ms, answered=ms + 41, sk=2))
    assert only(world.feed(ended(conn(1_345, A), 1_400))).dns_us == 41_000


def test_a_server_that_could_not_say_was_asked_again_in_the_same_lookup():
    world = World()
    question = dns.message.make_query("one.example", "A", id=7)
    failed = dns.message.make_response(question)
    failed.set_rcode(2)
    world.feed(event(question.to_wire(), 0, received=False))
    world.feed(event(failed.to_wire(), 30, received=True))
    world.feed(*exchange("one.example", "A", A, asked=31, answered=60))
    assert only(world.feed(ended(conn(65, A), 400))).dns_us == 60_000


def test_families_asked_for_one_after_the_other_are_each_in_their_own_lookup():
    world = World()
    for ms in (0, 110):
        world.feed(*exchange("one.example", "A", A, asked=ms, answered=ms + 40))
        world.feed(*exchange("one.example", "AAAA", asked=ms + 41, answered=ms + 80))
    assert only(world.feed(ended(conn(195, A), 400))).dns_us == 80_000


def test_a_longer_name_that_fails_after_the_shorter_one_was_found_is_no_try_of_it():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20))
    world.feed(*failing("one.example.au", 3, 30, 50))
    assert only(world.snapshot(20_000)).host == "one.example.au"


def test_a_search_list_that_ends_with_the_bare_name_has_no_failure():
    world = World()
    world.feed(*failing("one.example.search.example", 3, 0, 20))
    world.feed(*exchange("one.example", "A", A, asked=21, answered=40))
    assert world.snapshot(60_000) == []


def test_capitals_that_a_resolver_mixes_in_are_not_the_name():
    world = World()
    world.feed(*exchange("oNe.eXample", "A", A, asked=0, answered=20))
    world.feed(*exchange("One.exaMple", "A", A, asked=25, answered=30))
    assert only(world.feed(ended(conn(40, A), 100))).host == "one.example"


def test_an_answer_that_is_not_kept_any_more_may_have_been_the_one():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20))
    for number in range(PER_PROCESS - 1):
        world.feed(*exchange("other.example", "A", B, asked=21, answered=22, sk=number))
    world.feed(*exchange("two.example", "A", A, asked=23, answered=24))
    assert only(world.feed(ended(conn(40, A), 100))).host is None
    assert only(world.feed(ended(conn(2_040, A), 2_100))).host == "two.example"


def test_the_same_name_asked_for_very_often_stays_certain():
    world = World()
    for number in range(2 * PER_PROCESS):
        world.feed(*exchange("one.example", "A", A, asked=number, answered=number + 1))
    assert only(world.feed(ended(conn(2 * PER_PROCESS + 2, A), 3_000))).host == "one.example"


def failing(
    name: str, rcode: int, asked: float, answered: float | None, *, kind: str = "", **more: int
):
    events = []
    both = ((1, "A"), (2, "AAAA"))
    for sk, asked_for in ((more.pop("sk", 1), kind),) if kind else both:
        question = dns.message.make_query(name, asked_for, id=7)
        answer = dns.message.make_response(question)
        answer.set_rcode(rcode)
        events.append(event(question.to_wire(), asked, received=False, sk=sk, **more))
        if answered is not None:
            events.append(event(answer.to_wire(), answered, received=True, sk=sk))
    return events


@pytest.mark.parametrize(
    ("rcode", "error", "disposition"),
    [(3, "EAI_NONAME", 3), (2, "EAI_AGAIN", 2), (0, "EAI_NODATA", 3), (5, "EAI_AGAIN", 2)],
)
def test_a_name_that_nobody_knows_is_a_failed_record(rcode, error, disposition):
    world = World()
    world.feed(*failing("none.example", rcode, 0, 20))
    assert world.snapshot(300) == []
    record = only(world.snapshot(500))
    assert (record.host, record.state, record.error) == ("none.example", "failed", error)
    assert (record.dns_us, record.dns_disp, record.dns_source) == (20_000, disposition, "wire")
    assert world.snapshot(60_000) == []


def test_what_nobody_answers_fails_in_the_end_and_nobody_knows_when():
    world = World()
    world.feed(*failing("none.example", 0, 0, None))
    assert world.snapshot(10_000) == []
    record = only(world.snapshot(16_000))
    assert (record.error, record.dns_us, record.dns_disp) == ("EAI_AGAIN", None, 2)


def test_what_a_process_left_unanswered_fails_with_its_end():
    world = World()
    world.feed(*failing("none.example", 0, 0, None))
    world.feed(process_exit(900))
    assert only(world.snapshot(1_000)).error == "EAI_AGAIN"


def test_one_family_of_two_is_no_failure():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20, sk=1))
    question, answer = messages("one.example", "AAAA")
    world.feed(event(question, 1, received=False, sk=2), event(answer, 19, received=True, sk=2))
    assert world.snapshot(60_000) == []


def test_tries_of_a_search_list_are_one_lookup():
    world = World()
    world.feed(*failing("none.example.search.example", 3, 0, 20))
    world.feed(*failing("none.example", 3, 21, 40))
    world.feed(*failing("other.example", 3, 21, 40))
    records = world.snapshot(1_000)
    assert [(r.host, r.dns_us) for r in records] == [
        ("none.example", 40_000),
        ("other.example", 19_000),
    ]
    world.feed(*failing("some.example", 3, 2_000, 2_020))
    world.feed(*exchange("some.example.search.example", "A", A, asked=2_021, answered=2_040))
    assert world.snapshot(60_000) == []


@pytest.mark.parametrize("flag", [DnsFlag.INSIDE, DnsFlag.SERVER])
def test_what_another_probe_or_a_server_asks_is_no_failure_of_its_own(flag):
    world = World()
    world.feed(*failing("none.example", 3, 0, 20, flags=int(flag)))
    assert world.snapshot(60_000) == []


def test_sni_tells_two_names_of_one_address_apart():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20, sk=1))
    world.feed(*exchange("two.example", "A", A, asked=5, answered=25, sk=2))
    secure = conn(40, A)
    world.feed(hello(secure, client_hello("one.example")))
    record = only(world.feed(ended(secure, 100, flags=ConnFlag.TLS | ConnFlag.PACKETS)))
    assert (record.host, record.host_source) == ("one.example", "lookup")


def test_failures_are_bounded_and_quickly_told_apart():
    table = DnsTable()
    for number in range(MAX_UNDECIDED + 500):
        for one in failing(f"n{number}.example", 3, number / 1000, number / 1000):
            table.add(one)
    begin = time.process_time()
    assert len(table.failures(at(10_000))) == MAX_UNDECIDED
    assert table.dropped == 500
    assert table.failures(at(10_000)) == []
    assert time.process_time() - begin < 2


def test_the_same_question_again_is_another_lookup():
    world = World()
    for begin in (0, 100, 200):
        world.feed(*exchange("one.example", "AAAA", asked=begin, answered=begin + 10, sk=2))
        world.feed(*exchange("one.example", "A", A, asked=begin, answered=begin + 20, sk=1))
        record = only(world.feed(ended(conn(begin + 30, A, sk=begin + 1), begin + 50)))
        assert (record.host, record.dns_us) == ("one.example", 20_000)


def test_a_literal_given_to_getaddrinfo_is_the_name_that_dns_gave_it_for():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20))
    world.feed(lookup(21, A, A, end=22))
    assert only(world.feed(ended(conn(30, A), 100))).host == "one.example"
    late = only(world.feed(ended(conn(5_000, A, sk=9), 5_100)))
    assert (late.host, late.dns_source) == (None, "literal")


def test_what_a_process_was_answered_is_forgotten_after_its_end():
    world = World()
    left = conn(30, A)
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20))
    world.snapshot(1000)
    world.feed(process_exit(2000))
    assert world.core.wants_snapshot()
    world.snapshot(3000, left)
    world.feed(process_exit(60_000, PID + 1))
    assert (PID, START_NS) not in world.core._dns
    assert (world.core._dns._count, world.core._dns._bytes) == (0, 0)
    assert only(world.feed(ended(left, 60_100))).host == "one.example"


# -- search lists -----------------------------------------------------------------------------


def test_a_name_found_by_a_search_list_is_one_lookup_from_its_first_question_on():
    world = World()
    for kind, sk in (("A", 1), ("AAAA", 2)):
        world.feed(*failing("api.other.ns.svc.test", 3, 0, 20 + sk, sk=sk, kind=kind))
    world.feed(*exchange("api.other.svc.test", "A", A, asked=23, answered=40, sk=1))
    world.feed(*exchange("api.other.svc.test", "AAAA", asked=23, answered=41, sk=2))
    record = only(world.feed(ended(conn(50, A), 100)))
    assert (record.host, record.dns_us) == ("api.other.svc.test", 41_000)
    assert world.snapshot(60_000) == []
    # ... and the next time just so, although all of its names are known
    for kind, sk in (("A", 1), ("AAAA", 2)):
        world.feed(*failing("api.other.ns.svc.test", 3, 2_000, 2_020 + sk, sk=sk, kind=kind))
    world.feed(*exchange("api.other.svc.test", "A", A, asked=2_023, answered=2_050))
    assert only(world.feed(ended(conn(2_060, A, sk=9), 2_100))).dns_us == 50_000
    assert world.snapshot(60_000) == []


def test_families_asked_for_in_turn_are_tried_in_turn():
    world = World()
    world.feed(*failing("api.ns.svc.test", 3, 0, 20, kind="A"))
    world.feed(*failing("api.ns.svc.test", 3, 21, 40, kind="AAAA"))
    world.feed(*failing("api.svc.test", 3, 41, 60, kind="A"))
    world.feed(*failing("api.svc.test", 3, 61, 80, kind="AAAA"))
    world.feed(*exchange("api.corp.example", "A", A, asked=81, answered=100))
    world.feed(*exchange("api.corp.example", "AAAA", V6, asked=101, answered=120))
    assert only(world.feed(ended(conn(130, V6), 200))).dns_us == 120_000
    assert world.snapshot(60_000) == []


def test_a_search_list_of_which_nothing_exists_fails_once():
    world = World()
    names = ("api.ns.svc.test", "api.svc.test", "api.test", "api.corp.example", "api")
    for number, name in enumerate(names):
        world.feed(*failing(name, 3, number * 20, number * 20 + 19))
    record = only(world.snapshot(5_000))
    assert (record.host, record.error, record.dns_us) == ("api", "EAI_NONAME", 99_000)


@pytest.mark.parametrize(
    ("first", "second", "begun"),
    [
        ("www.one.test", "www.two.test", 21),
        ("api.ns.svc.test", "web.svc.test", 21),
        ("api.ns.svc.test", "api.svc.test", 400),  # somebody thought about it
    ],
)
def test_names_asked_for_one_after_the_other_are_each_their_own(first, second, begun):
    world = World()
    world.feed(*failing(first, 3, 0, 20))
    world.feed(*exchange(second, "A", A, asked=begun, answered=begun + 20))
    assert only(world.feed(ended(conn(begun + 30, A), begun + 60))).dns_us == 20_000
    assert only(world.snapshot(60_000)).host == first


def test_a_process_that_answers_questions_too_has_no_failure_of_what_it_found():
    world = World()
    world.feed(*failing("api.ns.svc.test", 3, 0, 20))
    flags = int(DnsFlag.SERVER)
    world.feed(*exchange("api.svc.test", "A", A, asked=21, answered=40, flags=flags))
    assert only(world.feed(ended(conn(50, A), 100))).dns_us == 40_000
    assert world.snapshot(60_000) == []


# -- answers that come one after the other ----------------------------------------------------


def test_an_attempt_begun_between_the_answers_is_of_the_same_connection():
    world = World()
    world.feed(*exchange("one.example", "AAAA", V6, asked=0, answered=20, sk=1))
    question, answer = messages("one.example", "A", A)
    world.feed(event(question, 1, received=False, sk=2))
    tried = conn(25, V6, took=None)
    world.snapshot(26, tried)
    world.feed(event(answer, 30, received=True, sk=2))
    record_of_winner = world.feed(conn(40, A, end=300))
    assert [r.state for r in record_of_winner] == ["closed"]
    first = World()
    first.feed(*exchange("one.example", "AAAA", V6, asked=0, answered=20, sk=1))
    first.feed(event(question, 1, received=False, sk=2))
    assert first.feed(ended(tried, 27, sk_err=111)) == []
    first.feed(event(answer, 30, received=True, sk=2))
    record = only(first.feed(conn(40, A, end=300)))
    assert [(x.raddr, x.result) for x in record.attempts] == [(V6, "refused"), (A, "ok")]
    assert (record.dns_us, record.dns_age_us) == (20_000, 10_000)
    assert record.dns == (A, V6) or record.dns == (V6, A)


def test_an_answer_that_a_newer_one_replaced_names_nothing():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20))
    world.feed(*exchange("one.example", "A", B, asked=100, answered=120))
    record = only(world.feed(ended(conn(200, A), 300)))
    assert (record.host, record.dns_disp) == (None, None)
    assert only(world.feed(ended(conn(200, B, sk=9), 300))).host == "one.example"
    # another family's says nothing of this one
    world.feed(*exchange("one.example", "AAAA", V6, asked=400, answered=420))
    assert only(world.feed(ended(conn(500, B, sk=10), 600))).host == "one.example"


def test_what_two_threads_are_answered_at_about_the_same_time_is_each_ones_own():
    world = World()
    world.feed(*exchange("one.example", "A", A, asked=0, answered=20, tid=5, sk=1))
    world.feed(*exchange("one.example", "A", B, asked=21, answered=40, tid=6, sk=2))
    assert only(world.feed(ended(conn(50, A, tid=5), 300))).host == "one.example"


def test_a_try_that_the_servers_could_not_answer_is_of_the_lookup_too():
    world = World()
    world.feed(*failing("api.ns.svc.test", 2, 0, 20, kind="A"))
    world.feed(*failing("api.ns.svc.test", 2, 21, 40, kind="A"))  # of another server
    world.feed(*exchange("api.svc.test", "A", A, asked=41, answered=60))
    assert only(world.feed(ended(conn(70, A), 100))).dns_us == 60_000
    assert world.snapshot(60_000) == []


# -- forks ------------------------------------------------------------------------------------


def test_a_child_connects_by_what_its_parent_was_answered():
    world = World()
    uid = conn(0).uid
    asked, answer = exchange("one.example", "A", A, asked=0, answered=20)
    world.feed(asked._replace(task=asked.task._replace(uid=uid)), answer)
    world.feed(ForkEvent(at(30), 500, START_NS, 900, PID))
    child = {"pid": 900, "tid": 900, "start_ns": 500}
    record = only(world.feed(conn(50_000, A, end=50_100, **child)))
    assert (record.host, record.dns_match, record.dns_source) == ("one.example", "host", "wire")
    assert only(world.feed(conn(50_000, A, end=50_100, sk=3, **child, uid=33))).host is None
    world.feed(*exchange("two.example", "A", B, asked=60_000, answered=60_020))  # since the fork
    assert only(world.feed(conn(70_000, B, end=70_100, sk=4, **child))).host is None


# -- questions that nobody answers -------------------------------------------------------------


def by_process(one: DnsEvent, pid: int) -> DnsEvent:
    return one._replace(task=one.task._replace(pid=pid, tid=pid))


@pytest.mark.parametrize("ended_first", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_a_socket_and_number_used_again_make_no_lookup_of_negative_length(ended_first, answered):
    """A process asks and ends without an answer; another's socket has the same memory."""
    world = World()
    first, second = PID, PID + 1
    world.feed(event(messages("one.example", "A")[0], 0, received=False))
    if ended_first:
        world.feed(process_exit(1))
    question, answer = messages("two.example", "A", A)
    world.feed(by_process(event(question, 2, received=False), second))
    if answered:
        world.feed(event(answer, 3, received=True))
    world.snapshot(50)
    world.snapshot(20_000)
    world.finish()
    told = {record.pid: record for record in world.handed_out}
    assert set(told) == ({first} if answered else {first, second})
    for record in told.values():
        assert (record.error, record.dns_us) == ("EAI_AGAIN", None)
    assert told[first].host == "one.example"


def test_a_question_asked_again_and_answered_has_failed_by_its_answer():
    world = World()
    question, answer = messages("one.example", "A")
    world.feed(event(question, 0, received=False))
    world.feed(by_process(event(messages("two.example", "A")[0], 1, received=False), PID + 1))
    nothing = dns.message.from_wire(answer)
    nothing.set_rcode(dns.rcode.NXDOMAIN)
    world.feed(event(question, 2, received=False, sk=2))
    world.feed(event(nothing.to_wire(), 7, received=True, sk=2))
    world.snapshot(1000)
    assert [(r.pid, r.error, r.dns_us) for r in world.handed_out] == [(PID, "EAI_NONAME", 7_000)]


@given(st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_every_question_is_told_or_counted(most, asked, some_answered):
    table = DnsTable()
    table._undecided = UndecidedTable(most=most)
    told = answered = 0
    for number in range(asked):
        question, answer = messages(f"n{number}.example", "A", A)
        table.add(by_process(event(question, number, received=False, sk=number), number % 7))
        if some_answered and not number % 3:
            table.add(event(answer, number, received=True, sk=number))
            answered += 1
        told += len(table.failures(at(number)))
    told += len(table.failures(at(60_000)))
    assert told + table.dropped + answered == asked
    assert table.deadline_ns() is None
    assert not table._undecided._of_process


def test_the_end_of_a_process_is_the_end_of_its_own_questions():
    world = World()
    for pid in range(1000, 1200):
        data = messages(f"n{pid}.example", "A")[0]
        world.feed(by_process(event(data, 0, received=False, sk=pid), pid))
    world.feed(process_exit(5, pid=1042))
    assert world.deadline_ms() is not None and world.deadline_ms() < 100
    assert [record.pid for record in world.snapshot(100)] == [1042]
    assert len(world.snapshot(16_000)) == 199
