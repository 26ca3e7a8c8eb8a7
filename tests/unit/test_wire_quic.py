"""monitor.wire.quic against datagrams of another implementation of QUIC (aioquic, sans-IO)."""

from __future__ import annotations

import datetime
import random
import time

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from monitor.wire.quic import Datagram, _initial_keys, analyze, packets

CLIENT, SERVER = ("192.0.2.1", 5000), ("192.0.2.2", 443)
STEP_US = 10_000  # each datagram's way
V1, V2 = QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2


def certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "quic.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("quic.example")]), False)
        .sign(key, hashes.SHA256())
    )
    return made, key


def conversation(
    version: int = V1, *, trusted: bool = True, alpn: str = "h3", answered: bool = True
) -> tuple[list[Datagram], int | None]:
    """The datagrams of a handshake, and when the first one left that begins with 1-RTT."""
    made, key = certificate()
    ours = QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name="quic.example", original_version=version
    )
    ours.supported_versions = [version]
    ours.verify_mode = 0 if trusted else None
    theirs = QuicConfiguration(is_client=False, alpn_protocols=[alpn])
    theirs.certificate, theirs.private_key = made, key
    theirs.supported_versions = [version]
    client = QuicConnection(configuration=ours)
    client.connect(SERVER, now=0.0)
    first = client.original_destination_connection_id
    server = QuicConnection(configuration=theirs, original_destination_connection_id=first)
    seen: list[Datagram] = []
    one_rtt_us = None
    for turn in range(8):
        at_us = turn * STEP_US
        sent = client.datagrams_to_send(now=at_us / 1e6)
        for data, _ in sent:
            seen.append(Datagram(at_us, False, data))
            if not data[0] & 0x80 and one_rtt_us is None:
                one_rtt_us = at_us
            if answered:
                server.receive_datagram(data, CLIENT, now=at_us / 1e6)
        for data, _ in server.datagrams_to_send(now=at_us / 1e6) if answered else ():
            seen.append(Datagram(at_us + STEP_US // 2, True, data))
            client.receive_datagram(data, SERVER, now=at_us / 1e6)
    return [d for d in seen if d.data[0] & 0x80], one_rtt_us


def test_the_keys_of_the_standards_own_example():
    # RFC 9001 appendix A.1; RFC 9369 appendix A.1
    dcid = bytes.fromhex("8394c8f03e515708")
    assert _initial_keys(1, dcid, False).iv.hex() == "fa044b2f42a3fd3b46fb255c"
    assert _initial_keys(1, dcid, True).iv.hex() == "0ac1493ca1905853b0bba03e"
    assert _initial_keys(0x6B3343CF, dcid, False).iv.hex() == "91f73e2351d8fa91660e909f"


@pytest.mark.parametrize("version", [V1, V2])
def test_a_handshake(version):
    datagrams, one_rtt_us = conversation(version)
    seen = analyze(datagrams, one_rtt_us=one_rtt_us)
    assert seen.client.sni == "quic.example"
    assert seen.client.alpn == ("h3",)
    assert seen.server.version == "TLSv1.3"
    assert seen.server.cipher in ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256")
    assert (seen.hello_us, seen.done_us) == (0, STEP_US)
    assert seen.answered and seen.handshake_sent and seen.alert is None


def test_a_certificate_that_the_client_rejects():
    datagrams, one_rtt_us = conversation(trusted=False)
    seen = analyze(datagrams, one_rtt_us=one_rtt_us)
    assert seen.done_us is None
    assert seen.client.sni == "quic.example"


def test_a_server_that_refuses_says_why():
    datagrams, one_rtt_us = conversation(alpn="other")
    seen = analyze(datagrams, one_rtt_us=one_rtt_us)
    assert (seen.alert, seen.alert_received) == (120, True)  # no_application_protocol
    assert seen.done_us is None


def test_nobody_answers():
    datagrams, one_rtt_us = conversation(answered=False)
    seen = analyze(datagrams, one_rtt_us=one_rtt_us)
    assert seen.client.sni == "quic.example"
    assert (seen.server, seen.done_us, seen.answered) == (None, None, False)


def test_packets_that_share_a_datagram():
    datagrams, _ = conversation()
    kinds = [[packet.kind for packet in packets(d.data)] for d in datagrams]
    assert kinds[0] == ["initial"]
    assert any(len(some) > 1 and "handshake" in some for some in kinds)


@given(st.binary(max_size=1500))
def test_any_bytes_are_read_or_not_but_never_raise(data):
    analyze([Datagram(0, False, data)], one_rtt_us=None)
    analyze([Datagram(0, False, b"\xc0\0\0\0\1" + data)], one_rtt_us=0)


def test_damaged_datagrams_never_raise_and_take_no_time():
    datagrams, one_rtt_us = conversation()
    chance = random.Random(9)
    slowest = 0.0
    for _ in range(3_000):
        damaged = []
        for at_us, received, data in datagrams:
            raw = bytearray(data)
            for _ in range(chance.randrange(3)):
                raw[chance.randrange(min(64, len(raw)))] = chance.randrange(256)
            damaged.append(Datagram(at_us, received, bytes(raw[: chance.randrange(len(raw)) + 1])))
        begin = time.process_time()
        analyze(damaged, one_rtt_us=one_rtt_us)
        slowest = max(slowest, time.process_time() - begin)
    assert slowest < 0.05  # of six to twelve datagrams, decryption included
