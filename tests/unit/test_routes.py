"""monitor.kernel.routes: how the question is asked, what an answer means, and where it is asked.

The kernel's own answers are the business of tests/clients; here its side is a socket of this test.
"""

from __future__ import annotations

import errno
import os
import socket

import pytest

from monitor.kernel import routes
from monitor.kernel.routes import Way

HERE = os.stat("/proc/self/ns/net").st_ino
V4, V6 = bytes([192, 0, 2, 1]), bytes.fromhex("20010db8" + "0" * 23 + "1")
EVERYWHERE = bytes([255] * 4)


class Udp:
    """Stands for socket.socket: notes what is asked of it, and says what it was made with."""

    def __init__(self, *said: int, refuses: str = "") -> None:
        self.said = list(said)
        self.refuses = refuses
        self.calls: list[tuple[object, ...]] = []

    def __call__(self, family: int, kind: int) -> Udp:
        assert kind == socket.SOCK_DGRAM  # connecting it sends nothing
        self.calls.append(("socket", family))
        return self

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def setsockopt(self, *option: int) -> None:
        self.note("setsockopt", *option)

    def bind(self, address: tuple[object, ...]) -> None:
        self.note("bind", address)

    def connect(self, address: tuple[object, ...]) -> None:
        self.note("connect", address)
        number = self.said.pop(0)
        if number:
            raise OSError(number, os.strerror(number))

    def note(self, name: str, *args: object) -> None:
        if name == self.refuses:
            raise PermissionError(errno.EPERM, "not permitted")
        self.calls.append((name, *args))


def ask(monkeypatch: pytest.MonkeyPatch, udp: Udp, way: Way) -> int | None:
    monkeypatch.setattr(routes.socket, "socket", udp)
    return routes.connect_errno(way, HERE, ())


@pytest.mark.parametrize(
    ("address", "said", "expected"),
    [
        (V4, (errno.ENETUNREACH,), errno.ENETUNREACH),
        (V4, (errno.EACCES,), errno.EACCES),
        (V4, (0, 0), 0),
        (V6, (errno.EADDRNOTAVAIL,), errno.EADDRNOTAVAIL),
        (V6, (0,), 0),
        # TCP goes to one alone, and says so in its own words
        (EVERYWHERE, (0, errno.EACCES), errno.ENETUNREACH),
        (bytes([224, 0, 0, 5]), (0,), errno.ENETUNREACH),
        (bytes([224, 0, 0, 5]), (errno.EACCES,), errno.EACCES),
        (bytes.fromhex("ff02" + "0" * 27 + "1"), (), errno.ENETUNREACH),
        # said of this process
        (V4, (errno.EPERM,), None),
        (V4, (errno.EAGAIN,), None),
    ],
)
def test_what_an_answer_means(monkeypatch, address, said, expected) -> None:
    udp = Udp(*said)
    assert ask(monkeypatch, udp, Way(address, 443)) == expected
    assert udp.said == []


def test_the_question_is_the_one_that_connect_asked(monkeypatch) -> None:
    udp = Udp(errno.EHOSTUNREACH)
    source = bytes([192, 0, 2, 99])
    ask(monkeypatch, udp, Way(V4, 443, source, mark=7, interface=3))
    sol = socket.SOL_SOCKET
    assert ("setsockopt", sol, socket.SO_MARK, 7) in udp.calls
    assert ("setsockopt", sol, 62, 3) in udp.calls
    assert udp.calls[-2:] == [("bind", ("192.0.2.99", 0)), ("connect", ("192.0.2.1", 443))]
    udp = Udp(errno.EHOSTUNREACH)
    ask(monkeypatch, udp, Way(V6, 443, V6, interface=3))
    assert udp.calls[-2:] == [
        ("bind", ("2001:db8::1", 0, 0, 3)),
        ("connect", ("2001:db8::1", 443, 0, 3)),
    ]
    udp = Udp(errno.EHOSTUNREACH)
    ask(monkeypatch, udp, Way(V6, 443, bytes(16)))
    assert [call[0] for call in udp.calls] == ["socket", "connect"]


def test_a_question_that_cannot_be_asked_has_no_answer(monkeypatch) -> None:
    assert ask(monkeypatch, Udp(0, refuses="setsockopt"), Way(V4, 443, mark=7)) is None
    assert ask(monkeypatch, Udp(0, refuses="bind"), Way(V6, 443, V6)) is None


def test_a_namespace_that_nobody_is_in_any_more_gives_no_answer(monkeypatch) -> None:
    monkeypatch.setattr(routes.socket, "socket", None)  # and nothing is asked elsewhere
    before = len(os.listdir("/proc/self/fd"))
    assert routes.connect_errno(Way(V4, 443), 1, (os.getpid(), 0x7FFFFFFF)) is None
    assert len(os.listdir("/proc/self/fd")) == before
