"""Hellos put together from their packets."""

from __future__ import annotations

from monitor.correlate.hellos import MAX_BYTES, MAX_PARTS, PART_BYTES, HelloTable
from monitor.decode import HelloEvent

# TLS 1.2, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 (c030), no extensions
SERVER_HELLO = bytes.fromhex("160303002a020000260303" + "11" * 32 + "00c03000")
# A Finished under GCM: type 22, and the first byte of what is encrypted happens to be 2
FINISHED = bytes.fromhex("1603030028" + "02" + "47" * 39)


def server_part(number: int, data: bytes) -> HelloEvent:
    return HelloEvent(7, 1000, 2000, 1, True, number, data)


def test_a_finished_that_looks_like_a_second_hello_changes_nothing():
    table = HelloTable()
    table.add(server_part(1, SERVER_HELLO))
    table.add(server_part(2, FINISHED))
    hellos = table.take(7, 1000)
    assert hellos is not None
    assert hellos.server is not None
    assert hellos.server.cipher == "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"


def test_a_hello_in_two_packets_is_put_together():
    table = HelloTable()
    table.add(server_part(1, SERVER_HELLO[:20]))
    table.add(server_part(1, SERVER_HELLO[20:]))
    hellos = table.take(7, 1000)
    assert hellos is not None
    assert hellos.server is not None
    assert not hellos.server.truncated
    assert len(table) == 0


def test_a_hello_that_trickles_in_is_not_parsed_for_ever(monkeypatch):
    parsed = []
    monkeypatch.setattr("monitor.correlate.hellos.parse_server_hello", parsed.append)
    table = HelloTable()
    for byte in (SERVER_HELLO * 99)[:4000]:
        table.add(server_part(1, bytes([byte])))
    assert 0 < len(parsed) <= MAX_PARTS + MAX_BYTES // PART_BYTES + 1
