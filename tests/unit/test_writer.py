"""The writer against real pipes, terminals, sockets and a full disk."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import select
import socket
import threading
import tty

import pytest

from monitor.cli import writer as writer_module
from monitor.cli.writer import LIMIT, LineWriter

LINE = b"x" * 999 + b"\n"


@pytest.fixture
def said():
    return []


@pytest.fixture
def pipe():
    ends = list(os.pipe())
    yield ends
    for fd in ends:
        if fd is not None:
            os.close(fd)


def read_available(fd):
    data = b""
    while select.select([fd], [], [], 0)[0]:
        chunk = os.read(fd, 1 << 20)
        if not chunk:
            break
        data += chunk
    return data


def test_lines_arrive_in_order_in_one_write_a_flush(pipe, said):
    out = LineWriter(pipe[1], said.append)
    for number in range(23):
        out.put(b"%d\n" % number)
    assert not select.select([pipe[0]], [], [], 0)[0]
    out.flush()
    assert read_available(pipe[0]) == b"".join(b"%d\n" % number for number in range(23))
    assert (out.dropped, out.wants_write, said) == (0, False, [])


def test_the_shared_description_stays_blocking(pipe, said):
    before = fcntl.fcntl(pipe[1], fcntl.F_GETFL)
    out = LineWriter(pipe[1], said.append)
    out.put(LINE)
    out.flush()
    assert fcntl.fcntl(pipe[1], fcntl.F_GETFL) == before
    assert not before & os.O_NONBLOCK


def test_a_stalled_reader_costs_whole_lines_and_never_time(pipe, said):
    out = LineWriter(pipe[1], said.append)
    sent = (LIMIT + (2 << 20)) // len(LINE)
    for number in range(sent):
        out.put(b"%08d" % number + LINE[8:])
    out.flush()
    assert out.wants_write
    assert out.dropped > 0
    assert said == []  # nobody to hear it yet

    data = b""
    while out.wants_write:
        data += read_available(pipe[0])
        out.flush()
    data += read_available(pipe[0])
    lines = data.splitlines()
    assert all(len(line) == len(LINE) - 1 for line in lines)
    assert [int(line[:8]) for line in lines] == list(range(sent - out.dropped))
    assert said == [f"stdout was stalled or full: {out.dropped} records were dropped"]

    out.put(LINE)
    out.flush()
    assert read_available(pipe[0]) == LINE
    out.close()
    assert len(said) == 1


def test_what_waits_at_the_end_is_counted_and_said(pipe, said):
    out = LineWriter(pipe[1], said.append)
    sent = (2 << 20) // len(LINE)
    for _ in range(sent):
        out.put(LINE)
    out.close(patience_s=0)
    arrived = len(read_available(pipe[0])) // len(LINE)
    assert 0 < out.dropped == sent - arrived
    assert said == [f"stdout was stalled or full: {out.dropped} records were dropped"]


def test_the_end_waits_for_a_slow_reader(pipe, said):
    out = LineWriter(pipe[1], said.append)
    sent = (3 << 20) // len(LINE)
    for _ in range(sent):
        out.put(LINE)
    arrived = []

    def drain():
        total = 0
        while total < sent * len(LINE):
            total += len(os.read(pipe[0], 1 << 16))
        arrived.append(total)

    reader = threading.Thread(target=drain)
    reader.start()
    out.close(patience_s=60)
    reader.join(60)
    assert arrived == [sent * len(LINE)]
    assert said == []


def test_a_reader_that_goes_away_closes_quietly(pipe, said):
    out = LineWriter(pipe[1], said.append)
    os.close(pipe[0])
    pipe[0] = None
    out.put(LINE)
    out.flush()
    assert out.closed
    assert (out.dropped, out.wants_write, out.fileno(), said) == (0, False, None, [])
    out.put(LINE)
    out.close()
    assert said == []


def test_a_reader_that_goes_away_is_noticed_without_a_record(pipe, said):
    out = LineWriter(pipe[1], said.append)
    out.flush()
    assert not out.closed
    os.close(pipe[0])
    pipe[0] = None
    with select.epoll() as epoll:
        epoll.register(out.fileno(), 0)
        assert epoll.poll(1)
    out.flush()
    assert out.closed


def test_a_terminal_on_hold_and_one_that_hangs_up(said):
    master, slave = pty.openpty()
    tty.setraw(slave)
    out = LineWriter(slave, said.append)
    for _ in range(200):
        out.put(LINE)
    out.flush()
    assert out.wants_write
    assert read_available(master)
    os.close(master)
    out.flush()
    assert out.closed
    out.close()
    os.close(slave)
    assert said == []


def test_a_socket_that_nobody_reads(said):
    ours, theirs = socket.socketpair()
    out = LineWriter(ours.fileno(), said.append)
    for _ in range(2000):
        out.put(LINE)
    out.flush()
    assert out.wants_write
    theirs.close()
    out.flush()
    assert out.closed
    ours.close()


def test_a_full_file_is_said_once_and_goes_on_untorn(tmp_path, said):
    # The limit stands in for a full disk: same short write, then the same kind of error.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(tmp_path / "records", "wb") as file:
        out = LineWriter(file.fileno(), said.append)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
        try:
            for _ in range(4):
                out.put(LINE)
                out.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert said == ["cannot write to stdout: File too large; monitoring goes on"]
        assert not out.closed
        assert not out.wants_write
        out.put(LINE)
        out.flush()
        out.close()
    assert (tmp_path / "records").read_bytes() == LINE * 5
    assert len(said) == 1


def test_dev_full_is_said_and_is_no_end(said):
    with open("/dev/full", "wb") as file:
        out = LineWriter(file.fileno(), said.append)
        out.put(LINE)
        out.flush()
        out.flush()
        assert not out.closed
        out.close()
    assert said == [
        "cannot write to stdout: No space left on device; monitoring goes on",
        "stdout was stalled or full: 1 record was dropped",
    ]


def test_dev_null_has_nothing_to_watch(said):
    with open(os.devnull, "wb") as file:
        out = LineWriter(file.fileno(), said.append)
        assert out.fileno() is None
        for _ in range(5000):
            out.put(LINE)
        out.close()
    assert (out.dropped, said) == (0, [])


def test_without_proc_a_shared_pipe_is_still_never_waited_for(pipe, said, monkeypatch):
    def refuse(*_):
        raise FileNotFoundError

    monkeypatch.setattr(writer_module.os, "open", refuse)
    out = LineWriter(pipe[1], said.append)
    for _ in range(2000):
        out.put(LINE)
    out.flush()
    assert out.wants_write
    assert read_available(pipe[0])
