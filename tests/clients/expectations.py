"""What every field of a record must say after one request: a value, a range, or null and why.

One table, ``expected()``, over all programs. Times are held against two witnesses: curl's own
timers where curl ran, else what the server saw.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.clients.watch import Seen
from tests.lab import world
from tests.lab.daemon import Record
from tests.lab.programs import Curl, Program, is_literal
from tests.lab.servers import Witness
from tests.lab.world import Lab

RELATIVE = 0.05
ABSOLUTE_US = 500
CLOSE_NOTIFY_BYTES = 64  # at most; may arrive after the client's close and then is not counted

IANA_CIPHERS = {
    "ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
}


@dataclass(frozen=True)
class Null:
    """Must be null, and the reason why it may be."""

    reason: str

    def __eq__(self, other: object) -> bool:
        return other is None


@dataclass(frozen=True)
class Within:
    """Equal but for 5 % or 500 µs, whichever is larger."""

    us: float

    def __eq__(self, other: object) -> bool:
        allowed = max(self.us * RELATIVE, ABSOLUTE_US)
        return type(other) is int and abs(other - self.us) <= allowed


@dataclass(frozen=True)
class Between:
    """An integer in a range, both ends included."""

    low: float
    high: float

    def __eq__(self, other: object) -> bool:
        return type(other) is int and self.low <= other <= self.high


@dataclass(frozen=True)
class Holds:
    """Whatever a function says yes to."""

    what: str
    test: Callable[[Any], bool]

    def __eq__(self, other: object) -> bool:
        return bool(self.test(other))


@dataclass(frozen=True)
class Case:
    """One request and everything known of it beforehand or from a witness."""

    lab: Lab
    program: Program
    host: str
    address: str  # the server's
    port: int
    tls: str | None
    seen: Seen
    witness: Witness

    @property
    def literal(self) -> bool:
        return is_literal(self.host)


def expected(case: Case) -> dict[str, Any]:
    """Every key of the record with what it must equal."""
    ipv6 = ":" in case.address
    sockconn: Any = Between(world.RTT_US, world.RTT_US + world.LINK_LATE_US)
    tls_us: Any = Null("plain HTTP") if case.tls is None else _tls_us(case.witness)
    response: Any = Within(_response_us(case.witness))
    if isinstance(case.program, Curl):
        timers = case.program.timers(case.seen.done)
        sockconn = Within(timers.sockconn_us)
        tls_us = tls_us if case.tls is None else Within(timers.tls_us)
        response = Within(timers.response_us)
    return {
        "v": 1,
        "id": Holds("unique on this host: boot and cookie", lambda got: bool(got)),
        "start": Holds("UTC, during the run", lambda got: _during(got, case.seen)),
        "state": "closed",
        "role": "client",
        "pid": case.seen.done.pid,
        "tid": case.seen.done.pid,  # each of these programs connects in its first thread
        "comm": case.program.comm,
        "exe": case.program.exe,
        "uid": 0,
        "unit": Holds("null unless systemd started the tester", _absent_or_text),
        "container": Holds("null unless the tester is in one", _absent_or_text),
        "container_pid": Holds("null unless the tester is in one", _absent_or_number),
        "netns": case.lab.here.inode,
        "laddr": "fd66:3::1" if ipv6 else "10.66.3.1",
        "lport": case.witness.peer[1],
        "raddr": case.address,
        "rport": case.port,
        "family": "ipv6" if ipv6 else "ipv4",
        "transport": "tcp",
        "peer": case.address,
        "sockconn_us": sockconn,
        "attempts": [
            {
                "raddr": case.address,
                "rport": case.port,
                "us": sockconn,
                "offset_us": 0,
                "result": "ok",
                "errno": None,
            }
        ],
        "tls_us": tls_us,
        "tls": Null("plain HTTP") if case.tls is None else _tls(case),
        "txn_resp_us": response,
        "txn_source": "records" if case.tls else "plain",
        "greeting_us": Null("the client speaks first"),
        "turns": {"count": 1, "sum_us": response, "max_us": response},
        "prot_specific": (
            Null("the status stands inside TLS")
            if case.tls
            else {
                "protocol": "http",
                "resp": 200,
                "method": case.program.method,
                "version": "1.1",
            }
        ),
        "tcp": {
            # Smoothed, and the server's delayed acknowledgements count as way.
            "rtt_us": Between(world.RTT_US * 0.9, world.RTT_US * 2),
            "rttvar_us": Between(0, world.RTT_US),
            "retransmits": 0,
            "bytes_sent": case.witness.bytes_received,
            "bytes_received": Between(
                case.witness.bytes_sent - (CLOSE_NOTIFY_BYTES if case.tls else 0),
                case.witness.bytes_sent,
            ),
        },
        "duration_us": Between(
            world.RTT_US + _response_us(case.witness),
            case.seen.done.seconds * 1e6 + ABSOLUTE_US + 2 * world.RTT_US,  # the peer's last FIN
        ),
        "error": Null("nothing failed"),
        "lost_before": False,
        **_lookup(case),
    }


def _lookup(case: Case) -> dict[str, Any]:
    if case.literal:
        return {
            "host": Null("a literal was asked for"),
            "host_source": Null("there is no name"),
            "dns": Null("nothing was looked up"),
            "dns_us": Null("nothing was looked up"),
            "dns_disp": 0,
            "dns_source": "literal"
            if case.program.resolves_literals
            else Null("this program does not hand literals to getaddrinfo()"),
            "dns_age_us": Null("nothing was looked up"),
            "dns_match": Null("nothing was matched"),
        }
    return {
        "host": case.host,
        "host_source": "lookup",
        "dns": [case.address],
        "dns_us": Within(case.lab.resolver.waited_us(case.host)),
        "dns_disp": 1,
        "dns_source": "getaddrinfo",
        "dns_age_us": Between(0, 50_000),  # a slow interpreter's way from answer to connect
        "dns_match": case.program.resolves_in,
    }


def _tls(case: Case) -> dict[str, Any]:
    seen = case.witness
    offered = case.program.alpn
    # The choice stands in the clear in TLS 1.2 alone; the offer always does.
    chosen = case.tls == "1.2" and offered is not None
    cipher = seen.tls_cipher or ""
    return {
        "source": case.program.tls_source,
        "version": f"TLSv{case.tls}",
        "cipher": IANA_CIPHERS.get(cipher, cipher),
        "sni": Null("no SNI for a literal") if case.literal else case.host,
        "alpn": Null("offers none")
        if offered is None
        else ["http/1.1"]
        if chosen
        else list(offered),
        "alpn_chosen": True if chosen else Holds("not seen", lambda got: got is not True),
        "resumed": False,
        "result": "ok",
        "alert": Null("no alert"),
    }


def _tls_us(seen: Witness) -> Between:
    assert seen.hello_ns is not None
    assert seen.hello_reply_ns is not None
    assert seen.tls_done_ns is not None
    full = seen.tls_version == "TLSv1.2"
    # From below, the server's wait and the way. From above, the arrival of the client's Finished,
    # which includes the client's own work and, where Nagle holds it back, one more round trip.
    low = (seen.hello_reply_ns - seen.hello_ns) / 1e3 + world.RTT_US * (2 if full else 1)
    high = (seen.tls_done_ns - seen.hello_ns) / 1e3 + world.RTT_US * (1 if full else 0)
    return Between(low * (1 - RELATIVE), max(low, high) * (1 + RELATIVE))


def _response_us(seen: Witness) -> float:
    request = seen.requests[0]
    assert request.response_ns is not None
    return (request.response_ns - request.first_byte_ns) / 1e3 + world.RTT_US


def _during(text: Any, seen: Seen) -> bool:
    moment = datetime.datetime.fromisoformat(text)
    return (
        moment.utcoffset() == datetime.timedelta(0)
        and seen.began - 0.001 <= moment.timestamp() <= seen.ended + 0.001
    )


def _absent_or_number(got: Any) -> bool:
    return got is None or (isinstance(got, int) and got > 0)


def _absent_or_text(got: Any) -> bool:
    return got is None or (isinstance(got, str) and got != "")


def differences(record: Record, wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each key (of an object in the record: ``object.key``) that differs: got and wanted."""
    wrong: dict[str, tuple[Any, Any]] = {}
    for key in sorted(wanted.keys() | record.keys()):
        got, want = record.get(key, "(missing)"), wanted.get(key, "(not in the table)")
        if isinstance(got, dict) and isinstance(want, dict):
            inner = differences(got, want)
            wrong |= {f"{key}.{name}": pair for name, pair in inner.items()}
        elif want != got:  # ours on the left: its own __eq__ decides
            wrong[key] = (got, want)
    return wrong
