"""The query socket's server and many clients: none is in another's way."""

from __future__ import annotations

import errno
import itertools
import json
import socket
import threading
import time

import pytest

from monitor.api import limits, server
from monitor.api.answer import Answer, Later, Stream, json_answer
from monitor.api.client import Client
from monitor.api.parameters import Filters
from monitor.api.server import Limits
from tests.unit.serving import ALICE, BOB, CAROL, WAIT_S, Peer, until


class Greedy:
    """A client's socket whose other end takes everything at once."""

    def __init__(self, sock):
        self._sock = sock

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def send(self, data):
        return len(data)

    def sendmsg(self, pieces):
        return sum(map(len, pieces))


def test_a_fast_reader_does_not_hold_up_others(service, monkeypatch):
    other = service.connect()
    until(lambda: service.server.open_clients == 1)
    with monkeypatch.context() as patch:
        patch.setattr(server, "Client", lambda sock, *rest: Client(Greedy(sock), *rest))
        fast = service.connect()
        until(lambda: service.server.open_clients == 2)
    made = answered_at = 0

    def long_answer():
        nonlocal made
        for made in range(1000):
            if made == 100:
                other.ask("/hello")
            yield b"x" * 32_768

    def hello():
        nonlocal answered_at
        answered_at = made
        return json_answer("hello")

    service.path("/long", lambda: Answer(200, long_answer()))
    service.path("/hello", hello)
    fast.ask("/long")
    assert other.answer()[0] == 200
    assert answered_at - 100 <= 2 * 8  # turns of 256 KB


def test_an_answer_whose_pieces_are_long_in_coming_does_not_hold_up_others(service):
    stop = threading.Event()

    def nothing_yet():
        while not stop.is_set():
            yield b""
        yield b"end"

    service.path("/filtered", lambda: Answer(200, nothing_yet()))
    slow = service.connect().ask("/filtered")
    assert service.connect().get("/hello")[0] == 200
    stop.set()
    assert slow.answer()[2] == b"end"


def test_too_many_requests(begin):
    service = begin(limits=Limits(rate=0.001))
    service.server._rates._rate = 2.0  # twice that at once
    peer = service.connect(ALICE)
    got = [peer.get("/hello") for _ in range(20)]
    assert [status for status, _, _ in got[:4]] == [200] * 4
    status, headers, body = got[-1]
    assert (status, headers["retry-after"]) == (429, "1")
    assert json.loads(body) == {"error": "too many requests", "status": 429}
    assert service.connect(BOB).get("/hello")[0] == 200
    root = service.connect()
    assert {root.get("/hello")[0] for _ in range(50)} == {200}


def refused(peer):
    status, headers, body = peer.answer()
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(body)["error"] == "too many clients are connected"
    return peer.ended()


def test_two_users_leave_room_for_root(begin):
    service = begin(limits=Limits(max_clients=16))
    for uid, most in ((ALICE, 8), (BOB, 5)):  # half; and but for root's two, and a scraper's one
        for _ in range(most):
            service.connect(uid)
        until(lambda: service.server._slots._by_uid[uid] == most)  # noqa: B023
        assert refused(service.connect(uid))
    assert refused(service.connect(CAROL))
    assert service.server.refused == 3
    roots = [service.connect() for _ in range(3)]
    assert [root.get("/hello")[0] for root in roots] == [200] * 3
    assert refused(service.connect())
    assert service.server.open_clients == 16


def test_who_is_turned_away_can_still_ask_and_is_told_why(begin, monkeypatch):
    monkeypatch.setattr(server, "_LINGER_S", WAIT_S)
    service = begin(limits=Limits(max_clients=1))
    service.connect(ALICE)
    peers = [service.connect(ALICE) for _ in range(20)]
    until(lambda: service.server.refused == 20)
    assert {peer.get("/hello")[0] for peer in peers[-16:]} == {503}
    assert peers[0].ended()  # so many linger, and no more


def test_the_longest_idle_makes_room(begin, monkeypatch):
    monkeypatch.setattr(limits, "_SETTLED_S", 0.0)
    service = begin(limits=Limits(max_clients=4))
    service.path("/stream", lambda: Stream(Filters(), live=False))
    alice = [service.connect(ALICE) for _ in range(2)]
    assert alice[0].get("/hello")[0] == 200  # so the other is idle for longer
    third = service.connect(ALICE)
    assert alice[1].ended()
    assert third.get("/hello")[0] == 200
    bob = service.connect(BOB).ask("/stream")
    assert bob.start()[0] == 200
    root = service.connect()
    assert root.get("/hello")[0] == 200
    carol = service.connect(CAROL)
    assert alice[0].ended()  # neither the stream nor root
    assert carol.get("/hello")[0] == 200
    assert service.server.refused == service.server.cut_off == 0


def test_scrapers_have_room_that_users_do_not_take(begin):
    service = begin(limits=Limits(max_clients=16), metrics_listen=("127.0.0.1", 0))
    address = service.server._listeners[1].getsockname()
    for uid in (ALICE, BOB):
        for _ in range(8):
            service.connect(uid)
    until(lambda: service.server.open_clients == 13)
    with socket.create_connection(address) as first, socket.create_connection(address) as second:
        assert Peer(first).get("/hello")[0] == 200
        assert refused(Peer(second))


# -- descriptors that run out -----------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_a_descriptor_it_rests_and_goes_on(begin, monkeypatch, code):
    monkeypatch.setattr(server, "_TICK_S", 0.05)
    service = begin()
    tries = []
    real = socket.socket.accept

    def accept(listener):
        if len(tries) == 3:
            return real(listener)
        tries.append(time.monotonic())
        raise OSError(code, "no more")

    monkeypatch.setattr(socket.socket, "accept", accept)
    assert service.connect().get("/hello")[0] == 200
    assert all(later - earlier >= 0.02 for earlier, later in itertools.pairwise(tries))
    assert len(service.said) == 1


def test_the_last_descriptors_are_the_daemon_s(service):
    served = service.connect()
    assert served.get("/hello")[0] == 200
    service.server._most_descriptors = 0
    assert refused(service.connect())
    assert served.get("/hello")[0] == 200
    service.server._most_descriptors = None
    assert service.connect().get("/hello")[0] == 200


# -- what takes long --------------------------------------------------------------------------


class Slow:
    """Questions to the disk, each answered when the test says so."""

    def __init__(self, service):
        self.started = []
        self.go = threading.Semaphore(0)
        self._service = service

    def ask(self, uid, name):
        self._service.path(f"/{name}", lambda: Later(lambda: self.find(name), slow=True))
        return self._service.connect(uid).ask(f"/{name}")

    def find(self, name):
        self.started.append(name)
        assert self.go.acquire(timeout=WAIT_S)
        return json_answer(name)


@pytest.fixture
def slow(service):
    slow = Slow(service)
    yield slow
    slow.go.release(100)


def test_nobody_waits_for_another_users_slow_questions(service, slow):
    alice = [slow.ask(ALICE, f"alice{n}") for n in range(3)]
    until(lambda: slow.started == ["alice0"])
    service.path("/take", lambda: Later(lambda: json_answer("taken")))
    for uid in (ALICE, BOB, 0):
        assert service.connect(uid).get("/take")[2] == b'"taken"\n'
    root = slow.ask(0, "root")
    until(lambda: slow.started == ["alice0", "root"])
    bob = slow.ask(BOB, "bob")
    until(lambda: service.routes.asked == 8)
    slow.go.release(5)
    assert root.answer()[2] == b'"root"\n'
    assert bob.answer()[2] == b'"bob"\n'
    assert [peer.answer()[0] for peer in alice] == [200] * 3
    # the one that came first of those who wait, then whoever has waited longest
    assert [name for name in slow.started if name != "root"] == [
        "alice0", "alice1", "bob", "alice2",
    ]  # fmt: skip


def test_a_user_has_few_slow_questions_waiting(service, slow):
    slow.ask(ALICE, "first")
    until(lambda: slow.started == ["first"])
    waiting = [slow.ask(ALICE, f"alice{n}") for n in range(4)]
    until(lambda: service.routes.asked == 5)
    refusal = slow.ask(ALICE, "too-many")
    status, headers, body = refusal.answer()
    assert (status, headers["retry-after"]) == (429, "1")
    assert json.loads(body)["status"] == 429
    assert refusal.get("/hello")[0] == 200
    slow.go.release(100)
    assert [peer.answer()[0] for peer in waiting] == [200] * 4
    assert [slow.ask(0, f"root{n}").answer()[0] for n in range(9)] == [200] * 9


@pytest.mark.parametrize("half_first", [False, True])
def test_nothing_is_found_for_who_has_left(service, slow, half_first):
    stays = slow.ask(ALICE, "first")
    until(lambda: slow.started == ["first"])
    for number in range(50):
        peer = slow.ask(ALICE, f"gone{number}")
        until(lambda: service.routes.asked == number + 2)  # noqa: B023
        if half_first:
            peer.sock.shutdown(socket.SHUT_WR)
        peer.leave()
        until(lambda: service.server.open_clients == 1)
    slow.go.release(100)
    assert stays.answer()[0] == 200
    assert slow.ask(ALICE, "last").answer()[0] == 200
    assert slow.started == ["first", "last"]


def test_what_is_not_in_memory_is_found_on_the_disk(service, slow):
    service.path("/take", lambda: Later(lambda: Later(lambda: slow.find("disk"), slow=True)))
    peer = service.connect(ALICE).ask("/take")
    until(lambda: slow.started == ["disk"])
    service.path("/quick", lambda: Later(lambda: json_answer(1)))
    assert service.connect(ALICE).get("/quick")[0] == 200
    slow.go.release()
    assert peer.answer()[2] == b'"disk"\n'
