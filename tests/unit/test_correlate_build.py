"""monitor.correlate.build: the figures of one record, and what is left unknown."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.correlate import Clock, sockets
from monitor.decode import ConnEvent, ConnFlag, Library, Phase
from tests.unit.events import (
    MS,
    RESET,
    TESTS,
    TIMED_OUT,
    Capture,
    World,
    client_hello,
    conn,
    failed,
    hello,
    only,
)

PACKETS, LOCAL, RX_FIN, RX_RST = (
    int(flag) for flag in (ConnFlag.PACKETS, ConnFlag.LOCAL_CLOSE, ConnFlag.RX_FIN, ConnFlag.RX_RST)
)


def record_of(connection, *hellos):
    return only(World().feed(*hellos, connection))


def ns(connection, ms):
    return connection.connect_ns + round(ms * MS)


def talked(begin=0.0, *, tx=20.0, rx=50.0, **fields):
    """A connection with a request at ``tx`` ms and its answer at ``rx`` ms."""
    made = conn(begin, end=begin + 1000)
    return made._replace(
        **{
            "first_tx_ns": ns(made, tx),
            "first_rx_ns": ns(made, rx),
            "first_resp_ns": ns(made, rx),
            "turn_count": 1,
            "turn_sum_ns": round((rx - tx) * MS),
            "turn_max_ns": round((rx - tx) * MS),
            **fields,
        }
    )


# ---- without TLS ---------------------------------------------------------------------------------


def test_every_figure_comes_from_its_own_field() -> None:
    connection = talked(
        rtt_us=11, rttvar_us=12, retransmits=13, bytes_sent=14, bytes_received=15,
        turn_count=16, turn_sum_ns=17_000, turn_max_ns=18_000, lport=19, rport=20, uid=21,
        pid=22, tid=23, netns=24, cookie=0xC0FFEE, comm=b"a name\0junk".ljust(16, b"\0"),
        exe_ino=25, exe_dev=26, cgroup_id=27,
    )  # fmt: skip
    record = record_of(connection)
    assert record.tcp == (11, 12, 13, 14, 15)
    assert record.turns == (16, 17, 18)
    assert (record.lport, record.rport, record.uid) == (19, 20, 21)
    assert (record.pid, record.tid, record.netns) == (22, 23, 24)
    assert record.id == "b007b007-c0ffee"
    assert (record.comm, record.exe, record.unit) == ("a name", "/usr/bin/25-26", "27.service")
    assert (record.sockconn_us, record.txn_resp_us, record.duration_us) == (10_000, 30_000, 10**6)
    assert (record.laddr, record.raddr, record.transport) == ("192.0.2.99", "192.0.2.1", "tcp")
    assert (record.tls, record.tls_us, record.greeting_us) == (None, None, None)
    assert record.role == "client"


def test_an_ipv6_connection() -> None:
    record = record_of(conn(0, "2001:db8::1", end=20))
    assert (record.family, record.peer, record.laddr) == ("ipv6", "2001:db8::1", "2001:db8::99")


def test_what_the_packet_hooks_did_not_see_is_not_known_to_be_none() -> None:
    record = record_of(conn(0, end=20, flags=0))
    assert (record.turns, record.txn_resp_us, record.greeting_us) == (None, None, None)
    assert record_of(conn(0, end=20)).turns == (0, 0, 0)


def test_a_round_trip_that_was_never_measured_is_not_known() -> None:
    tcp = record_of(conn(0, end=20, rtt_us=0, rttvar_us=99)).tcp
    assert (tcp.rtt_us, tcp.rttvar_us, tcp.retransmits) == (None, None, 0)


def test_a_server_that_speaks_first_greets() -> None:
    greeted = talked(tx=40, rx=35, first_rx_ns=0)
    greeted = greeted._replace(
        first_rx_ns=ns(greeted, 35),
        first_resp_ns=ns(greeted, 90),
        turn_sum_ns=50 * MS,
        turn_max_ns=50 * MS,
    )
    record = record_of(greeted)
    assert (record.greeting_us, record.txn_resp_us) == (25_000, 50_000)
    silent = greeted._replace(first_tx_ns=0, first_resp_ns=0)
    assert record_of(silent).greeting_us == 25_000
    assert record_of(silent).txn_resp_us is None
    assert record_of(talked()).greeting_us is None


def test_http_is_read_from_the_first_bytes_each_way() -> None:
    request, answer = b"GET /x HTTP/1.1\r\nHost: one.examp", b"HTTP/1.1 404 Not Found\r\nServer: x"
    connection = talked(
        tx_head=request.ljust(32)[:32], tx_head_len=32, rx_head=answer[:32], rx_head_len=32
    )
    assert record_of(connection).prot_specific == {
        "protocol": "http", "resp": 404, "method": "GET", "version": "1.1",
    }  # fmt: skip
    assert record_of(connection._replace(rx_head_len=0)).prot_specific is None
    # what lies beyond the length is left from nobody, and is not read
    cut = record_of(connection._replace(rx_head_len=3)).prot_specific
    assert cut is None or cut.get("resp") is None


@pytest.mark.parametrize("interim", [b"100 Continue\r\n\r\n", b"103 Early Hints\r\nLink: <"])
def test_an_interim_answer_alone_is_no_status(interim) -> None:
    request, answer = b"PUT /x HTTP/1.1\r\n", (b"HTTP/1.1 " + interim)[:32]
    connection = talked(
        tx_head=request.ljust(32), tx_head_len=len(request), rx_head=answer.ljust(32),
        rx_head_len=len(answer),
    )  # fmt: skip
    record = record_of(connection)
    assert record.prot_specific == {  # and the record keeps to the schema
        "protocol": "http", "method": "PUT", "version": "1.1",
    }  # fmt: skip
    assert (record.txn_resp_us, record.txn_source) == (None, None)
    final = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1."  # in the same packet: its time is known
    answered = record_of(connection._replace(rx_head=final, rx_head_len=32))
    assert (answered.txn_resp_us, answered.txn_source) == (30_000, "plain")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_duration_is_below_nothing_whatever_the_kernel_says(data) -> None:
    times = [name for name in ConnEvent._fields if name.endswith("_ns")]
    given_ns = {
        name: data.draw(st.sampled_from((0, 1, 999, 5 * 10**9, 6 * 10**9))) for name in times
    }
    flags = data.draw(st.integers(0, (1 << 16) - 1))
    phase = data.draw(st.sampled_from((Phase.FAILED, Phase.CLOSED)))
    made = conn(0)._replace(**given_ns, flags=flags, phase=phase)
    for record in (*World().feed(made), *World().finish()):  # World holds them to the schema
        assert record.id


def test_a_socket_without_a_cookie_has_an_id_all_the_same() -> None:
    first, second = conn(1, end=9, cookie=0), conn(2, end=9, cookie=0)
    ids = {record_of(c).id for c in (first, second)}
    assert len(ids) == 2 and all(i.startswith("b007b007-t") for i in ids)


def test_two_that_begin_in_one_nanosecond_have_two_ids() -> None:
    one = conn(1, end=9, cookie=0)
    others = [one._replace(rport=444), one._replace(lport=1), one._replace(netns=5),
              one._replace(raddr=bytes(16)), one]  # fmt: skip
    assert len({record_of(c).id for c in others}) == len(others)


@pytest.mark.parametrize("others", [0, 62, 63, 64, 100])
def test_a_socket_that_is_connected_again_has_another_id(others, monkeypatch) -> None:
    monkeypatch.setattr(sockets, "MAX_SOCKETS", 64)  # of each generation
    first, second, third = (
        failed(at, "192.0.2.1", at + 5, err=111, cookie=77) for at in (1, 9, 90)
    )
    world = World()
    ids = [only(world.feed(first)).id]
    for place in range(others):
        world.feed(conn(20, end=21, cookie=1000 + place))
    seen_open = world.core.describe(second._replace(end_ns=0, phase=Phase.SYN_SENT), None).id
    ids += [only(world.feed(each)).id for each in (second, third)]
    assert ids[0] == "b007b007-4d"
    assert ids[1] == seen_open == f"b007b007-4d.{second.connect_ns:x}"
    assert len(set(ids)) == 3


def test_the_clock_tells_microseconds_across_a_second() -> None:
    clock = Clock(offset_ns=1_700_000_000_000_000_000)
    assert clock.text(999_999_999) == "2023-11-14T22:13:20.999999Z"
    assert clock.text(1_000_000_000) == "2023-11-14T22:13:21.000000Z"


# ---- broken off ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "state", "error"),
    [
        ({"flags": PACKETS | RX_RST, "first_rx_ns": 0, "first_resp_ns": 0}, "failed", "ECONNRESET"),
        ({"flags": PACKETS | RX_RST}, "closed", "ECONNRESET"),
        ({"flags": PACKETS | RX_RST | LOCAL}, "closed", None),
        ({"flags": PACKETS | RX_RST | RX_FIN}, "closed", None),
        ({"flags": PACKETS, "sk_err": TIMED_OUT}, "closed", "ETIMEDOUT"),
        ({"flags": PACKETS | LOCAL, "sk_err": 0}, "closed", None),
    ],
    ids=["before an answer", "after one", "after our FIN", "after theirs", "timeout", "no error"],
)
def test_a_connection_that_was_broken_off(fields, state, error) -> None:
    record = record_of(talked(**{"sk_err": RESET, **fields}))
    assert (record.state, record.error) == (state, error)
    assert record.peer == "192.0.2.1"


# ---- TLS -----------------------------------------------------------------------------------------

FULL = Capture("tls13_full")
DATA = TESTS / "data" / "tls"


def log_of(entries):
    return b"".join(
        struct.pack("=IHBB", us, size, kind, (1 if rx else 0) | (2 if first else 0))
        for us, size, kind, rx, first, *_ in entries
    )


def hellos_of(connection, capture):
    return hello(connection, capture.client), hello(connection, capture.server, received=True)


def tls_record(capture=FULL, flags=0, **fields):
    connection = capture.on(conn(0, end=1000), flags, **fields)
    return record_of(connection, *hellos_of(connection, capture))


def test_a_handshake_seen_on_the_wire() -> None:
    record = tls_record()
    tls = record.tls
    assert (tls.source, tls.version, tls.result, tls.alert) == ("wire", "TLSv1.3", "ok", None)
    assert tls.cipher.startswith("TLS_") and tls.resumed is False
    assert record.tls_us > 0 and record.txn_resp_us > 0
    assert (record.state, record.error, record.prot_specific) == ("closed", None, None)


def test_the_library_s_own_times_come_first() -> None:
    times = {"ssl": 1, "ssl_first_ns": 5 * MS, "ssl_done_ns": 28 * MS, "ssl_calls": 1}
    record = tls_record(ssl_library=int(Library.OPENSSL), **times)
    assert (record.tls.source, record.tls_us, record.tls.result) == ("openssl", 23_000, "ok")
    assert tls_record(ssl_library=int(Library.GNUTLS), **times).tls.source == "gnutls"


def test_a_library_that_failed_outweighs_lengths_that_look_well() -> None:
    failed = {
        "ssl": 1, "ssl_first_ns": 5 * MS, "ssl_library": int(Library.GNUTLS), "ssl_calls": 2,
        "flags": int(ConnFlag.SSL_RETURNED),
    }  # fmt: skip
    whole = tls_record(**failed)
    assert whole.tls.result == "ok"  # a request was answered: the library's success was missed
    log = FULL.log[: 8 * next(i for i in range(len(FULL.log) // 8) if ends_at(i) == "unused")]
    record = tls_record(log=log, log_len=len(log) // 8, **failed)
    assert (record.tls.result, record.tls.source) == ("rejected", "gnutls")
    assert (record.tls_us, record.state, record.error) == (None, "failed", "EPROTO")
    assert record.tls.resumed is None
    # and without a library's word the wire is all there is
    assert tls_record(log=log, log_len=len(log) // 8).tls.result == "unused"
    failed["flags"] = 0
    assert tls_record(log=log, log_len=len(log) // 8, **failed).tls.result == "unused"


def test_a_library_whose_returns_are_not_seen_says_when_the_handshake_began() -> None:
    wire = tls_record()
    begun = {"ssl": 1, "ssl_library": int(Library.OPENSSL), "ssl_calls": 1}
    hello_ns = FULL.on(conn(0, end=1000), 0).hello_ns
    record = tls_record(ssl_first_ns=hello_ns - 700_000, **begun)
    assert (record.tls.source, record.tls.result) == ("openssl", "ok")
    assert record.tls_us == wire.tls_us + 700


@pytest.mark.parametrize(
    "said",
    [
        [(61_000, 250, 23, True, True), (61_000, 250, 23, True, False)],  # tickets
        [(900_000, 80, 23, True, True)],  # a greeting
        [(61_000, 250, 23, True, True), (900_000, 80, 23, True, True)],
    ],
)
def test_a_handshake_that_reading_finished_was_none_that_failed(said) -> None:
    """The library was called for it once, and wanted to read."""
    once = {
        "ssl": 1, "ssl_first_ns": 5 * MS, "ssl_library": int(Library.GNUTLS), "ssl_calls": 1,
        "flags": int(ConnFlag.SSL_RETURNED),
    }  # fmt: skip
    end = next(i for i in range(len(FULL.log) // 8) if ends_at(i) == "unused")
    log = FULL.log[: 8 * end]
    assert tls_record(log=log, log_len=end, **once).tls.result == "rejected"
    log += log_of(said)
    record = tls_record(log=log, log_len=len(log) // 8, **once)
    assert (record.tls.result, record.state, record.error) == ("unused", "closed", None)
    assert record.tls_us > 0
    # a refusal that only the server's alert tells is nothing that was said
    log = FULL.log[: 8 * end] + log_of([(61_000, 19, 23, True, True)])
    assert tls_record(log=log, log_len=len(log) // 8, **once).tls.result == "rejected"


def ends_at(entries):
    return tls_record(log=FULL.log[: 8 * entries], log_len=entries).tls.result


@pytest.mark.parametrize(
    ("capture", "fields", "result", "alert", "error"),
    [
        ("alert_cipher", {"alert_rx": 41}, "alert", "handshake_failure", "EPROTO"),
        ("rejected_13", {"alert_tx": 49, "flags": LOCAL}, "rejected", "unknown_ca", "EPROTO"),
        ("rejected_12", {"alert_tx": 49}, "rejected", "unknown_ca", "EPROTO"),
        ("closed_after_hello", {"flags": RX_FIN}, "closed", None, "EPROTO"),
        ("closed_after_hello", {"flags": RX_RST}, "reset", None, "ECONNRESET"),
        ("closed_after_hello", {"err": RESET}, "reset", None, "ECONNRESET"),
        ("closed_after_hello", {"err": TIMED_OUT}, "timeout", None, "ETIMEDOUT"),
        ("closed_after_hello", {"flags": LOCAL}, "timeout", None, "ETIMEDOUT"),
        ("closed_after_server_flight", {"flags": LOCAL}, "rejected", None, "EPROTO"),
        ("closed_after_hello", {"flags": int(ConnFlag.RX_GAP)}, None, None, None),
    ],
)
def test_a_handshake_that_failed(capture, fields, result, alert, error) -> None:
    fields = dict(fields)
    if "err" in fields:
        fields["sk_err"] = fields.pop("err")
    record = tls_record(Capture(capture), fields.pop("flags", 0), **fields)
    assert (record.tls.result, record.tls.alert, record.error) == (result, alert, error)
    assert (record.state, record.tls_us) == ("failed" if error else "closed", None)
    assert record.sockconn_us == 10_000  # the connection itself was made


@pytest.mark.parametrize(
    ("ms", "flags", "err", "result", "error"),
    [
        (300, LOCAL, 0, "failed", "ECANCELED"),
        (300, LOCAL | RX_RST, 0, "failed", "ECANCELED"),
        (300, LOCAL | RX_RST, RESET, "failed", "ECANCELED"),
        (300, LOCAL | RX_FIN, 0, "failed", "ECANCELED"),
        (1100, LOCAL, 0, "timeout", "ETIMEDOUT"),
        (1100, LOCAL | RX_RST, RESET, "timeout", "ETIMEDOUT"),
        (300, RX_RST, RESET, "reset", "ECONNRESET"),
        (300, RX_FIN, 0, "closed", "EPROTO"),
        (60_000, LOCAL, TIMED_OUT, "timeout", "ETIMEDOUT"),
    ],
)
def test_a_handshake_that_this_side_gave_up(ms, flags, err, result, error) -> None:
    capture = Capture("closed_after_hello")
    connection = capture.on(conn(0, end=ms), flags, sk_err=err)
    record = record_of(connection, *hellos_of(connection, capture))
    assert (record.tls.result, record.state, record.error) == (result, "failed", error)
    # what counts is how long the server was waited for, not how old the connection is
    late = connection._replace(
        connect_ns=connection.connect_ns - 10**10, established_ns=connection.established_ns - 10**10
    )
    record = record_of(late, *hellos_of(late, capture))
    assert (record.tls.result, record.error) == (result, error)


def test_a_certificate_that_was_left_without_a_word_is_rejected_also_where_a_reset_follows() -> (
    None
):
    capture = Capture("closed_after_server_flight")
    record = tls_record(capture, LOCAL | RX_RST, sk_err=RESET)
    assert (record.tls.result, record.error) == ("rejected", "EPROTO")


@pytest.mark.parametrize(
    ("ms", "result", "error"), [(899, "failed", "ECANCELED"), (900, "timeout", "ETIMEDOUT")]
)
def test_quic_that_was_given_up(ms, result, error) -> None:
    flags = int(ConnFlag.UDP | ConnFlag.QUIC | ConnFlag.PACKETS)
    record = record_of(conn(0, took=0, end=ms, flags=flags))
    assert (record.tls.result, record.error) == (result, error)


def us_of(record):
    return record.txn_resp_us


BEGUN = [
    (10_000, 512, 22, False, True),
    (30_000, 122, 22, True, True),
    (30_000, 2300, 23, True, False),
    (31_000, 1, 20, False, True),
    (31_000, 53, 23, False, False),
]
TICKET = (51_000, 250, 23, True, True)


def upload(*log, ticket_at=None):
    """A capture whose log is full before the answer, from 32 ms on."""
    entries = [*BEGUN, *log]
    us = 32_000 if not log else log[-1][0] + 1000
    while len(entries) < 32:
        if ticket_at == len(entries):
            entries.append((us, *TICKET[1:]))
        entries.append((us, 1700 + len(entries), 23, False, True))
        us += 1000
    capture = Capture("tls13_full")
    capture.log = log_of(entries[:32])
    return capture


def counted(ms, **fields):
    """A turn that the kernel side counted."""
    return {
        "turn_count": 1,
        "turn_sum_ns": ms * MS,
        "turn_max_ns": ms * MS,
        "last_dir": 1,
        **fields,
    }


def test_an_upload_that_filled_the_log_is_answered_by_the_turn_counted_since() -> None:
    # the turn began with Finished, at 31 ms; the request a millisecond later
    assert us_of(tls_record(upload(), **counted(500))) == 499_000
    # or with the request, after two tickets
    capture = upload(TICKET, TICKET)
    assert us_of(tls_record(capture, **counted(500))) == 500_000
    # up to TLS 1.2 any answer is one, however soon
    begun = json.loads((DATA / "tls12_full.json").read_text())["log"]
    begun = begun[: next(i for i, entry in enumerate(begun) if entry[2] == 23)]
    asked_us = begun[-1][0] + 500
    capture = Capture("tls12_full")
    capture.log = log_of(
        [*begun, *((asked_us + i, 2000 + i, 23, False, True) for i in range(32 - len(begun)))]
    )
    assert us_of(tls_record(capture, **counted(3))) == 3000
    # a reset after it finds a connection that has served
    record = tls_record(upload(), RX_RST, sk_err=RESET, **counted(500))
    assert (record.state, record.error) == ("closed", "ECONNRESET")


def test_where_nothing_was_sent_after_the_answer_the_turn_s_own_begin_is_known() -> None:
    capture = upload(ticket_at=20)  # with more of the body behind it, from some packet on
    fields = counted(500, last_dir=2, turn_start_ns=conn(0).connect_ns + 60 * MS)
    assert us_of(tls_record(capture, **fields)) == 60_000 + 500_000 - 32_000
    assert us_of(tls_record(capture, **counted(500))) is None


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (0, {"turn_count": 0, "turn_sum_ns": 0}),
        (0, {"turn_count": 2}),
        (0, {"turn_sum_ns": 40 * MS}),  # may be a ticket
        (int(ConnFlag.TLS_LATE), {}),  # may be what was said before TLS
        (int(ConnFlag.RX_GAP), {}),
        (int(ConnFlag.TX_GAP), {}),
    ],
)
def test_an_answer_after_the_log_that_is_not_known_exactly(flags, fields) -> None:
    assert us_of(tls_record(upload(), flags, **{**counted(500), **fields})) is None


def test_a_turn_that_may_have_begun_before_finished_tells_nothing() -> None:
    capture = upload()
    entries = [(30_500, 1, 20, False, True) if i == 3 else None for i in range(32)]
    log = bytearray(capture.log)
    log[3 * 8 : 4 * 8] = log_of([entries[3]])
    capture.log = bytes(log)  # the client changed ciphers before the server's flight was whole
    assert us_of(tls_record(capture, **counted(500))) is None


def test_turns_of_the_log_and_those_counted_after_it_add_up() -> None:
    alone = tls_record().turns
    more = tls_record(turn_count=7, turn_sum_ns=70_000_000, turn_max_ns=50_000_000).turns
    assert more.count == alone.count + 7
    assert more.sum_us == alone.sum_us + 70_000
    assert more.max_us == max(alone.max_us, 50_000)
    assert tls_record(turn_max_ns=0).turns.max_us == alone.max_us > 0


def test_a_server_that_speaks_first_inside_tls_greets() -> None:
    log = json.loads((DATA / "tls13_idle_then_request.json").read_text())["log"]
    *entries, request, answer = ([us + 10_000, *rest] for us, *rest in log)
    greeting = [request[0] - 5000, 80, 23, True, True, "app"]
    capture = Capture("tls13_idle_then_request")
    capture.log = log_of([*entries, greeting, request, answer])
    record = tls_record(capture)
    assert record.greeting_us == greeting[0] - record.sockconn_us
    assert record.txn_resp_us == answer[0] - request[0]
    # what was said before TLS began comes first; and a proxy's answer to CONNECT is no greeting
    assert tls_record(capture, int(ConnFlag.TLS_LATE)).greeting_us is None
    assert tls_record().greeting_us is None


LATE_US = 0xFFFFFFFF  # more does not fit into a log's entry


def test_a_log_without_times_has_no_figures() -> None:
    kept = json.loads((DATA / "tls13_idle_then_request.json").read_text())["log"]
    *entries, request, answer = kept
    capture = Capture("tls13_idle_then_request")
    capture.log = log_of([*entries, [LATE_US, *request[1:]], [LATE_US, *answer[1:]]])
    record = tls_record(capture)
    assert record.tls_us > 0 and record.tls.result == "ok"
    assert (record.txn_resp_us, record.turns) == (None, None)
    # broken off later it has served all the same
    record = tls_record(capture, RX_RST, sk_err=RESET)
    assert (record.state, record.error) == ("closed", "ECONNRESET")
    # TLS that begins so late
    capture.log = log_of([[LATE_US, *rest] for _, *rest in kept])
    record = tls_record(capture, int(ConnFlag.TLS_LATE))
    assert (record.tls.result, record.tls_us) == ("ok", None)
    assert (record.txn_resp_us, record.greeting_us, record.turns) == (None, None, None)


@pytest.mark.parametrize(
    ("sni", "host"),
    [
        ("a.example", "a.example"),
        ("a.example.", "a.example"),
        ("A.Example:8443", "a.example"),
        ("a.example.:443", "a.example"),
        ("10.example", "10.example"),
        ("192.0.2.1", None),
        ("192.0.2.1.", None),
        ("192.0.2.1:443", None),
        ("::1", None),
        ("2001:db8::1", None),
        ("[2001:db8::1]:443", None),
        (".", None),
    ],
)
def test_the_name_in_a_clienthello_is_the_host(sni, host) -> None:
    connection = FULL.on(conn(0, end=1000))
    record = record_of(connection, hello(connection, client_hello(sni)))
    assert record.tls.sni == sni
    assert (record.host, record.host_source) == (host, "sni" if host else None)


def test_the_protocol_chosen_is_told_apart_from_those_offered() -> None:
    chosen = tls_record(Capture("h2_curl_node_12")).tls  # TLS 1.2 says it in the clear
    assert (chosen.alpn_chosen, chosen.alpn) == (True, ("h2",))
    offered = tls_record(Capture("h2_curl_nginx")).tls
    assert offered.alpn_chosen is False and "h2" in offered.alpn


def test_without_the_hellos_what_they_would_say_is_not_known() -> None:
    record = record_of(FULL.on(conn(0, end=1000)))
    assert (record.tls.cipher, record.tls.sni, record.tls.alpn) == (None, None, None)
    assert (record.tls.alpn_chosen, record.tls.result) == (None, "ok")


def test_a_handshake_cut_by_a_reset_says_so_in_attempts_as_a_connection() -> None:
    record = tls_record(Capture("closed_after_hello"), RX_RST)
    assert [a.result for a in record.attempts] == ["ok"]
