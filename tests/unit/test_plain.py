"""Requests and answers from what a TLS library read and wrote."""

from __future__ import annotations

import time

import h2.config
import h2.connection
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.correlate.plain import MAX_TALKS, TurnTable
from monitor.decode import PlainEvent
from monitor.wire.http2 import PREFACE
from tests.unit.events import conn

SK, CONNECT_NS, SSL, PID = 0xFFFF0001, 1_000_000, 0x5000, 42
GET = b"GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
HTTP = {"protocol": "http", "version": "1.1"}


class Library:
    """A library's calls on one object, as the kernel side tells them."""

    def __init__(self, table: TurnTable, *, ssl: int = SSL, sk: int = SK) -> None:
        self.table, self.ssl, self.sk = table, ssl, sk
        self.now_ns = 2_000_000
        self._offsets = {False: 0, True: 0}
        self._last: bool | None = None

    def moved(self, data: bytes, *, received: bool, ms: int = 1):
        self.now_ns += ms * 1_000_000
        event = PlainEvent(
            self.sk, CONNECT_NS if self.sk else 0, self.ssl, self.now_ns, self.now_ns + 1000,
            self._offsets[received], PID, len(data), received, self._last != received, data,
        )  # fmt: skip
        self._offsets[received] += len(data)
        self._last = received
        return self.table.add(event)

    def sent(self, data: bytes, **options):
        return self.moved(data, received=False, **options)

    def received(self, data: bytes, **options):
        return self.moved(data, received=True, **options)


@pytest.fixture
def table() -> TurnTable:
    return TurnTable()


def ended(**fields):
    return conn(0, **{"sk": SK, "connect_ns": CONNECT_NS, "pid": PID, "ssl": SSL, **fields})


def test_a_request_and_its_answer(table):
    library = Library(table)
    assert library.sent(GET) == []
    [turn] = library.received(OK, ms=30)
    assert turn.connection == (SK, CONNECT_NS)
    assert turn.us == 30_001
    assert turn.prot_specific == {**HTTP, "resp": 200, "method": "GET"}
    assert library.received(b"more of it") == []
    assert table.protocol(ended()) == turn.prot_specific


def test_every_turn_of_a_kept_connection_and_the_first_for_the_record(table):
    library = Library(table)
    found = []
    for status in (200, 404, 503):
        found += library.sent(GET)
        found += library.received(b"HTTP/1.1 %d X\r\n\r\n" % status)
    assert [turn.prot_specific["resp"] for turn in found] == [200, 404, 503]
    assert table.protocol(ended())["resp"] == 200


def test_bytes_that_come_one_by_one(table):
    library = Library(table)
    found = [turn for byte in GET for turn in library.sent(bytes([byte]))]
    answered = library.now_ns
    for byte in OK:
        found += library.received(bytes([byte]))
    [turn] = found
    assert turn.prot_specific == {**HTTP, "resp": 200, "method": "GET"}
    assert turn.at_ns + turn.us * 1000 == answered + 1_001_000  # the first byte, not the last


def test_an_interim_answer_is_not_the_answer(table):
    library = Library(table)
    library.sent(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\n\r\n")
    assert library.received(b"HTTP/1.1 100 Continue\r\n\r\n") == []
    [turn] = library.received(b"HTTP/1.1 201 Created\r\n\r\n")
    assert turn.prot_specific["resp"] == 201


def test_a_server_is_told_by_who_asks_first(table):
    library = Library(table)
    library.received(GET)
    [turn] = library.sent(OK, ms=5)
    assert turn.prot_specific == {**HTTP, "resp": 200, "method": "GET"}
    assert turn.us == 5001


def test_what_is_no_known_protocol_is_a_turn_all_the_same(table):
    library = Library(table)
    library.sent(b"\x00\x01\x02")
    assert library.received(b"\x05" * 8) == []
    [turn] = library.sent(b"\x00\x01\x02")
    assert (turn.us, turn.prot_specific) == (1001, None)
    library.received(b"\x06")
    [last] = table.flush(ended())
    assert last.us == 1001
    assert table.protocol(ended()) is None


def test_http2_by_its_first_request(table):
    client = h2.connection.H2Connection()
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    library = Library(table)
    client.send_headers(
        1, [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "a.test")],
        end_stream=True,
    )  # fmt: skip
    asked = client.data_to_send()
    assert library.sent(asked) == []
    server.receive_data(asked)
    assert library.received(server.data_to_send()) == []  # SETTINGS
    server.send_headers(1, [(":status", "404")], end_stream=True)
    [turn] = library.received(server.data_to_send(), ms=20)
    assert turn.prot_specific == {"protocol": "http", "version": "2", "resp": 404, "method": "GET"}
    assert turn.us == 21_001
    assert library.sent(b"\0" * 9) == []


def test_http2_that_comes_byte_by_byte_is_read_once(table):
    client = h2.connection.H2Connection()
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    client.send_headers(
        1, [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "a.test")],
        end_stream=True,
    )  # fmt: skip
    asked = client.data_to_send()
    server.initiate_connection()
    server.receive_data(asked)
    server.send_headers(1, [(":status", "404"), *((f"x-{n}", "y" * 20) for n in range(40))])
    library = Library(table)
    library.sent(asked)
    begun = time.process_time()
    found = [turn for byte in server.data_to_send() for turn in library.received(bytes([byte]))]
    assert time.process_time() - begun < 0.1  # it took 0.8 s for 300 of them
    [turn] = found
    assert turn.prot_specific["resp"] == 404


def test_an_object_whose_memory_is_anothers_now(table):
    first = Library(table)
    first.sent(GET)
    first.received(OK)
    second = Library(table, sk=SK + 1)
    second.sent(b"HEAD / HTTP/1.1\r\n\r\n")
    [turn] = second.received(b"HTTP/1.1 500 No\r\n\r\n")
    assert turn.connection == (SK + 1, CONNECT_NS)
    assert table.protocol(ended())["resp"] == 200


def test_a_socket_that_was_not_seen_is_found_by_the_handshake(table):
    library = Library(table, sk=0)
    library.sent(GET)
    [turn] = library.received(OK)
    assert turn.connection is None
    assert table.protocol(ended(ssl_first_ns=1_500_000))["resp"] == 200
    assert table.protocol(ended(ssl_first_ns=9_000_000)) is None  # a later handshake's object
    assert table.protocol(ended(pid=PID + 1)) is None


def test_an_ended_connection_is_forgotten(table):
    library = Library(table)
    library.sent(GET)
    library.received(OK)
    table.forget(ended(end_ns=9_000_000))
    assert len(table) == 0


def test_a_process_that_is_no_longer_read(table):
    told, silent = Library(table), Library(table, ssl=SSL + 1, sk=SK + 1)
    told.sent(GET)
    told.received(OK)
    silent.sent(GET)
    table.drop(PID)
    assert table.protocol(ended())["resp"] == 200  # its record is still to come
    assert len(table) == 1


def test_strangers_cannot_fill_it(table):
    for number in range(MAX_TALKS + 10):
        Library(table, ssl=number, sk=number + 1).sent(b"\xff" * 4096)
    assert len(table) <= 2 * MAX_TALKS


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.booleans(),
            st.one_of(
                st.binary(min_size=1, max_size=600),
                st.sampled_from([GET, OK, GET[:7], OK[:9], PREFACE + GET]),
            ),
            st.booleans(),
        ),
        max_size=40,
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_program_says_is_a_turn_or_nothing(calls):
    table = TurnTable()
    libraries = [Library(table, ssl=number, sk=number) for number in range(4)]
    for number, received, data, anew in calls:
        if anew:
            before = libraries[number]
            libraries[number] = Library(table, ssl=number, sk=number)
            libraries[number].now_ns = before.now_ns
        for turn in libraries[number].moved(data, received=received):
            assert turn.us >= 0
            assert turn.prot_specific is None or turn.prot_specific["protocol"] in ("http", "mqtt")
    assert len(table) <= 8
