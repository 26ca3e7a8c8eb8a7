"""What systemd is told."""

from __future__ import annotations

import os
import socket

import pytest

from monitor.service import Service


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def test_it_is_told_what_happens(systemd):
    sock, environment = systemd
    service = Service(environment)
    service.ready()
    service.status("two\nlines")
    service.alive(0)  # no watchdog was asked for
    service.stopping()
    assert [sock.recv(99) for _ in range(3)] == [b"READY=1", b"STATUS=two lines", b"STOPPING=1"]


def test_the_watchdog_is_fed_twice_in_its_time(systemd):
    sock, environment = systemd
    service = Service(environment | {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())})
    for moment_ns in range(10**9, 4 * 10**9, 10**8):
        service.alive(moment_ns)
    assert [sock.recv(99) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    with pytest.raises(BlockingIOError):
        sock.recv(99)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"},
    ],
)
def test_nobody_there_is_no_error(environment):
    service = Service(environment)
    service.ready()
    service.alive(1)
    assert service.watchdog_ns is None
