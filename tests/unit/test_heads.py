"""Protocols other than HTTP, told from 32 bytes each way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conmon.heads import parse_heads

CONNECT_311 = b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06client"
CONNECT_5 = b"\x10\x93\x01\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x06cli"
CONNECT_31 = b"\x10\x14\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x06client"


@pytest.mark.parametrize(
    ("sent", "received", "version", "resp"),
    [
        (CONNECT_311, b"\x20\x02\x00\x00", "3.1.1", 0),
        (CONNECT_311, b"\x20\x02\x00\x05", "3.1.1", 5),
        (CONNECT_311, b"\x20\x02\x01\x00\x90\x03", "3.1.1", 0),
        (CONNECT_5, b"\x20\x09\x00\x87\x06\x22\x00\x0a\x21\x00\x14", "5", 0x87),
        (CONNECT_31, b"\x20\x02\x00\x02", "3.1", 2),
        (CONNECT_311, b"\x20\x02", "3.1.1", None),
        (CONNECT_311, b"", "3.1.1", None),
    ],
)
def test_mqtt(sent, received, version, resp):
    seen = parse_heads(sent, received)
    assert (seen["protocol"], seen["version"], seen.get("resp")) == ("mqtt", version, resp)


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (CONNECT_311, b"\x20\x03\x00\x00\x00"),
        (b"\x10\x12\x00\x04MQTX\x04", b"\x20\x02\x00\x00"),
        (b"\x10\xff\xff\xff\xff\x00\x04MQTT\x04", b"\x20\x02\x00\x00"),
        (b"\x10", b""),
        (b"", b"\x20\x02\x00\x00"),
        (CONNECT_311[:8], b"\x20\x02\x00\x00"),
        (b"\x10\x12\x00\x04MQTT\x09", b"\x20\x02\x00\x00"),
    ],
)
def test_what_is_no_mqtt(sent, received):
    assert parse_heads(sent, received) is None


def test_http_is_still_http():
    assert parse_heads(b"GET / HTTP/1.1\r\n", b"HTTP/1.1 204 No")["resp"] == 204


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_any_bytes(sent, received):
    parse_heads(sent, received)
    parse_heads(b"\x10" + sent, b"\x20" + received)
    parse_heads(CONNECT_311[:13] + sent, received)
