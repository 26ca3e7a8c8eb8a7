"""Hellos are read from whole, cut, split and hostile bytes."""

import json
import struct
from pathlib import Path

import pytest

from monitor.wire.hello import parse_client_hello, parse_server_hello

DATA = Path(__file__).resolve().parents[1] / "data" / "tls"


def captured(name: str, side: str) -> bytes:
    return bytes.fromhex(json.loads((DATA / f"{name}.json").read_text())[side])


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">HH", kind, len(body)) + body


def server_name(name: bytes) -> bytes:
    return extension(0, struct.pack(">HBH", len(name) + 3, 0, len(name)) + name)


def protocols(*names: bytes) -> bytes:
    listed = b"".join(bytes([len(n)]) + n for n in names)
    return extension(16, struct.pack(">H", len(listed)) + listed)


def records(message: bytes, size: int = 16384) -> bytes:
    parts = [message[i : i + size] for i in range(0, len(message), size)]
    return b"".join(struct.pack(">BHH", 22, 0x0301, len(p)) + p for p in parts)


def hello(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def client_hello(
    *extensions: bytes, session_id: bytes = b"", ciphers: bytes = b"\x13\x01", size: int = 16384
) -> bytes:
    listed = b"".join(extensions)
    body = b"\x03\x03" + bytes(range(32)) + bytes([len(session_id)]) + session_id
    body += struct.pack(">H", len(ciphers)) + ciphers + b"\x01\x00"
    body += struct.pack(">H", len(listed)) + listed
    return records(hello(1, body), size)


def server_hello(*extensions: bytes, version: int = 0x0303, cipher: int = 0xC02F) -> bytes:
    listed = b"".join(extensions)
    body = struct.pack(">H", version) + bytes(range(32)) + b"\x02ab"
    body += struct.pack(">HBH", cipher, 0, len(listed)) + listed
    return records(hello(2, body))


# ---- real ones ------------------------------------------------------------------------------


def test_curls_client_hello():
    seen = parse_client_hello(captured("h2_curl_node", "client_hello"))
    assert seen is not None
    assert seen.legacy_version == 0x0303
    assert seen.versions == (0x0304, 0x0303, 0x0302, 0x0301)
    assert seen.sni == "localhost"
    assert seen.alpn == ("h2", "http/1.1")
    assert len(seen.session_id) == 32
    assert seen.ciphers[:3] == (0x1302, 0x1303, 0x1301)
    assert seen.psk_modes and not seen.psk_offered and not seen.early_data
    assert not seen.truncated


def test_resuming_client_hello_with_early_data():
    seen = parse_client_hello(captured("tls13_early_data", "client_hello"))
    assert seen is not None and seen.psk_offered and seen.early_data
    assert seen.psk_identity_len == 240


def test_post_quantum_key_share_makes_a_long_hello():
    data = captured("rustls_client_h2", "client_hello")
    seen = parse_client_hello(data)
    assert len(data) > 1460 and seen is not None
    assert (seen.sni, seen.alpn, seen.truncated) == ("localhost", ("h2", "http/1.1"), False)


def test_ticket_of_a_tls12_client():
    seen = parse_client_hello(captured("tls12_resumed_ticket", "client_hello"))
    assert seen is not None and seen.session_ticket
    assert seen.versions == (0x0303,)


def test_server_hellos_of_each_kind():
    full = parse_server_hello(captured("tls13_full", "server_hello"))
    assert full is not None
    assert (full.version, full.cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    assert not full.psk_selected and not full.hello_retry and len(full.session_id) == 32
    resumed = parse_server_hello(captured("tls13_resumed", "server_hello"))
    assert resumed is not None and resumed.psk_selected
    old = parse_server_hello(captured("h2_curl_node_12", "server_hello"))
    assert old is not None
    assert (old.version, old.alpn) == ("TLSv1.2", "h2")
    assert old.cipher == "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"


def test_hello_retry_request_is_told_from_the_hello_that_follows():
    data = captured("tls13_retry_no_ccs", "server_hello")
    retry = parse_server_hello(data)
    assert retry is not None and retry.hello_retry and retry.version == "TLSv1.3"
    second = parse_server_hello(data[5 + int.from_bytes(data[3:5], "big") :])
    assert second is not None and not second.hello_retry
    assert second.cipher == retry.cipher


# ---- form -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 50, 16384])
def test_message_over_several_records(size: int):
    data = client_hello(server_name(b"a.example"), protocols(b"h2"), size=size)
    seen = parse_client_hello(data)
    assert seen is not None and (seen.sni, seen.alpn) == ("a.example", ("h2",))
    assert not seen.truncated
    cut = parse_client_hello(data[:-1])
    assert cut is not None and cut.truncated and cut.sni == "a.example"


def test_second_message_in_the_record_is_left_alone():
    data = server_hello(protocols(b"http/1.1"))
    both = data[5:] + hello(11, b"certificate")
    seen = parse_server_hello(records(both))
    assert seen is not None and seen.alpn == "http/1.1" and not seen.truncated


def test_warning_before_the_server_hello_is_skipped():
    seen = parse_server_hello(b"\x15\x03\x01\x00\x02\x01\x70" + server_hello())
    assert seen is not None and seen.version == "TLSv1.2"


def test_cut_hello_keeps_what_came_before():
    data = client_hello(server_name(b"a.example"), protocols(b"h2"), ciphers=b"\x13\x01\xc0\x2f")
    whole = parse_client_hello(data)
    for length in range(len(data)):
        seen = parse_client_hello(data[:length])
        if seen is None:
            assert length < 5 + 4 + 35
            continue
        assert seen.truncated
        assert whole is not None
        assert seen.sni in (None, whole.sni)
        assert seen.alpn in ((), whole.alpn)
        assert seen.ciphers == whole.ciphers[: len(seen.ciphers)]


def test_cut_pre_shared_key_still_counts():
    data = client_hello(extension(41, struct.pack(">HH", 2000, 1990) + bytes(1996)))
    seen = parse_client_hello(data[:500])
    assert seen is not None and seen.psk_offered and seen.psk_identity_len == 1990


def test_grease_is_no_version_and_no_protocol():
    seen = parse_client_hello(
        client_hello(
            extension(0x0A0A, b""),
            extension(43, b"\x06\x1a\x1a\x03\x04\x03\x03"),
            protocols(b"\x2a\x2a", b"h2"),
            ciphers=b"\x3a\x3a\x13\x01",
        )
    )
    assert seen is not None
    assert seen.versions == (0x0304, 0x0303)
    assert seen.alpn == ("h2",)
    assert seen.ciphers == (0x3A3A, 0x1301)


@pytest.mark.parametrize(
    ("number", "name"),
    [(0x0300, "SSLv3"), (0x0301, "TLSv1.0"), (0x0302, "TLSv1.1"), (0x7F1C, "0x7f1c")],
)
def test_versions_have_names(number: int, name: str):
    seen = parse_server_hello(server_hello(version=number, cipher=0xABCD))
    assert seen is not None and (seen.version, seen.cipher) == (name, "0xabcd")


def test_server_hello_without_extensions():
    data = server_hello()[5:-2]
    data = data[:1] + (len(data) - 4).to_bytes(3, "big") + data[4:]
    seen = parse_server_hello(records(data))
    assert seen is not None and seen.session_id == b"ab" and seen.alpn is None


def test_hostile_name_is_plain_ascii_when_it_comes_out():
    seen = parse_client_hello(client_hello(server_name(b"a\xff\x1b[2J.b"), protocols(b"\xc3\x28")))
    assert seen is not None
    assert seen.sni == "a\\xff\x1b[2J.b"
    assert seen.alpn == ("\\xc3(",)
    assert seen.sni.isascii()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\x04\x01\x00\x01a",  # not a DNS name
        b"\x00\x03\x00\x00\x00",  # empty
        b"\x00\xff\x00\x00\xfaabc",  # longer than it is
        struct.pack(">HBH", 303, 0, 300) + b"a" * 300,  # longer than DNS allows
    ],
)
def test_server_name_that_is_none(body: bytes):
    seen = parse_client_hello(client_hello(extension(0, body), protocols(b"h2")))
    assert seen is not None and seen.sni is None and seen.alpn == ("h2",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x16",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff" + bytes(100),
        b"\x17\x03\x03\x00\x40" + bytes(64),
        b"\x80\x2e\x01\x03\x01" + bytes(64),  # SSL 2.0
        b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        records(b"\x01\x00\x00\x02\x03\x03"),
        records(b"\x01\x00\x00\x40\x03\x03" + bytes(32) + b"\x21" + bytes(40)),
    ],
)
def test_what_is_no_hello(data: bytes):
    assert parse_client_hello(data) is None
    assert parse_server_hello(data) is None


def test_hellos_are_not_taken_for_each_other():
    assert parse_server_hello(client_hello()) is None
    assert parse_client_hello(server_hello()) is None
