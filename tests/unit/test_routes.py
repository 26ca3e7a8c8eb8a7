"""monitor.kernel.routes: what an answer of the routing table means, and where it is asked.

The kernel's own answers are the business of tests/kernel; here its side is a socket of this test.
"""

from __future__ import annotations

import os
import socket
import struct

import pytest

from monitor.kernel import routes

ERROR, NEWROUTE = 2, 24
V4, V6 = bytes([192, 0, 2, 1]), bytes.fromhex("20010db8" + "0" * 23 + "1")


class Netlink:
    """Stands for socket.socket: notes the question, gives the answer it was made with."""

    def __init__(self, answer: bytes | OSError) -> None:
        self.answer = answer
        self.asked = b""

    def __call__(self, family: int, *_: int) -> Netlink:
        assert family == socket.AF_NETLINK
        return self

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 1  # the daemon waits here

    def send(self, data: bytes) -> None:
        self.asked = data

    def recv(self, _: int) -> bytes:
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def error(number: int) -> bytes:
    return struct.pack("=IHHIIi", 36, ERROR, 0, 1, 0, -number) + bytes(16)


def route(kind: int) -> bytes:
    return struct.pack("=IHHII", 28, NEWROUTE, 0, 1, 0) + struct.pack("=8BI", 2, *[0] * 6, kind, 0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error(101), 101),
        (error(113), 113),
        (error(0), 0),
        (route(1), 0),
        (route(6), 22),
        (route(7), 113),
        (route(8), 13),
        (b"", None),
        (b"\0" * 19, None),
        (TimeoutError(), None),
        (PermissionError(), None),
    ],
)
def test_what_an_answer_means(monkeypatch, answer, expected) -> None:
    monkeypatch.setattr(routes.socket, "socket", Netlink(answer))
    here = os.stat("/proc/self/ns/net").st_ino
    assert routes.connect_errno(socket.AF_INET, V4, here, ()) == expected


@pytest.mark.parametrize(("family", "address"), [(2, V4), (10, V6)])
def test_the_question_names_the_whole_address(monkeypatch, family, address) -> None:
    netlink = Netlink(error(101))
    monkeypatch.setattr(routes.socket, "socket", netlink)
    routes.connect_errno(family, address, os.stat("/proc/self/ns/net").st_ino, ())
    size, kind, flags, _, _ = struct.unpack_from("=IHHII", netlink.asked)
    assert (size, kind, flags) == (len(netlink.asked), 26, 1)
    assert netlink.asked[16:18] == bytes([family, len(address) * 8])
    assert struct.unpack_from("=HH", netlink.asked, 28) == (4 + len(address), 1)
    assert netlink.asked[32:] == address


def test_a_namespace_that_nobody_is_in_any_more_gives_no_answer(monkeypatch) -> None:
    monkeypatch.setattr(routes.socket, "socket", None)  # and nothing is asked elsewhere
    before = len(os.listdir("/proc/self/fd"))
    assert routes.connect_errno(2, V4, 1, (os.getpid(), 0x7FFFFFFF)) is None
    assert len(os.listdir("/proc/self/fd")) == before
