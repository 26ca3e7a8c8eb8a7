"""The query socket's server and one client: requests, answers, lines, time."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import deque

import pytest

from conmon import Record
from monitor.api import server
from monitor.api.answer import Answer, Feed, Later, Stream, json_answer
from monitor.api.parameters import Filters
from monitor.api.server import Limits
from tests.unit.serving import ALICE, WAIT_S, until

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
