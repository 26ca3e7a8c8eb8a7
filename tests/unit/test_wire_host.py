"""monitor.wire.http1: whom a request asks for."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.wire.http1 import HEAD_MOST, is_head_over, parse_authority, request_host


def request(*fields: str, line: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join((line, *fields, "", "")).encode("latin-1")


@pytest.mark.parametrize(
    ("head", "host"),
    [
        (request("Host: One.Example"), "one.example"),
        (request("Accept: */*", "host:\tone.example:8080 "), "one.example"),
        (request("Host: one.example."), "one.example"),
        (request("Host: xn--bcher-kva.example"), "xn--bcher-kva.example"),
        (request("Host: a_b.svc"), "a_b.svc"),
        (request("Host: localhost", line="OPTIONS * HTTP/1.1"), "localhost"),
        (request("Host: 192.0.2.1:80"), "192.0.2.1"),
        (request("Host: [2001:DB8::1]:80"), "[2001:db8::1]"),
        (request("Host: one.example", line="M-SEARCH /x HTTP/1.0"), "one.example"),
        (b"GET / HTTP/1.1\nHost: one.example\n\n", "one.example"),
        # the field itself is whole
        (b"GET / HTTP/1.1\r\nHost: one.example\r\nAcc", "one.example"),
    ],
)
def test_the_host_of_a_request(head: bytes, host: str) -> None:
    assert request_host(head) == host


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: one.exam",  # cut
        b"GET / HTTP/1.1\r\nHost: one.example\r",
        request("Accept: */*"),
        request("Host:"),
        request("Host: one.example", "Host: two.example"),
        request("Host: one.example", "HOST: one.example"),
        request("X-Host: one.example"),
        request("Host : one.example"),
        request("Accept: */*") + b"\r\nHost: body.example\r\n",
        # a proxy is asked: the host is somebody else's
        request("Host: one.example", line="GET http://one.example/ HTTP/1.1"),
        request("Host: one.example:443", line="CONNECT one.example:443 HTTP/1.1"),
        request("Host: one.example", line="GET /"),
        request("Host: one.example", line="OPTIONS rtsp://one.example/ RTSP/1.0"),
        request("Host: one.example", line="get / HTTP/1.1"),
        request("Host: one example"),
        request("Host: one.example/path"),
        request("Host: user@one.example"),
        request("Host: one..example"),
        request("Host: .example"),
        request("Host: " + "a" * 64 + ".example"),
        request("Host: " + "a." * 130 + "example"),
        request("Host: \x1b[31mred.example"),
        request("Host: b\xfccher.example"),
        request("Host: one.example:port"),
        request("Host: one.example:123456"),
        request("Host: [::1"),
    ],
)
def test_what_is_no_host_beyond_doubt_is_none(head: bytes) -> None:
    assert request_host(head) is None


def test_a_head_is_over_with_its_empty_line_or_when_no_more_of_it_comes() -> None:
    assert not is_head_over(b"GET / HTTP/1.1\r\nHost: one.example\r\n")
    assert is_head_over(request("Host: one.example"))
    assert is_head_over(b"x" * HEAD_MOST)


TEXT = st.text(alphabet="aZ09._-:[]/ \r\n\t\0ü%", max_size=60).map(lambda x: x.encode("latin-1"))


@given(st.binary(max_size=HEAD_MOST) | st.builds(lambda x: request("Host: ") + x, TEXT))
def test_any_bytes_are_read_or_not_but_never_raise(head: bytes) -> None:
    host = request_host(head)
    assert host is None or len(host) <= 255


@given(TEXT)
def test_an_authority_is_printable_and_short_or_none(text: bytes) -> None:
    host = parse_authority(text)
    if host is not None:
        assert host and host.isascii() and host.isprintable() and not set(host) & set(" /%@")


@pytest.mark.parametrize(
    "head",
    [
        request("Host: " + "a" * 1000),
        request("Host: " + "a-" * 500),
        request("Host: " + "a." * 500),
        request(*["Host: a"] * 120),
        request("Host:" + " " * 990),
        request("Host:" + " \t" * 400 + "x" * 100 + " " * 100),
        b"GET /" + b"x" * 1010,
        b"GET / HTTP/1.1" + b"\r\n" * 500,
    ],
    ids=range(8),
)
def test_no_bytes_take_long(head: bytes) -> None:
    begin = time.process_time()
    for _ in range(20):
        parse_authority.cache_clear()
        request_host(head[:HEAD_MOST])
    assert time.process_time() - begin < 0.02
