"""monitor.wire.http2 against bytes of another implementation of HTTP/2 (h2, sans-IO)."""

from __future__ import annotations

import random

import h2.config
import h2.connection
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.wire.http2 import PREFACE, Http2, Piece, Reader, analyze

REQUEST = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")]


def conversation(*statuses: str, big: int = 0) -> tuple[bytes, bytes]:
    """What a client and a server send, one stream after another."""
    client = h2.connection.H2Connection()
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    sent, received = client.data_to_send(), server.data_to_send()
    server.receive_data(sent)
    client.receive_data(received)
    for number, status in enumerate(statuses):
        stream = 2 * number + 1
        fields = [*REQUEST, *((f"x-{i}", "y" * 110) for i in range(big))]
        client.send_headers(stream, fields, end_stream=True)
        data = client.data_to_send()
        server.receive_data(data)
        sent += data
        if status == "103":
            server.send_headers(stream, [(":status", "103")])
            status = "204"
        server.send_headers(stream, [(":status", status)], end_stream=True)
        data = server.data_to_send()
        client.receive_data(data)
        received += data
    return sent, received


def pieces(data: bytes, size: int, begin_us: int, seq: int = 0xFFFFFFF0) -> list[Piece]:
    return [
        Piece(begin_us + at, (seq + at) & 0xFFFFFFFF, data[at : at + size])
        for at in range(0, len(data), size)
    ]


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
@pytest.mark.parametrize("status", ["200", "404", "103"])
def test_method_status_and_times(status, size):
    sent, received = conversation(status, "500")
    seen = analyze(pieces(sent, size, 1000), pieces(received, size, 50_000))
    assert (seen.method, seen.status) == ("GET", 204 if status == "103" else int(status))
    # the frame's own packet, after SETTINGS
    if size == 1:
        assert seen.request_us > 1000 + len(PREFACE)
        assert seen.response_us > 50_000
    assert seen.prot_specific()["version"] == "2"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


HEADERS, SETTINGS, CONTINUATION, END = 1, 4, 9, 4
GET, OK = b"\x82\x84\x86\x41\x01a", b"\x88"


def read(sent: bytes, received: bytes) -> Http2:
    return analyze([Piece(0, 0, PREFACE + sent)], [Piece(10, 0, received)])


def test_a_block_in_several_frames():
    sent = frame(HEADERS, 0, 1, GET[:2]) + frame(CONTINUATION, 0, 1, GET[2:5])
    sent += frame(CONTINUATION, END, 1, GET[5:])
    seen = read(sent, frame(HEADERS, 0, 1) + frame(CONTINUATION, END, 1, OK))
    assert (seen.method, seen.status) == ("GET", 200)


@pytest.mark.parametrize(
    "between",
    [
        frame(SETTINGS, 0, 0),
        frame(HEADERS, END, 3, GET),
        frame(CONTINUATION, END, 3, b"\x84"),
    ],
)
def test_only_its_own_continuation_follows_a_block_that_has_not_ended(between):
    sent = frame(HEADERS, 0, 1, GET) + between + frame(CONTINUATION, END, 1)
    assert read(sent, frame(HEADERS, END, 1, OK)) == Http2()


def test_a_continuation_of_nothing_ends_what_is_read():
    sent = frame(HEADERS, END, 1, GET)
    assert read(sent, frame(CONTINUATION, END, 1, OK)).status is None
    assert read(frame(CONTINUATION, END, 1, GET), frame(HEADERS, END, 1, OK)) == Http2()


def test_a_block_is_read_once_however_often_it_is_continued():
    sent = frame(HEADERS, 0, 1, GET) + frame(CONTINUATION, END, 1, b"\x90") * 200
    seen = read(sent, frame(HEADERS, END, 1, OK))
    assert (seen.method, seen.status) == ("GET", 200)  # the request stands; its direction is over


def test_a_server_that_sets_the_tables_size_first():
    # for a client that lets it keep 65,536, as Firefox and Chrome do; then literal 302, indexed
    received = frame(HEADERS, END, 1, bytes.fromhex("3fe1ff0348826402"))
    received += frame(HEADERS, END, 3, b"\xbe")
    seen = read(frame(HEADERS, END, 1, GET) + frame(HEADERS, END, 3, GET), received)
    assert seen.status == 302
    assert seen.turns_us == (10, 10)


def test_interim_answers_are_no_answer():
    seen = read(frame(HEADERS, END, 1, GET), frame(HEADERS, END, 1, b"\x08\x03103"))
    assert (seen.status, seen.response_us, seen.prot_specific()) == (None, None, None)


def test_an_answer_that_was_told_of_before_its_request():
    reader = Reader()
    assert reader.add(Piece(50, 0, frame(HEADERS, END, 1, OK)), received=True)
    assert reader.seen() == Http2()
    assert not reader.add(Piece(10, 0, PREFACE), received=False)
    assert reader.add(Piece(20, 24, frame(HEADERS, END, 1, GET)), received=False)
    assert (reader.seen().status, reader.seen().response_us) == (200, 50)


def test_what_is_cut_or_has_a_gap_is_not_known():
    sent, received = conversation("200")
    whole = pieces(sent, 9, 0)
    assert analyze(whole[:5], pieces(received, 99, 0)) == Http2()
    assert analyze(whole[:4] + whole[5:], pieces(received, 99, 0)) == Http2()
    cut = analyze(whole, pieces(received[:20], 99, 0))
    assert (cut.method, cut.status, cut.prot_specific()) == ("GET", None, None)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_read_or_not_but_never_raise(sent, received):
    analyze([Piece(0, 0, PREFACE + sent)], [Piece(0, 0, received)])


def test_damaged_bytes_never_raise():
    whole = conversation("200", "404")
    chance = random.Random(3)
    for _ in range(3_000):
        sent, received = (bytearray(data) for data in whole)
        for data in (sent, received):
            for _ in range(chance.randrange(4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        analyze([Piece(0, 0, bytes(sent))], [Piece(0, 0, bytes(received))])


def test_each_stream_is_a_turn_while_all_of_it_is_handed_over():
    sent, received = conversation("200", "103", "500")
    seen = analyze(pieces(sent, 5000, 0), pieces(received, 5000, 30_000))
    assert seen.turns_us == (30_000,) * 3
    # after 2 KB the kernel side counts
    sent, received = conversation("200", "404", big=20)
    assert len(sent) > 2048
    assert analyze(pieces(sent, 9000, 0), pieces(received, 5000, 30_000)).turns_us == ()
    assert analyze(pieces(sent, 9000, 0), pieces(received, 5000, 30_000)).status == 200


def test_every_small_answer_of_grpc_is_a_turn_while_all_of_it_is_handed_over():
    call = [("grpc-method", "/a.B/C"), ("content-type", "application/grpc"), ("te", "trailers")]
    client = h2.connection.H2Connection()
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    client.initiate_connection()
    server.initiate_connection()
    reader = Reader()
    read = {False: 0, True: 0}
    calls = 0

    def move(sender, receiver, *, received: bool) -> bool:
        data = sender.data_to_send()
        receiver.receive_data(data)
        reader.add(Piece(10 * calls + received, read[received], data), received=received)
        read[received] += len(data)
        return read[received] < 2048

    assert move(client, server, received=False) and move(server, client, received=True)
    while True:
        stream = 2 * calls + 1
        client.send_headers(stream, [*REQUEST, *call])
        client.send_data(stream, bytes(5), end_stream=True)
        if not move(client, server, received=False):
            break
        server.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        server.send_data(stream, bytes(5))
        server.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        if not move(server, client, received=True):
            break
        calls += 1
    assert calls > 42  # 128 frames
    assert len(reader.seen().turns_us) >= calls
