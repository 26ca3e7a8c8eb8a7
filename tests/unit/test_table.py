"""The rows that a person reads."""

from __future__ import annotations

import re

import pytest

from conmon.escape import width
from conmon.record import Attempt, Record, Tls, Turns
from monitor.cli.table import Table, latency, outcome

GOOD = Record(
    start="2026-11-23T22:00:00.123456Z",
    state="closed",
    pid=4242,
    comm="curl",
    host="example.test",
    raddr="192.0.2.7",
    rport=443,
    peer="192.0.2.7",
    dns_us=1501,
    dns_disp=1,
    dns_source="getaddrinfo",
    sockconn_us=850,
    attempts=(Attempt(raddr="192.0.2.7", us=850, result="ok"),),
    tls_us=12_340,
    tls=Tls(result="ok"),
    txn_resp_us=204_000,
    turns=Turns(count=1),
    prot_specific={"protocol": "http", "resp": 200},
)
REFUSED = GOOD._replace(
    state="failed",
    error="ECONNREFUSED",
    peer=None,
    sockconn_us=None,
    tls_us=None,
    tls=None,
    txn_resp_us=None,
    prot_specific=None,
    turns=None,
    attempts=(Attempt(raddr="192.0.2.7", result="refused", errno="ECONNREFUSED"),),
)


def rows(record, columns=130, *, colour=False):
    text = Table(colour=colour, size=lambda: (columns, 0)).render(record).decode()
    return text.splitlines()


def cells(record, columns=130):
    return re.split(r"\s{2,}", rows(record, columns)[1].strip())


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (0, "0µs"),
        (999, "999µs"),
        (1000, "1.00ms"),
        (9_994, "9.99ms"),
        (9_996, "10.0ms"),
        (99_949, "99.9ms"),
        (99_951, "100ms"),
        (999_499, "999ms"),
        (999_501, "1.00s"),
        (12_340_000, "12.3s"),
        (999_400_000, "999s"),
        (1_000_000_000, "17min"),
        (86_400_000_000, "24h"),
    ],
)
def test_latencies_have_three_figures_and_fit(us, shown):
    assert latency(us) == shown
    assert len(shown) <= 6


def test_a_row_says_who_where_how_long_and_what_came_of_it():
    header, row = rows(GOOD)
    assert header.split() == [
        *("TIME", "PROCESS", "TO", "DNS", "CONNECT", "TLS", "RESPONSE", "RESULT")
    ]
    assert "curl[4242]" in row
    assert "example.test:443" in row
    assert row.split()[-6:] == ["1.50ms", "850µs", "12.3ms", "204ms*", "HTTP", "200"]


def test_every_stage_that_is_slow_is_marked_and_the_one_that_dominates():
    row = rows(GOOD._replace(txn_resp_us=600_000, dns_us=100_000))[1]
    assert "600ms!" in row
    assert "100ms!" in row
    assert "12.3ms " in row
    assert "*" not in row


def test_nothing_is_marked_where_all_is_quick():
    row = rows(GOOD._replace(txn_resp_us=900, tls_us=1_000))[1]
    assert "*" not in row
    assert "!" not in row


@pytest.mark.parametrize("columns", range(1, 200))
def test_no_row_is_wider_than_the_terminal(columns):
    wide = GOOD._replace(
        comm="例え" * 20,
        host="例え." * 60,
        raddr="2001:db8:1111:2222:3333:4444:5555:6666",
        peer="2001:db8:1111:2222:3333:4444:5555:6666",
        attempts=(Attempt(result="refused"), Attempt(result="ok")),
    )
    for record in (GOOD, REFUSED, wide, wide._replace(host=None), Record()):
        for line in rows(record, columns):
            assert width(line) <= columns


@pytest.mark.parametrize("columns", [30, 50, 80, 100, 120, 150])
def test_columns_line_up_and_failures_say_why_at_every_width(columns):
    header, row = rows(REFUSED, columns)
    assert header.index("RESULT") == row.index("refused")


def test_a_name_or_address_that_is_too_long_keeps_its_port():
    for change in ({"host": "a" * 99}, {"host": None, "raddr": "2001:db8:1:2:3:4:5:6"}):
        assert "…:443 " in rows(GOOD._replace(**change), 80)[1]


def test_the_widest_form_has_the_peer_too():
    assert "192.0.2.7:443" in rows(GOOD, 150)[1]
    assert "192.0.2.7:443" not in rows(GOOD, 149)[1]


def test_a_stage_without_a_figure_tells_not_done_from_not_known():
    plain = GOOD._replace(tls=None, tls_us=None)
    assert rows(plain)[1].split()[-5:-2] == ["850µs", "-", "204ms*"]
    unmeasured = GOOD._replace(tls_us=None)
    assert rows(unmeasured)[1].split()[-5:-2] == ["850µs", "?", "204ms*"]
    literal = GOOD._replace(host=None, dns_us=None, dns_disp=0, dns_source="literal")
    assert rows(literal)[1].split()[3] == "-"
    unseen = GOOD._replace(host=None, dns_us=None, dns_disp=None, dns_source=None)
    assert rows(unseen)[1].split()[3] == "?"
    silent = GOOD._replace(txn_resp_us=None, turns=Turns(count=0), prot_specific=None)
    assert rows(silent)[1].split()[-2:] == ["-", "ok"]
    assert rows(REFUSED)[1].split()[-5:] == ["1.50ms", "-", "-", "-", "refused"]
    # nobody connects by datagrams, and a server neither looks up nor connects
    datagrams = plain._replace(transport="udp", sockconn_us=None, prot_specific=None)
    assert rows(datagrams)[1].split()[-6:-2] == ["1.50ms", "-", "-", "204ms*"]
    accepted = plain._replace(role="server", dns_us=None, dns_disp=None, sockconn_us=None)
    assert rows(accepted)[1].split()[3:7] == ["-", "-", "-", "204ms*"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "refused"),
        ({"error": "ETIMEDOUT"}, "timed out"),
        ({"error": "ENETUNREACH"}, "network unreachable"),
        ({"error": "EHOSTUNREACH"}, "host unreachable"),
        ({"error": "EAI_NONAME", "dns_disp": 3, "attempts": ()}, "name not found"),
        ({"error": "EAI_AGAIN", "dns_disp": 2, "attempts": ()}, "resolver unreachable"),
        ({"error": None, "dns_disp": 3, "attempts": ()}, "name not found"),
        ({"error": "EXDEV"}, "EXDEV"),
        ({"error": None}, "failed"),
        (
            {"error": "EPROTO", "tls": Tls(result="alert", alert="handshake_failure")},
            "TLS: handshake_failure",
        ),
        ({"error": "EPROTO", "tls": Tls(result="rejected")}, "TLS: certificate rejected"),
        ({"error": "EPROTO", "tls": Tls(result="closed")}, "TLS: closed in handshake"),
        ({"error": "ECONNRESET", "tls": Tls(result="reset")}, "TLS: reset in handshake"),
        ({"attempts": (Attempt(result="refused"),) * 2}, "refused (2 attempts)"),
        ({"error": "ENODATA", "tls": Tls(result="ok")}, "no answer"),
        ({"error": "ECANCELED"}, "given up"),
    ],
)
def test_a_failed_connection_says_why(change, words):
    assert outcome(REFUSED._replace(**change))[0] == words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "HTTP 200"),
        ({"prot_specific": None}, "ok"),
        ({"prot_specific": None, "state": "open"}, "open"),
        ({"prot_specific": None, "tls": Tls(result="unused")}, "TLS: not used"),
        ({"error": "ECONNRESET"}, "reset"),
        ({"attempts": (Attempt(result="refused"), Attempt(result="ok"))}, "HTTP 200 +1 attempt"),
        (
            {"attempts": (Attempt(result="timeout"),) * 2 + (Attempt(result="ok"),)},
            "HTTP 200 +2 attempts",
        ),
        ({"lost_before": True}, "HTTP 200 (events lost)"),
        ({"prot_specific": None, "transport": "quic"}, "ok quic"),
        ({"role": "server"}, "HTTP 200 accepted"),
    ],
)
def test_a_connection_that_was_made_says_what_came_of_it(change, words):
    assert outcome(GOOD._replace(**change))[0] == words


def test_colour_stands_in_for_marks_and_changes_no_width():
    plain = rows(GOOD._replace(txn_resp_us=600_000))[1]
    coloured = rows(GOOD._replace(txn_resp_us=600_000), colour=True)[1]
    assert "\x1b[1;31m" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "!" not in bare
    assert width(bare) == width(plain)
    assert "\x1b" not in plain


def test_an_open_connection_is_dimmed_and_a_failed_one_is_red():
    assert (
        "\x1b[2mopen\x1b[0m"
        in rows(GOOD._replace(state="open", prot_specific=None), colour=True)[1]
    )
    assert "\x1b[31mrefused\x1b[0m" in rows(REFUSED, colour=True)[1]


def test_names_that_strangers_chose_are_escaped():
    hostile = GOOD._replace(comm="\x1b[2J\u202e", host="a\x9bb\n", raddr=None, peer=None)
    _, row = rows(hostile)
    assert "\\x1b[2J" in row
    assert row.isprintable()


def test_the_header_comes_back_each_screenful_and_after_a_change_of_columns():
    size = [(100, 5)]
    table = Table(colour=False, size=lambda: size[0])
    headers = [table.render(GOOD).startswith(b"TIME") for _ in range(9)]
    assert headers == [True, False, False, False, True, False, False, False, True]
    size[0] = (79, 5)
    assert table.render(GOOD).startswith(b"PROCESS")
