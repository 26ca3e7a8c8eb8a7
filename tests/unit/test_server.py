"""The query socket's server: many clients on a Unix socket, and answers of this test's own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque

import pytest

from conmon import Record
from monitor.api import limits, server
from monitor.api.access import Asker
from monitor.api.answer import Answer, Feed, Later, Stream, error, json_answer
from monitor.api.client import Client
from monitor.api.parameters import Filters
from monitor.api.server import Limits, Server

WAIT_S = 10.0
ALICE, BOB, CAROL = 1001, 1002, 1003


class Peer:
    """The other end: sends what it is told and reads HTTP."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(WAIT_S)
        self.unread = b""

    def ask(self, target, method="GET", version="1.1"):
        self.sock.sendall(f"{method} {target} HTTP/{version}\r\nHost: c\r\n\r\n".encode())
        return self

    def get(self, target, method="GET"):
        return self.ask(target, method).answer(head=method == "HEAD")

    def answer(self, *, head=False):
        """Status, headers, body."""
        status, headers = self.start()
        if head:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            pieces = list(iter(self.chunk, b""))
            return status, headers, b"".join(pieces)
        return status, headers, self.read(int(headers["content-length"]))

    def start(self):
        first, *lines = self.line(b"\r\n\r\n").decode().split("\r\n")
        return int(first.split()[1]), {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
        }

    def chunk(self):
        data = self.read(int(self.line(b"\r\n"), 16))
        assert self.read(2) == b"\r\n"
        return data

    def line(self, end):
        while end not in self.unread:
            self.more()
        line, _, self.unread = self.unread.partition(end)
        return line

    def read(self, size):
        while len(self.unread) < size:
            self.more()
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    def more(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError
        self.unread += data

    def ended(self):
        """Whether it was closed, after what it was told."""
        try:
            while data := self.sock.recv(1 << 16):
                self.unread += data
        except ConnectionError:
            pass
        return True

    def leave(self):
        self.sock.close()


class Answers:
    """Stands for the routes: what a path is answered with."""

    def __init__(self):
        self.by_path = {"/hello": lambda: json_answer({"hello": 1})}
        self.asked = 0

    def reply(self, method, target, asker):
        self.asked += 1
        if method not in ("GET", "HEAD"):
            return error(405, "not so")
        return self.by_path[target]()


class Service:
    """A server that runs, whose clients are of whatever uid the test says."""

    def __init__(self, path, askers, **options):
        self.routes = Answers()
        self.said = []
        self._askers = askers
        self._peers = []
        self.server = Server(
            path,
            self.routes,
            lambda record: json.dumps({"comm": record.comm}).encode() + b"\n",
            group=None,
            say=self.said.append,
            **{"limits": Limits(), **options},
        )
        self.server.start()

    def connect(self, uid=0):
        self._askers.append(Asker(uid, sees_all=uid == 0))
        sock = socket.socket(socket.AF_UNIX)
        self._peers.append(sock)
        sock.settimeout(WAIT_S)
        sock.connect(self.server.path)
        until(lambda: not self._askers)
        return Peer(sock)

    def path(self, name, make):
        self.routes.by_path[name] = make

    def close(self):
        for sock in self._peers:
            sock.close()
        if os.path.exists(self.server.path):
            self.server.close()


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


@pytest.fixture
def begin(tmp_path, monkeypatch):
    askers = deque()
    monkeypatch.setattr(server, "who_asks", lambda sock, group: askers.popleft())
    monkeypatch.setattr(server, "_TICK_S", 0.02)
    monkeypatch.setattr(server, "_LINGER_S", 0.02)
    with contextlib.ExitStack() as stack:

        def begin(**options):
            service = Service(str(tmp_path / "s"), askers, **options)
            stack.callback(service.close)
            return service

        yield begin


@pytest.fixture
def service(begin):
    return begin()


# -- one client -------------------------------------------------------------------------------


def test_questions_one_after_the_other(service):
    peer = service.connect()
    for _ in range(3):
        status, headers, body = peer.get("/hello")
        assert (status, headers["content-type"], body) == (
            200,
            "application/json",
            b'{"hello":1}\n',
        )
    assert service.server.open_clients == 1


def pieces():
    return Answer(200, iter([b"a", b"", b"b" * 70_000, b"c"]))


@pytest.mark.parametrize(
    ("make", "headers"),
    [
        (lambda: json_answer([1, 2]), {"content-length": "6"}),
        (pieces, {"transfer-encoding": "chunked"}),
        (lambda: Later(lambda: json_answer(1)), {"content-length": "2"}),
        (lambda: Stream(Filters(), live=False), {"content-type": "application/x-ndjson"}),
        (lambda: Later(Feed), {"content-type": "application/x-ndjson"}),
        (lambda: 1 // 0, {"content-type": "application/json"}),
    ],
)
def test_head_has_the_headers_alone(service, make, headers):
    service.path("/it", make)
    peer = service.connect()
    for _ in range(2):
        status, got, _ = peer.get("/it", "HEAD")
        assert status in (200, 500)
        assert headers.items() <= got.items()
    assert peer.get("/hello")[0] == 200
    assert not service.server.streaming


def test_head_of_too_many_requests(begin):
    service = begin(limits=Limits(rate=0.001))
    status, headers, _ = service.connect(ALICE).get("/hello", "HEAD")
    assert (status, headers["retry-after"]) == (429, "1")
    assert service.connect().get("/hello")[0] == 200


@pytest.mark.parametrize("count", [500, 5000])
def test_many_requests_in_one_packet_are_all_answered(service, count):
    numbers = iter(range(count))
    service.path("/n", lambda: json_answer(next(numbers)))
    peer = service.connect()
    threading.Thread(
        target=peer.sock.sendall, args=(b"GET /n HTTP/1.1\r\nHost:c\r\n\r\n" * count,), daemon=True
    ).start()
    for number in range(count):
        assert peer.answer()[2] == b"%d\n" % number


def test_who_asks_on_without_reading_is_not_read(service):
    service.path("/much", lambda: json_answer("x" * 30_000))
    peer = service.connect()
    peer.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        peer.sock.sendall(b"GET /much HTTP/1.1\r\nHost: c\r\n\r\n" * 100_000)
    assert service.routes.asked < 100  # what a socket's buffer holds
    (client,) = service.server._clients.values()
    assert client.waiting < 64 << 10
    assert service.connect().get("/hello")[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"HELLO\r\n\r\n", 400),
        (b"POST /hello HTTP/1.1\r\nHost: c\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"GET / HTTP/1.1\r\nHost: c\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused(service, sent, status):
    peer = service.connect()
    peer.sock.sendall(sent)
    assert peer.answer()[0] == status
    assert peer.ended()


@pytest.mark.parametrize(
    "asked",
    [
        b"CONNECT /hello HTTP/1.1\r\nHost: c\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: c\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: c\r\nExpect: 100-continue\r\n\r\n",
        b"GET /hello HTTP/1.0\r\n\r\n",
        b"HEAD /hello HTTP/1.0\r\n\r\n",
        b"HEAD /hello HTTP/1.1\r\nHost: c\r\nContent-Length: 2\r\n\r\nab",
        b"HEAD /hello HTTP/1.1\r\nHost: c\r\n\r\nnonsense\r\n\r\n",
    ],
)
def test_the_server_goes_on_after_a_strange_request(service, asked):
    peer = service.connect()
    peer.sock.sendall(asked)
    peer.start()
    peer.leave()
    assert service.connect().get("/hello")[0] == 200
    assert service.said == []


def test_a_fault_ends_its_client_alone_and_is_said_once(service):
    service.path("/bad", lambda: Answer(200, b"", headers=(("X", "a\nb"),)))
    other = service.connect()
    for _ in range(3):
        assert service.connect().ask("/bad").ended()
        assert other.get("/hello")[0] == 200
    assert len(service.said) == 1
    assert "LocalProtocolError" in service.said[0]
    assert service.server.cut_off == 3
    assert service.server.open_clients == 1


def test_a_route_that_fails_is_500_and_said_once(service):
    service.path("/bad", lambda: 1 // 0)
    service.path("/late", lambda: Later(lambda: 1 // 0))
    peer = service.connect()
    for path in ("/bad", "/bad", "/late", "/late"):
        status, _, body = peer.get(path)
        assert (status, json.loads(body)["status"]) == (500, 500)
    assert len(service.said) == 2


def test_an_answer_that_fails_half_way_is_not_taken_for_whole(service):
    def half():
        yield b"begin"
        raise RuntimeError("no more")

    service.path("/half", lambda: Answer(200, half()))
    with pytest.raises(EOFError):
        service.connect().get("/half")
    assert service.connect().get("/hello")[0] == 200


def test_who_stopped_sending_still_gets_the_answers(service):
    service.path("/late", lambda: Later(pieces))
    peer = service.connect().ask("/hello").ask("/late").ask("/hello")
    peer.sock.shutdown(socket.SHUT_WR)
    assert [len(peer.answer()[2]) for _ in range(3)] == [12, 70_002, 12]
    assert peer.ended()


def test_closing_ends_the_threads_and_removes_the_socket(begin):
    before = set(threading.enumerate())
    service = begin()
    service.path("/late", lambda: Later(lambda: json_answer(1)))
    assert service.connect().get("/late")[0] == 200
    service.server.close()
    assert not os.path.exists(service.server.path)
    assert set(threading.enumerate()) <= before


# -- time -------------------------------------------------------------------------------------


def test_half_a_request_is_refused_in_time(service, monkeypatch):
    monkeypatch.setattr(server, "_REQUEST_S", 0.05)
    peer = service.connect()
    peer.sock.sendall(b"GET /hel")
    assert peer.answer()[0] == 408
    assert peer.ended()


def test_an_idle_client_is_closed_without_a_word(service, monkeypatch):
    monkeypatch.setattr(server, "_IDLE_S", 0.05)
    peer = service.connect()
    assert peer.get("/hello")[0] == 200
    assert peer.ended()
    assert peer.unread == b""
    assert service.server.cut_off == 0


def test_a_stalled_reader_is_cut_off(service, monkeypatch):
    monkeypatch.setattr(server, "_STALL_S", 0.2)
    service.path("/long", lambda: Answer(200, (b"x" * 65_536 for _ in range(1000))))
    peer = service.connect().ask("/long")
    until(lambda: service.server.cut_off == 1)
    assert peer.ended()
    assert len(peer.unread) < 2 << 20
    assert service.connect().get("/hello")[0] == 200


# -- many clients -----------------------------------------------------------------------------


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


# -- lines as they come -----------------------------------------------------------------------


def publish(service, comm, state="closed"):
    service.server.publish(Record(comm=comm, state=state))
    service.server.flush()


def test_streams_get_what_they_ask_for(service):
    service.path("/all", lambda: Stream(Filters(), live=True))
    service.path("/curl", lambda: Stream(Filters(comm="curl"), live=False))
    every, curl = service.connect().ask("/all"), service.connect().ask("/curl")
    for peer in (every, curl):
        assert peer.start()[1]["content-type"] == "application/x-ndjson"
    assert service.server.streaming and service.server.streaming_live
    for comm, state in (("wget", "closed"), ("curl", "open"), ("curl", "failed")):
        publish(service, comm, state)
    assert [json.loads(every.chunk())["comm"] for _ in range(3)] == ["wget", "curl", "curl"]
    assert curl.chunk() == b'{"comm": "curl"}\n'
    every.leave()
    until(lambda: not service.server.streaming_live)
    curl.leave()
    until(lambda: not service.server.streaming)


def test_a_quiet_stream_has_a_heartbeat(service, monkeypatch):
    monkeypatch.setattr(server, "_HEARTBEAT_S", 0.05)
    service.path("/all", lambda: Stream(Filters(), live=False))
    peer = service.connect().ask("/all")
    peer.start()
    assert [peer.chunk() for _ in range(3)] == [b"\n"] * 3


def test_a_stream_that_is_not_read_is_cut_off_alone(service):
    service.path("/all", lambda: Stream(Filters(), live=False))
    stalled, reader = service.connect().ask("/all"), service.connect().ask("/all")
    for peer in (stalled, reader):
        peer.start()
    got = []
    drain = threading.Thread(target=lambda: got.extend(reader.chunk() for _ in range(3000)))
    drain.start()
    for number in range(3000):
        publish(service, f"{number:1000}")
        until(lambda: len(got) > number - 100)  # noqa: B023
    drain.join(WAIT_S)
    assert len(got) == 3000
    assert service.server.cut_off == 1
    assert stalled.ended()


def test_records_that_no_stream_could_get_end_the_streams(service, monkeypatch):
    monkeypatch.setattr(server, "_PENDING_RECORDS", 4)
    service.path("/all", lambda: Stream(Filters(), live=False))
    peer = service.connect().ask("/all")
    peer.start()
    service.server._published = deque(maxlen=4)
    for number in range(6):
        service.server.publish(Record(comm=str(number), state="closed"))
    service.server.flush()
    assert peer.ended()
    assert service.server.cut_off == 1


def test_a_feed_brings_its_lines_and_ends(service):
    feed = Feed()
    service.path("/deep", lambda: Later(lambda: feed))
    feed.put(b"1\n")
    peer = service.connect().ask("/deep")
    assert peer.start()[0] == 200
    assert peer.chunk() == b"1\n"
    feed.put(b"2\n")
    assert peer.chunk() == b"2\n"
    feed.put(b"3\n")
    feed.end()
    assert (peer.chunk(), peer.chunk()) == (b"3\n", b"")
    assert peer.get("/hello")[0] == 200


def test_a_feed_is_told_that_its_reader_left(service):
    feed = Feed()
    service.path("/deep", lambda: Later(lambda: feed))
    peer = service.connect().ask("/deep")
    peer.start()
    peer.leave()
    until(lambda: feed.closed)


def test_a_feed_that_is_not_read_is_cut_off(service):
    feed = Feed()
    service.path("/deep", lambda: Later(lambda: feed))
    peer = service.connect().ask("/deep")
    peer.start()
    for _ in range(3000):
        feed.put(b"x" * 1000 + b"\n")
    until(lambda: feed.closed)
    assert service.server.cut_off == 1
    assert peer.ended()
