"""HTTP/1 is told from the first 32 bytes each way, and nothing else is taken for it."""

import pytest

from conmon.http1 import is_client_hello, parse_heads


def cut(data: bytes) -> bytes:
    return data[:32]


def test_request_and_response_give_method_status_and_version():
    tx = cut(b"GET /index.html?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    rx = cut(b"HTTP/1.0 404 Not Found\r\nServer: x\r\n")
    assert parse_heads(tx, rx) == {
        "protocol": "http",
        "resp": 404,
        "method": "GET",
        "version": "1.0",
    }


def test_request_cut_in_its_target_is_enough():
    tx = cut(b"POST /a/very/long/path/that/does/not/end/here HTTP/1.1\r\n")
    assert parse_heads(tx, b"") == {"protocol": "http", "method": "POST"}


def test_unanswered_request_has_the_request_version_and_no_status():
    assert parse_heads(b"HEAD / HTTP/1.1\r\n\r\n", b"") == {
        "protocol": "http",
        "method": "HEAD",
        "version": "1.1",
    }


@pytest.mark.parametrize(
    "length", range(len("OPTIONS /abc HTTP/1.1"), len("OPTIONS /abc ") - 1, -1)
)
def test_request_cut_anywhere_in_its_version(length: int):
    seen = parse_heads(b"OPTIONS /abc HTTP/1.1"[:length], b"")
    assert seen is not None and seen["method"] == "OPTIONS"


@pytest.mark.parametrize(
    ("tx", "method"),
    [
        (b"CONNECT example.com:443 HTTP/1.1\r\n", "CONNECT"),
        (b"CONNECT [::1]:443 HTTP/1.1\r\n", "CONNECT"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n", "OPTIONS"),
        (b"GET http://example.com/ HTTP/1.1\r\n", "GET"),
        (b"VERSION-CONTROL /x HTTP/1.1\r\n", "VERSION-CONTROL"),
        (b"M-SEARCH * HTTP/1.1\r\n\r\n", "M-SEARCH"),
        (b"GET /caf\xc3\xa9 HTTP/1.1\r\n", "GET"),
    ],
)
def test_every_form_of_target(tx: bytes, method: str):
    seen = parse_heads(cut(tx), b"HTTP/1.1 200 OK\r\n")
    assert seen is not None and seen["method"] == method and seen["resp"] == 200


def test_interim_status_is_not_the_response():
    rx = cut(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n")
    seen = parse_heads(b"PUT /x HTTP/1.1\r\n", rx)
    assert seen == {"protocol": "http", "method": "PUT", "version": "1.1"}


def test_final_status_behind_a_short_interim_one_is_seen():
    rx = cut(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 201 Created\r\n")
    seen = parse_heads(b"PUT /x HTTP/1.1\r\n", rx)
    assert seen is not None and seen["resp"] == 201


def test_switching_protocols_is_final():
    seen = parse_heads(b"GET /ws HTTP/1.1\r\n", b"HTTP/1.1 101 Switching Protocols\r\n")
    assert seen is not None and seen["resp"] == 101


def test_error_answer_to_something_else_is_still_http():
    assert parse_heads(b"\x16\x03\x01\x02\x00\x01", b"HTTP/1.1 400 Bad Request\r\n") == {
        "protocol": "http",
        "resp": 400,
        "version": "1.1",
    }


def test_http2_preface_is_http_without_a_status():
    tx = cut(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0")
    assert parse_heads(tx, b"\0\0\x06\x04\0\0\0\0\0") == {"protocol": "http", "version": "2"}


@pytest.mark.parametrize(
    ("tx", "rx"),
    [
        (b"", b""),
        (b"EHLO localhost\r\n", b"220 mail.example ESMTP\r\n"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"),
        (b"OPTIONS rtsp://cam/1 RTSP/1.0\r\n", b"RTSP/1.0 200 OK\r\n"),
        (b"get /key\r\n", b"END\r\n"),
        (b"GET /\r\n", b"<html>"),
        (b"GET /\r\n", b""),
        (b"GET / HTTP/1.1\r\n", b"ICY 200 OK\r\n"),
        (b"GET / HTTP/1.7\r\n", b""),
        (b"GET \x01", b""),
        (b"SET /key 0 60 5\r\nvalue\r\n", b"STORED\r\n"),
        (b"ABCDEFGHIJKLMNOPQRS / HTTP/1.1\r\n", b""),
        (b"x", b"HTTP/1.1 2000 OK"),
        (b"x", b"HTTP/1.1 099 No"),
        (b"x", b"HTTP/1.1 20"),
    ],
)
def test_what_is_not_http_is_not_called_so(tx: bytes, rx: bytes):
    assert parse_heads(cut(tx), cut(rx)) is None


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (bytes.fromhex("1603010200010001fc0303"), True),
        (bytes.fromhex("160301020001"), True),
        (bytes.fromhex("16030102000201"), False),
        (bytes.fromhex("160301ffff010001"), False),
        (bytes.fromhex("160301020001010000"), False),
        (bytes.fromhex("1602010200010001fc"), False),
        (bytes.fromhex("1703030200010001fc"), False),
        (b"\x16\x03\x01", False),
        (b"GET / HTTP/1.1", False),
        (b"", False),
    ],
)
def test_client_hello_is_told_by_its_first_bytes(head: bytes, expected: bool):
    assert is_client_hello(head) is expected
