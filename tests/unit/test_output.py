"""The JSON and lws lines, the sinks, and what the terminal's size is taken to be."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest

from conmon.record import Attempt, Record, Tcp, Tls, Turns
from monitor.cli import output

FULL = Record(
    id="5f1e2a-1234",
    start="2026-11-23T22:00:00.000123Z",
    state="closed",
    pid=4242,
    comm="curl",
    host="example.test",
    raddr="2001:db8::7",
    rport=443,
    peer="2001:db8::7",
    dns=("2001:db8::7", "192.0.2.7"),
    dns_us=1501,
    dns_disp=1,
    sockconn_us=2502,
    attempts=(Attempt(raddr="2001:db8::7", rport=443, us=2502, offset_us=0, result="ok"),),
    tls_us=3503,
    tls=Tls(source="openssl", version="TLSv1.3", alpn=("h2", "http/1.1")),
    txn_resp_us=4504,
    turns=Turns(count=1, sum_us=4504, max_us=4504),
    prot_specific={"protocol": "http", "resp": 200},
    tcp=Tcp(rtt_us=900, bytes_received=17),
)


def test_json_is_one_line_that_reads_back_the_same():
    line = output.json_line(FULL)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert Record.from_json(line) == FULL


@pytest.mark.parametrize(
    "comm", ["\x1b]0;x\x07", "\x7f", "\x9b31m", "a\u202eb", "\udcff", "é", "\n"]
)
def test_json_is_printable_ascii_whatever_a_process_calls_itself(comm):
    line = output.json_line(FULL._replace(comm=comm))
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line)["comm"] == comm


def test_lws_has_its_own_keys_alone_with_zeros_for_the_unknown():
    line = output.lws_line(FULL._replace(tls_us=None))
    assert line.count(b"\n") == 1
    data = json.loads(line)
    assert list(data) == [
        "peer",
        "dns_us",
        "dns_disp",
        "sockconn_us",
        "tls_us",
        "txn_resp_us",
        "dns",
        "prot_specific",
    ]
    assert (data["dns_us"], data["sockconn_us"], data["tls_us"]) == (1501, 2502, 0)


@pytest.mark.parametrize(
    ("form", "begins"), [("json", b'{"v":1,'), ("lws", b'{"peer":'), ("table", b"TIME ")]
)
def test_each_form_reaches_the_descriptor(form, begins):
    reading, writing = os.pipe()
    with output.open_sink(form, writing) as sink:
        sink.write(FULL)
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read().startswith(begins)


def test_quiet_prints_nothing():
    reading, writing = os.pipe()
    with output.open_sink("quiet", writing) as sink:
        sink.write(FULL)
        sink.flush()
        assert (sink.fileno(), sink.closed, sink.wants_write, sink.dropped) == (
            None,
            False,
            False,
            0,
        )
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b""


def test_said_sentences_are_escaped(capsys):
    output.say("cannot read /tmp/\x1b[2J\n")
    assert capsys.readouterr().err == "conmond: cannot read /tmp/\\x1b[2J\\x0a\n"


@pytest.mark.parametrize(
    ("columns", "expected"), [("77", (77, 0)), ("", (120, 0)), ("x", (120, 0))]
)
def test_without_a_terminal_columns_decide_the_width(monkeypatch, columns, expected):
    monkeypatch.setenv("COLUMNS", columns)
    reading, writing = os.pipe()
    assert output.terminal_size(writing) == expected
    os.close(reading)
    os.close(writing)


def test_a_line_holds_no_more_memory_than_it_is_long():
    # thousands wait for the history at a time, and orjson's own bytes hold 16 KB each
    record = Record(id="0-1", comm="curl")
    output.json_line(record)
    tracemalloc.start()
    try:
        lines = [output.json_line(record) for _ in range(100)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * sum(map(len, lines))
