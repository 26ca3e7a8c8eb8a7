"""One record drawn: each phase as a bar, where it began and how long it took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from .record import Record
from .waits import waited_us
from .words import count, duration, name, size, user

__all__ = ["waterfall"]

_WIDTH: Final = 40
_DNS_WORDS: Final = {0: "none asked", 1: "ok", 2: "server unreachable", 3: "no result"}


class _Bar(NamedTuple):
    label: str
    start_us: int
    us: int | None
    note: str


def waterfall(record: Record) -> str:
    """Return a record as lines for a terminal, 100 columns or less but for long names."""
    return "\n".join(_lines(record))


def _lines(record: Record) -> Iterator[str]:
    target = name(record.host or record.raddr, 80)
    failed = f": {name(record.error)}" if record.error else ""
    yield f"{target} port {count(record.rport)}  {record.state}{failed}"
    who = f"{name(record.comm, 16)}[{count(record.pid)}] {name(record.exe, 80)}"
    place = record.unit or (record.container or "")[:12] or None
    yield f"  by   {who}, user {user(record.uid)}" + (f", {name(place)}" if place else "")
    yield f"  at   {record.start or '-'}  id {name(record.id)}"
    bars = list(_bars(record))
    end = max((bar.start_us + (bar.us or 0) for bar in bars), default=0)
    slowest = max((bar.us for bar in bars if bar.us is not None), default=None)
    for bar in bars:
        yield _draw(bar, end, slowest)
    if record.tcp is not None:
        tcp = record.tcp
        yield (
            f"  tcp  sent {size(tcp.bytes_sent)}, received {size(tcp.bytes_received)}, "
            f"round trip {duration(tcp.rtt_us)}, retransmits {count(tcp.retransmits)}"
        )
    if record.turns is not None and record.turns.count > 1:
        turns = record.turns
        took = f"{duration(turns.sum_us)} in all, {duration(turns.max_us)} most"
        yield f"  turns {turns.count}, {took}"
    yield f"  open {duration(record.duration_us)} in all"
    if record.lost_before:
        yield "  events were lost that may belong to this: it may be incomplete"


def _bars(record: Record) -> Iterator[_Bar]:
    at = 0
    if record.dns_us is not None:
        note = f"{_DNS_WORDS.get(record.dns_disp or 0)}, from {name(record.dns_source)}"
        if record.dns_age_us is not None and record.dns_age_us > 1_000_000:
            yield _Bar("DNS", 0, record.dns_us, f"{note}, {duration(record.dns_age_us)} before")
        else:
            yield _Bar("DNS", 0, record.dns_us, note)
            at = record.dns_us + (record.dns_age_us or 0)
    first = at
    for attempt in record.attempts:
        start = first + (attempt.offset_us or 0)
        note = f"{name(attempt.raddr)} {name(attempt.result)}"
        yield _Bar("connect", start, attempt.us, note)
        if attempt.us is not None:
            at = max(at, start + attempt.us)
    if record.greeting_us is not None:
        yield _Bar("greeting", at, record.greeting_us, "the server spoke first")
    if record.tls is not None:
        tls = record.tls
        note = f"{name(tls.version)} {name(tls.result)}, from {name(tls.source)}"
        if tls.alert is not None:
            note += f", alert {name(tls.alert)}"
        yield _Bar("TLS", at, record.tls_us, note)
        at += record.tls_us or 0
    if record.txn_resp_us is not None:
        specific = record.prot_specific or {}
        note = name(str(specific["protocol"])) + f" {specific.get('resp')}" if specific else ""
        if specific.get("host") is not None:
            note += f", asked for {name(str(specific['host']))}"
        yield _Bar("response", at, record.txn_resp_us, note)
    elif record.peer is not None and (record.tls is None or record.tls.result == "ok"):
        waited = waited_us(record)
        if waited is not None:
            yield _Bar("response", at, waited, "none came")


def _draw(bar: _Bar, end: int, slowest: int | None) -> str:
    scale = _WIDTH / end if end else 0
    begin = min(_WIDTH - 1, int(bar.start_us * scale))
    length = max(1, round((bar.us or 0) * scale)) if bar.us is not None else 1
    body = "#" if bar.us is not None and bar.us == slowest else "="
    picture = " " * begin + (body if bar.us is not None else "?") * min(length, _WIDTH - begin)
    slow = " <" if bar.us is not None and bar.us == slowest else "  "
    return f"  {bar.label:9}{duration(bar.us):>8} |{picture:{_WIDTH}}|{slow} {bar.note}".rstrip()
