"""Packets to what the kernel side would note of them, and to what tshark reads in them."""

from __future__ import annotations

import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HELLO_MAX = 4096  # as in bpf/event.h


def packets(pcap: bytes) -> Iterator[tuple[int, bytes]]:
    order = "<" if pcap[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    nano = pcap[:4] in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d")
    pos = 24
    while pos + 16 <= len(pcap):
        seconds, fraction, length, _ = struct.unpack_from(order + "IIII", pcap, pos)
        yield (
            seconds * 1_000_000 + (fraction // 1000 if nano else fraction),
            pcap[pos + 16 : pos + 16 + length],
        )
        pos += 16 + length


class Direction:
    def __init__(self) -> None:
        self.next_seq: int | None = None
        self.buffered = b""  # an incomplete record header
        self.skip = 0
        self.stream = bytearray()


def connections(pcap: bytes, port: int) -> list[dict[str, Any]]:
    """Each connection to port: its log, hellos and flags, noted as bpf/ does."""
    found: dict[int, dict[str, Any]] = {}
    sides: dict[tuple[int, bool], Direction] = {}
    for at, frame in packets(pcap):
        if frame[12:14] != b"\x08\x00":
            continue
        ip = frame[14:]
        head = (ip[0] & 15) * 4
        total = struct.unpack_from(">H", ip, 2)[0]
        sport, dport, seq = struct.unpack_from(">HHI", ip, head)
        if port not in (sport, dport):
            continue
        offset, flags = ip[head + 12] >> 4, ip[head + 13]
        payload = ip[head + offset * 4 : total] if total else ip[head + offset * 4 :]
        rx = sport == port
        client = dport if rx else sport
        if flags & 2 and not rx:
            found[client] = {"syn": at, "log": [], "flags": [], "port": client}
            sides[client, False], sides[client, True] = Direction(), Direction()
        if client not in found:
            continue
        conn, side = found[client], sides[client, rx]
        if flags & 2:
            if rx:
                conn["rtt_us"] = at - conn["syn"]
            side.next_seq = (seq + 1) & 0xFFFFFFFF
        for bit, name in ((1, "fin"), (4, "rst")):
            label = f"{'rx' if rx else 'tx'}_{name}"
            if flags & bit and label not in conn["flags"]:
                conn["flags"].append(label)
        if not payload or seq != side.next_seq:
            continue
        side.next_seq = (seq + len(payload)) & 0xFFFFFFFF
        side.stream += payload
        first = True
        while payload:
            if side.skip:
                taken = min(side.skip, len(payload))
                side.skip -= taken
                payload = payload[taken:]
                continue
            need = 5 - len(side.buffered)
            side.buffered += payload[:need]
            payload = payload[need:]
            if len(side.buffered) == 5:
                kind, length = side.buffered[0], struct.unpack(">H", side.buffered[3:])[0]
                conn["log"].append([at - conn["syn"], length, kind, rx, first])
                first = False
                side.skip, side.buffered = length, b""
    for client, conn in found.items():
        for name, rx in (("client_hello", False), ("server_hello", True)):
            conn[name] = bytes(sides[client, rx].stream[:HELLO_MAX])
    return list(found.values())


def labels(pcap: Path, keys: str, port: int, client: int) -> list[tuple[bool, str]]:
    """What tshark finds in each record, in order, after decrypting: (received, words)."""
    xml = subprocess.run(
        [
            *(
                "tshark",
                "-r",
                str(pcap),
                "-o",
                f"tls.keylog_file:{keys}",
                "-d",
                f"tcp.port=={port},tls",
            ),
            *(
                "-o",
                "tcp.analyze_sequence_numbers:TRUE",
                "-Y",
                f"tls && tcp.port=={client}",
                "-T",
                "pdml",
            ),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    ).stdout
    result = []
    for packet in ET.fromstring(xml):
        rx = any(
            f.get("name") == "tcp.srcport" and f.get("show") == str(port)
            for f in packet.iter("field")
        )
        for record in packet.iter("field"):
            if record.get("name") != "tls.record":
                continue
            fields = [(f.get("name"), f.get("show")) for f in record.iter("field")]
            kinds = [v for n, v in fields if n == "tls.record.content_type" and v]
            words = []
            for name, value in fields:
                if name == "tls.handshake.type":
                    words.append(f"h{value}")
                elif name == "tls.alert_message.desc":
                    words.append(f"alert{value}")
            if not words:
                words = ["ccs" if "20" in kinds else "app" if "23" in kinds else "?"]
            result.append((rx, "+".join(words)))
    return result
