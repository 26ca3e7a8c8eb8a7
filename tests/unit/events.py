"""Events as the kernel would send them, and a correlator to feed them to. Times in milliseconds."""

from __future__ import annotations

import ipaddress
import itertools
import json
import struct
from collections.abc import Iterable
from pathlib import Path

from jsonschema import Draft202012Validator

from conmon.record import Record
from monitor.correlate import Clock, Correlator, Facts, Identity, Lost
from monitor.decode import (
    Answer,
    ConnEvent,
    ConnFlag,
    ExitEvent,
    HelloEvent,
    LookupEvent,
    Phase,
    Task,
)

TESTS = Path(__file__).resolve().parents[1]
MS = 1_000_000
BOOT_NS = 1_000_000 * MS  # where the tests' clock begins
WALL_NS = 1_700_000_000_000 * MS
PID, START_NS = 4711, 99
REFUSED, UNREACHABLE, TIMED_OUT, RESET, ABORTED = 111, 101, 110, 104, 103

_schema = json.loads((TESTS.parent / "docs" / "record.schema.json").read_text())
VALIDATOR = Draft202012Validator(_schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
_numbers = itertools.count(1)


def at(ms: float) -> int:
    return BOOT_NS + round(ms * MS)


def family_and_bytes(text: str) -> tuple[int, bytes]:
    address = ipaddress.ip_address(text)
    return (2 if address.version == 4 else 10), address.packed.ljust(16, b"\0")


def conn(
    begin: float,
    raddr: str = "192.0.2.1",
    *,
    took: float | None = 10,
    end: float | None = None,
    err: int = 0,
    **fields: object,
) -> ConnEvent:
    """A connection established after ``took`` ms (None: never) and ended at ``end`` (None: open;
    by default a second after its begin)."""
    family, packed = family_and_bytes(raddr)
    number = next(_numbers)
    values: dict[str, object] = dict.fromkeys(ConnEvent._fields, 0)
    values.update(
        kind=1, pid=PID, start_ns=START_NS, tid=PID, ppid=1, uid=1000, netns=4026531840,
        comm=b"client\0".ljust(16, b"\0"), exe_ino=7, exe_dev=8, cgroup_id=9,
        sk=0xFFFF_0000_0000 + number * 64, cookie=number, connect_ns=at(begin),
        family=family, laddr=bytes([192, 0, 2, 99]).ljust(16, b"\0"), raddr=packed,
        lport=40_000, rport=443, tx_head=bytes(32), rx_head=bytes(32), log=b"",
        sk_err=err, flags=int(ConnFlag.PACKETS), rtt_us=250, rttvar_us=125,
    )  # fmt: skip
    if family == 10:
        values["laddr"] = ipaddress.ip_address("2001:db8::99").packed
    if took is not None:
        values.update(established_ns=at(begin + took), phase=Phase.ESTABLISHED)
    else:
        values.update(phase=Phase.SYN_SENT, rtt_us=0, rttvar_us=0)
    values.update(fields)
    made = ConnEvent(**values)  # type: ignore[arg-type]
    return made if end is None else ended(made, end)


def ended(opened: ConnEvent, end: float, **fields: object) -> ConnEvent:
    phase = Phase.CLOSED if opened.established_ns else Phase.FAILED
    return opened._replace(**{"end_ns": at(end), "phase": phase, **fields})


def failed(begin: float, raddr: str, end: float, err: int = 0, **fields: object) -> ConnEvent:
    return conn(begin, raddr, took=None, end=end, err=err, **fields)


def lookup(
    begin: float,
    name: str | bytes,
    *addresses: str,
    end: float | None = None,
    ret: int = 0,
    port: int = 0,
    pid: int = PID,
    tid: int | None = None,
    start_ns: int = START_NS,
    hints: int = 0,
    hint_family: int = 0,
    service: bytes = b"",
    flags: int = 0,
) -> LookupEvent:
    answers = []
    for text in addresses:
        bare, _, scope = text.partition("%")
        family, packed = family_and_bytes(bare)
        answers.append(Answer(family, port, int(scope or 0), packed))
    task = Task(START_NS, 9, 7, 8, pid, tid or pid, 1, 1000, 4026531840, b"client")
    return LookupEvent(
        task._replace(start_ns=start_ns), at(begin), at(begin + 5 if end is None else end), ret,
        hint_family, hints, len(answers), flags,
        name.encode() if isinstance(name, str) else name, service, tuple(answers),
    )  # fmt: skip


def process_exit(ms: float, pid: int = PID, start_ns: int = START_NS) -> ExitEvent:
    return ExitEvent(at(ms), start_ns, pid)


def client_hello(name: str) -> bytes:
    """A ClientHello with nothing in it but a server name."""
    host = name.encode()
    sni = struct.pack(">HBH", len(host) + 3, 0, len(host)) + host
    extensions = struct.pack(">HH", 0, len(sni)) + sni
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += struct.pack(">H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack(">H", len(message)) + message


def hello(of: ConnEvent, data: bytes, *, received: bool = False, number: int = 1) -> HelloEvent:
    return HelloEvent(of.sk, of.connect_ns, of.connect_ns, 1, received, number, data)


class Capture:
    """What a real handshake left on the wire: tests/data/tls."""

    def __init__(self, name: str) -> None:
        data = json.loads((TESTS / "data" / "tls" / f"{name}.json").read_text())
        self.client = bytes.fromhex(data["client_hello"] or "")
        self.server = bytes.fromhex(data["server_hello"] or "")
        self.log = b"".join(
            struct.pack("=IHBB", us, size, kind, (1 if rx else 0) | (2 if first else 0))
            for us, size, kind, rx, first, *_ in data["log"]
        )

    def on(self, plain: ConnEvent, flags: int = 0, **fields: object) -> ConnEvent:
        """``plain`` with this handshake."""
        return plain._replace(
            **{
                "flags": plain.flags | int(ConnFlag.TLS | flags),
                "log": self.log,
                "log_len": len(self.log) // 8,
                "hello_ns": plain.established_ns,
                "first_tx_ns": plain.established_ns,
                "first_rx_ns": plain.established_ns + 10 * MS,
                "first_resp_ns": plain.established_ns + 10 * MS,
                **fields,
            }
        )


class People:
    """Identities that are made up."""

    def identify(self, *, pid, start_ns, comm, exe_ino, exe_dev, cgroup_id) -> Identity:
        name = comm.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
        return Identity(name, f"/usr/bin/{exe_ino}-{exe_dev}", f"{cgroup_id}.service", None)


class World:
    """A correlator; holds every record it hands out to the schema."""

    def __init__(self, *, lookups_seen: bool = True, live: bool = False) -> None:
        self.core = Correlator(
            facts=Facts(boot="b007b007", lookups_seen=lookups_seen, hostname=b"myhost"),
            identities=People(),
            clock=Clock(WALL_NS - BOOT_NS),
            live=live,
        )
        self.handed_out: list[Record] = []

    def feed(self, *events: object) -> list[Record]:
        return self._checked([r for event in events for r in self.core.feed(event)])

    def snapshot(self, ms: float, *opened: ConnEvent) -> list[Record]:
        in_order = sorted(opened, key=lambda conn: conn.connect_ns)
        return self._checked(self.core.snapshot(in_order, now_ns=at(ms)))

    def finish(self) -> list[Record]:
        return self._checked(self.core.finish())

    def lose(self, ms: float) -> None:
        assert self.core.feed(Lost(1, at(ms))) == []

    def deadline_ms(self) -> float | None:
        deadline = self.core.deadline()
        return None if deadline is None else (deadline - BOOT_NS) / MS

    def _checked(self, records: Iterable[Record]) -> list[Record]:
        records = list(records)
        for record in records:
            VALIDATOR.validate(json.loads(record.to_json()))
            assert Record.from_json(record.to_json()) == record
        self.handed_out += records
        return records


def only(records: list[Record]) -> Record:
    (record,) = records
    return record
