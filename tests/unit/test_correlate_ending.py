"""monitor.correlate.ending: what failed after it had connected, and what only came to its end."""

from __future__ import annotations

import pytest

from monitor.decode import ConnFlag
from tests.unit.events import RESET, Capture, World, at, conn
from tests.unit.test_correlate_build import (
    FULL,
    LOCAL,
    PACKETS,
    RX_FIN,
    RX_RST,
    ends_at,
    log_of,
    ns,
    record_of,
    talked,
    tls_record,
)

HALF, TX_LATE, INBOUND = (
    int(flag) for flag in (ConnFlag.HALF_CLOSE, ConnFlag.TX_LATE, ConnFlag.INBOUND)
)
SENT, RECEIVED = 1, 2  # last_dir
GET = b"GET /x HTTP/1.1\r\nHost: one.examp"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def asked(data=GET, *, after=1000, flags=0, **fields):
    """A connection that sent this at 20 ms, heard nothing and ended so long after."""
    made = conn(0, end=20 + after)
    return made._replace(
        **{
            "first_tx_ns": ns(made, 20),
            "turn_start_ns": ns(made, 20),
            "last_dir": SENT,
            "tx_head": data[:32].ljust(32),
            "tx_head_len": len(data[:32]),
            "bytes_sent": len(data),
            "flags": PACKETS | flags,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("flags", "after", "error"),
    [
        (RX_FIN, 50, "ENODATA"),
        (RX_FIN, 5000, "ENODATA"),
        (LOCAL, 500, "ECANCELED"),
        (LOCAL, 3000, "ETIMEDOUT"),
        (LOCAL | RX_FIN, 3000, "ETIMEDOUT"),
        (0, 3000, "ETIMEDOUT"),
        # had only shut down its own direction
        (LOCAL | HALF | RX_FIN, 3000, "ENODATA"),
        (LOCAL | RX_RST, 3000, "ETIMEDOUT"),
    ],
)
def test_a_request_without_an_answer_has_failed(flags, after, error) -> None:
    record = record_of(asked(flags=flags, after=after))
    assert (record.state, record.error) == ("failed", error)
    assert (record.txn_resp_us, record.turns) == (None, (0, 0, 0))
    assert record.prot_specific == {"protocol": "http", "method": "GET", "version": "1.1"}
    assert record.peer == "192.0.2.1"


@pytest.mark.parametrize(("sk_err", "error"), [(RESET, "ECONNRESET"), (32, "EPIPE")])
def test_a_reset_instead_of_the_answer_keeps_its_name(sk_err, error) -> None:
    for flags in (RX_RST, RX_RST | LOCAL | HALF):
        record = record_of(asked(flags=flags, sk_err=sk_err))
        assert (record.state, record.error) == ("failed", error)
    # the server had closed before
    record = record_of(asked(flags=RX_RST | RX_FIN, sk_err=sk_err))
    assert (record.state, record.error) == ("failed", "ENODATA")


@pytest.mark.parametrize(
    "data",
    [
        b"<34>1 2026-11-29T12:00:00Z host su",  # syslog
        b"servers.one.cpu 0.5 1700000000\n",  # graphite
        b"QUIT\r\n",
        b"get /x and no such method\r\n",
        b"SAY /x HTTP/1.1\r\n",
        b"\xe0\x00",  # MQTT's goodbye
    ],
)
def test_what_may_want_no_answer_has_not_failed_without_one(data) -> None:
    for flags in (RX_FIN, LOCAL):
        record = record_of(asked(data, flags=flags, after=3000))
        assert (record.state, record.error) == ("closed", None)


def test_mqtt_s_connect_wants_an_answer() -> None:
    hello = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04name"
    record = record_of(asked(hello, flags=RX_FIN))
    assert (record.state, record.error) == ("failed", "ENODATA")


def test_one_that_is_open_has_not_failed() -> None:
    opened = asked(end_ns=0, phase=3)
    assert World().core.describe(opened, None).state == "open"
    assert World().core.describe(opened, None).error is None


def test_of_an_end_that_was_not_seen_nothing_is_said() -> None:
    unseen = int(ConnFlag.END_UNSEEN)
    record = record_of(asked(after=3000, flags=unseen))
    assert (record.state, record.error) == ("closed", None)
    assert after_handshake(flags=unseen).tls.result == "ok"
    record = after_handshake(REQUEST, flags=unseen, end_ns=at(3000))
    assert (record.state, record.error) == ("closed", None)


def test_100_continue_is_no_answer() -> None:
    put = b"PUT /x HTTP/1.1\r\nExpect: 100-con"
    interim = {
        "first_rx_ns": 10**15, "first_resp_ns": 10**15, "turn_count": 1,
        "rx_head": CONTINUE.ljust(32), "rx_head_len": len(CONTINUE),
        "bytes_received": len(CONTINUE),
    }  # fmt: skip
    record = record_of(asked(put, flags=RX_FIN, **interim))
    assert (record.state, record.error) == ("failed", "ENODATA")
    # more came than the head shows
    interim["bytes_received"] += 1
    assert record_of(asked(put, flags=RX_FIN, **interim)).state == "closed"


def test_who_left_first_where_the_connection_was_accepted() -> None:
    for flags, error in ((0, "ENODATA"), (LOCAL, "ENODATA"), (RX_FIN, "ETIMEDOUT")):
        record = record_of(asked(flags=INBOUND | flags, after=3000, bytes_sent=0, bytes_received=9))
        assert (record.role, record.state, record.error) == ("server", "failed", error)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"last_dir": SENT, "flags": RX_FIN}, "EPIPE"),
        ({"last_dir": SENT, "flags": RX_FIN | int(ConnFlag.TX_FIN)}, "EPIPE"),
        # both had said goodbye
        ({"last_dir": RECEIVED, "flags": RX_FIN}, None),
        ({"last_dir": SENT, "flags": LOCAL}, None),
        ({"last_dir": SENT, "flags": LOCAL | RX_FIN}, None),
        ({"last_dir": SENT, "flags": LOCAL | HALF | RX_FIN}, None),
        # of other protocols a goodbye is not known; it is short
        ({"last_dir": SENT, "flags": RX_FIN, "tx_head_len": 0, "rx_head_len": 0}, None),
        (
            {"last_dir": SENT, "flags": RX_FIN | TX_LATE, "tx_head_len": 0, "rx_head_len": 0},
            "EPIPE",
        ),
    ],
)
def test_a_kept_connection_that_was_reset_under_a_new_request(fields, error) -> None:
    heads = {
        "tx_head": GET, "tx_head_len": 32, "rx_head": b"HTTP/1.1 200 OK\r\n".ljust(32),
        "rx_head_len": 17,
    }  # fmt: skip
    flags = PACKETS | RX_RST | fields["flags"]
    record = record_of(talked(**{"sk_err": 32, **heads, **fields, "flags": flags}))
    assert (record.state, record.error) == ("closed", error)


def test_a_half_closed_connection_that_was_reset() -> None:
    """It had shut down its own direction, and waited."""
    reset = {"sk_err": RESET, "tx_head_len": 0, "rx_head_len": 0}
    flags = RX_RST | LOCAL
    assert record_of(asked(b"x", flags=flags, **reset)).error is None
    record = record_of(asked(b"x", flags=flags | HALF, **reset))
    assert (record.state, record.error) == ("failed", "ECONNRESET")
    after_one = record_of(talked(**{**reset, "flags": PACKETS | flags | HALF}))
    assert (after_one.state, after_one.error) == ("closed", "ECONNRESET")


# ---- inside TLS ------------------------------------------------------------------------------

REQUEST, GOODBYE = (70_000, 90, 23, False, True), (70_000, 19, 23, False, True)
TICKETS = [(12_000, 250, 23, True, True), (12_000, 250, 23, True, False)]
SERVERS_GOODBYE = (71_000, 19, 23, True, True)


def after_handshake(*said, flags=0, **fields):
    end = next(i for i in range(len(FULL.log) // 8) if ends_at(i) == "unused")
    log = FULL.log[: 8 * end] + log_of([*TICKETS, *said])
    return tls_record(log=log, log_len=len(log) // 8, flags=flags, **fields)


def test_closed_after_the_handshake_without_a_request() -> None:
    for said in ((), (GOODBYE,), (GOODBYE, SERVERS_GOODBYE), (SERVERS_GOODBYE,)):
        for flags in (LOCAL, RX_FIN, LOCAL | RX_RST):
            record = after_handshake(*said, flags=flags, sk_err=RESET if flags & RX_RST else 0)
            assert (record.tls.result, record.state, record.error) == ("unused", "closed", None)
            assert record.tls_us > 0 and record.tls.resumed is False
            assert record.turns == (0, 0, 0)
    assert after_handshake(REQUEST, flags=LOCAL).tls.result == "ok"
    # HTTP/2's SETTINGS, and words about the silence: who offers HTTP alone is greeted by nobody
    assert after_handshake((12_500, 63, 23, True, True), flags=LOCAL).tls.result == "unused"
    # not certain, or not a program's own doing
    gap = after_handshake(flags=LOCAL | int(ConnFlag.TX_GAP))
    assert gap.tls.result == "ok"
    reset = after_handshake(flags=RX_RST, sk_err=RESET)
    assert (reset.tls.result, reset.state, reset.error) == ("ok", "failed", "ECONNRESET")


@pytest.mark.parametrize(
    ("flags", "end", "error"),
    [(RX_FIN, 200, "ENODATA"), (LOCAL, 500, "ECANCELED"), (LOCAL, 3000, "ETIMEDOUT")],
)
def test_a_request_inside_tls_without_an_answer(flags, end, error) -> None:
    assert FULL.client  # offers http/1.1 alone
    ended_ns = at(end)
    for said in ((REQUEST,), (REQUEST, GOODBYE), (REQUEST, SERVERS_GOODBYE)):
        record = after_handshake(*said, flags=flags, end_ns=ended_ns)
        assert (record.state, record.error, record.tls.result) == ("failed", error, "ok")
        assert (record.txn_resp_us, record.turns) == (None, (0, 0, 0))
    answered = after_handshake(REQUEST, (71_000, 300, 23, True, True), flags=flags, end_ns=ended_ns)
    assert (answered.state, answered.error) == ("closed", None)
    for uncertain in (int(ConnFlag.RX_GAP), int(ConnFlag.TX_GAP), int(ConnFlag.FOLDED)):
        record = after_handshake(REQUEST, flags=flags | uncertain, end_ns=ended_ns)
        assert (record.state, record.error) == ("closed", None)
    # counted once the log was full
    late = after_handshake(REQUEST, flags=flags, end_ns=ended_ns, turn_count=1)
    assert (late.state, late.error) == ("closed", None)


def http2(*said, end, flags=LOCAL):
    """curl's request to nginx at 20 ms, and what came after it."""
    capture = Capture("h2_curl_nginx")
    opening = [
        (12_000, 282, 23, True, True), (12_000, 282, 23, True, False),
        (12_100, 57, 23, True, True), (19_000, 81, 23, False, True), (20_000, 61, 23, False, True),
    ]  # fmt: skip
    finished = 8 * next(
        n
        for n in range(len(capture.log) // 8)
        if tls_record(capture, log=capture.log[: 8 * n], log_len=n).tls.result == "unused"
    )
    log = capture.log[:finished] + log_of([*opening, *said])
    return tls_record(capture, flags, log=log, log_len=len(log) // 8, end_ns=at(end))


def test_http2_s_own_frames_may_have_refused_the_request() -> None:
    """RST_STREAM is as long as WINDOW_UPDATE, and one may leave upon it."""
    acknowledged, refused = (20_300, 26, 23, True, True), (22_000, 30, 23, True, True)
    waited = http2(acknowledged, end=1200)
    assert (waited.state, waited.error) == ("failed", "ETIMEDOUT")
    hung_up = http2(acknowledged, end=200, flags=RX_FIN)
    assert (hung_up.state, hung_up.error) == ("failed", "ENODATA")
    left = http2(acknowledged, refused, end=24)
    assert (left.state, left.error) == ("closed", None)


def test_a_kept_connection_that_was_reset_under_a_request_inside_tls() -> None:
    one = [REQUEST, (71_000, 300, 23, True, True)]
    again, bye = (900_000, 60, 23, False, True), (900_000, 19, 23, False, True)
    broken = {"sk_err": 32, "flags": RX_RST | RX_FIN}
    record = after_handshake(*one, SERVERS_GOODBYE, again, **broken)
    assert (record.state, record.error, record.turns.count) == ("closed", "EPIPE", 1)
    assert after_handshake(*one, SERVERS_GOODBYE, bye, **broken).error is None
    assert after_handshake(*one, SERVERS_GOODBYE, **broken).error is None
    # the log was full before
    broken["flags"] |= TX_LATE
    assert after_handshake(*one, SERVERS_GOODBYE, **broken).error == "EPIPE"
