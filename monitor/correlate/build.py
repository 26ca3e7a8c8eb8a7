"""One conmon record from what is known of a connection. Pure; nothing is guessed: a figure whose
begin or end was not seen is None."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from conmon.heads import parse_heads
from conmon.names import (
    DNS_NONE,
    attempt_result,
    dns_disposition,
    eai_name,
    errno_name,
)
from conmon.record import Attempt, Record, Tcp, Tls, Turns
from monitor.correlate.hellos import Hellos
from monitor.correlate.identity import Identity
from monitor.correlate.lookups import Join, Lookup
from monitor.correlate.text import address_text, is_ipv4
from monitor.decode import ConnEvent, ConnFlag, Library, Phase, RecordFlag
from monitor.wire.handshake import ENCRYPTED_ALERT, Wire, analyze

__all__ = ["Clock", "Facts", "attempt_of", "lookup_record", "record_of", "tcp_of"]

RECORD_LOG_MAX: Final = 32  # bpf/event.h
# A SYN that was never answered is sent again after a second. A process that gives up later than
# this waited for a silent peer; one that gives up earlier changed its mind.
SILENT_PEER_NS: Final = 900_000_000
# An answer older than this was remembered by the program: its lookup was not part of what the
# user waited for, and the record starts at connect().
CACHED_NS: Final = 1_000_000_000
_EPROTO: Final = "EPROTO"
_LIBRARIES: Final[dict[int, str]] = {
    library: library.name.lower() for library in Library if library is not Library.NONE
}


@dataclass(slots=True)
class Clock:
    """CLOCK_MONOTONIC to wall time. ``offset_ns`` is the caller's to keep right."""

    offset_ns: int = 0

    def text(self, monotonic_ns: int) -> str:
        """RFC 3339, UTC, microseconds."""
        seconds, rest = divmod(monotonic_ns + self.offset_ns, 1_000_000_000)
        return f"{_second(seconds)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of this host and daemon, for every record."""

    boot: str
    """First characters of the boot id, the prefix of every record's id."""
    lookups_seen: bool
    """getaddrinfo() is probed, entry and return: a lookup that was not seen was not made there."""
    hostname: bytes = b""


def attempt_of(conn: ConnEvent, first_ns: int, *, won_elsewhere: bool = False) -> Attempt:
    """One connect() as the record lists it.

    Args:
        conn: the connection that this attempt was.
        first_ns: when the first attempt of the same connection began.
        won_elsewhere: another attempt succeeded, so giving this one up was no failure.
    """
    raddr = address_text(conn.family, conn.raddr)
    offset_us = max(0, conn.connect_ns - first_ns) // 1000
    if conn.established_ns:
        us = (conn.established_ns - conn.connect_ns) // 1000
        return Attempt(raddr, conn.rport, us, offset_us, "ok", None)
    if conn.phase in (Phase.SYN_SENT, Phase.CALLING):  # not decided yet
        return Attempt(raddr, conn.rport, None, offset_us, None, None)
    if conn.flags & ConnFlag.SYNC_FAIL:
        # connect() itself returned the error: no time passed that means anything
        errno = errno_name(conn.sk_err) if conn.sk_err else None
        return Attempt(
            raddr, conn.rport, None, offset_us, attempt_result(errno) if errno else "failed", errno
        )
    us = (conn.end_ns - conn.connect_ns) // 1000
    if conn.sk_err:
        errno = errno_name(conn.sk_err)
        return Attempt(raddr, conn.rport, us, offset_us, attempt_result(errno), errno)
    silent = not won_elsewhere and (
        conn.retransmits > 0 or conn.end_ns - conn.connect_ns >= SILENT_PEER_NS
    )
    return Attempt(raddr, conn.rport, us, offset_us, "timeout" if silent else "abandoned", None)


# What an attempt without an errno of its own says in the record's ``error``.
_RESULT_ERROR: Final = {"timeout": "ETIMEDOUT", "abandoned": "ECANCELED"}


def _record_id(facts: Facts, conn: ConnEvent) -> str:
    if conn.cookie:
        return f"{facts.boot}-{conn.cookie:x}"
    return f"{facts.boot}-t{conn.connect_ns:x}"  # no cookie was made for this socket


def _wire_of(conn: ConnEvent, hellos: Hellos | None) -> Wire:
    flags = conn.flags
    rx, first = int(RecordFlag.RX), int(RecordFlag.FIRST)
    return analyze(
        [
            (r.at_us, r.len, r.type, bool(r.flags & rx), bool(r.flags & first))
            for r in conn.records()
        ],
        client=hellos.client if hellos else None,
        server=hellos.server if hellos else None,
        log_full=conn.log_len >= RECORD_LOG_MAX,
        gap_rx=bool(flags & ConnFlag.RX_GAP),
        gap_tx=bool(flags & ConnFlag.TX_GAP),
        alert_tx=_alert(conn.alert_tx),
        alert_rx=_alert(conn.alert_rx),
    )


def _alert(seen: int) -> int | None:
    if not seen:
        return None
    return ENCRYPTED_ALERT if seen == 255 else seen - 1


@dataclass(frozen=True, slots=True)
class _TlsView:
    """The handshake, and what it means for the rest of the record."""

    tls: Tls
    us: int | None
    error: str | None


def _tls_of(conn: ConnEvent, hellos: Hellos | None, wire: Wire) -> _TlsView:
    client = hellos.client if hellos else None
    server = hellos.server if hellos else None
    alpn: tuple[str, ...] | None = (client.alpn or None) if client else None
    chosen: bool | None = None
    if server and server.alpn:
        alpn, chosen = (server.alpn,), True
    elif alpn:
        chosen = False
    us: int | None = None
    source = "wire"
    if conn.ssl_done_ns:
        source = _LIBRARIES.get(Library(conn.ssl_library), "wire")
        us = (conn.ssl_done_ns - conn.ssl_first_ns) // 1000
    elif wire.handshake_done_us is not None and wire.hello_us is not None:
        us = wire.handshake_done_us - wire.hello_us
    result, error = _tls_result(conn, wire)
    if result != "ok":
        us = None if result is not None else us
        if conn.ssl_library:
            source = _LIBRARIES.get(Library(conn.ssl_library), "wire")
    tls = Tls(
        source=source,
        version=wire.version or (server.version if server else None),
        cipher=server.cipher if server and not server.hello_retry else None,
        sni=client.sni if client else None,
        alpn=alpn,
        alpn_chosen=chosen,
        resumed=wire.resumed if result == "ok" else None,
        result=result,
        alert=wire.alert if result in ("alert", "rejected") else None,
    )
    return _TlsView(tls, us, error)


def _tls_result(conn: ConnEvent, wire: Wire) -> tuple[str | None, str | None]:
    """The handshake's result, and the errno name it means for the record."""
    ended = bool(conn.end_ns)
    if conn.ssl_done_ns:
        return "ok", None
    # The library's own word that it failed outweighs lengths that look like a Finished.
    library_failed = bool(conn.ssl_library and conn.ssl_calls and ended)
    if wire.result == "ok" and not (library_failed and wire.request_us is None):
        return "ok", None
    if wire.result == "ok":
        return "rejected", _EPROTO
    if wire.result == "alert":
        # OpenSSL answers a FIN in mid-handshake with an alert: the peer's leaving came first.
        left = conn.flags & ConnFlag.RX_FIN and not conn.flags & ConnFlag.LOCAL_CLOSE
        return ("closed" if left and wire.alert_from == "client" else "alert"), _EPROTO
    if wire.result == "rejected":
        return "rejected", _EPROTO
    if not ended:
        return None, None
    if conn.flags & ConnFlag.RX_RST:
        return "reset", "ECONNRESET"
    if conn.sk_err:
        errno = errno_name(conn.sk_err)
        return ("timeout" if errno == "ETIMEDOUT" else "reset"), errno
    if wire.result is None:
        return None, None
    if conn.flags & ConnFlag.RX_FIN and not conn.flags & ConnFlag.LOCAL_CLOSE:
        return "closed", _EPROTO
    # This side gave up: on the server's certificate, without an alert, or on waiting for it.
    return ("rejected", _EPROTO) if wire.waiting_for == "client" else ("timeout", "ETIMEDOUT")


def record_of(
    conn: ConnEvent,
    *,
    facts: Facts,
    clock: Clock,
    who: Identity,
    join: Join | None,
    literal: bool,
    hellos: Hellos | None,
    earlier: Sequence[ConnEvent] = (),
    lost: bool = False,
) -> Record:
    """Make the record of one connection, open or ended.

    Args:
        conn: the attempt that won, or the last one where all failed.
        who: the process.
        join: the lookup it came from.
        literal: the process handed the address to getaddrinfo() as a literal.
        hellos: its TLS hellos.
        earlier: the other attempts of the same connection.
        lost: events were lost that could belong to it.
    """
    flags = conn.flags
    established = conn.established_ns
    packets = bool(flags & ConnFlag.PACKETS)
    ipv4 = is_ipv4(conn.family, conn.raddr)
    raddr = address_text(conn.family, conn.raddr)
    error: str | None = None

    if earlier:
        tries = sorted((*earlier, conn), key=lambda c: c.connect_ns)
        first_ns = tries[0].connect_ns
        won = bool(established)
        attempts = tuple(attempt_of(c, first_ns, won_elsewhere=won) for c in tries)
    else:
        first_ns = conn.connect_ns
        attempts = (attempt_of(conn, first_ns),)
    if not established and conn.phase == Phase.FAILED:
        # one that was given up when the others had failed says less than they do
        errnos = [attempt.errno for attempt in attempts if attempt.errno]
        error = errnos[-1] if errnos else _RESULT_ERROR.get(attempts[-1].result or "")

    lookup = join.lookup if join else None
    host: str | None = None
    host_source: str | None = None
    start_ns = first_ns
    if lookup:
        host, host_source = lookup.name, "lookup"
        if first_ns - lookup.end_ns < CACHED_NS:
            start_ns = min(first_ns, lookup.start_ns)

    tls: Tls | None = None
    tls_us = request_us = None
    greeting_us: int | None = None
    turns: Turns | None = None
    prot: dict[str, object] | None = None
    if flags & ConnFlag.TLS:
        wire = _wire_of(conn, hellos)
        view = _tls_of(conn, hellos, wire)
        tls, tls_us = view.tls, view.us
        error = error or view.error
        if host is None and tls.sni:
            host, host_source = tls.sni, "sni"
        if wire.request_us is not None and wire.response_us is not None:
            request_us = wire.response_us - wire.request_us
        if tls.result == "ok":
            turns = _tls_turns(conn, wire)
    elif established and packets:
        if conn.first_tx_ns and conn.first_resp_ns:
            request_us = (conn.first_resp_ns - conn.first_tx_ns) // 1000
        if conn.first_rx_ns and (not conn.first_tx_ns or conn.first_rx_ns < conn.first_tx_ns):
            greeting_us = (conn.first_rx_ns - established) // 1000
        turns = Turns(conn.turn_count, conn.turn_sum_ns // 1000, conn.turn_max_ns // 1000)
        if conn.rx_head_len:
            prot = parse_heads(conn.tx_head[: conn.tx_head_len], conn.rx_head[: conn.rx_head_len])

    state = "open"
    if conn.phase == Phase.FAILED:
        state = "failed"
    elif conn.phase == Phase.CLOSED:
        state = "failed" if error else "closed"
        # once either side has said goodbye, a reset is only how the other one hangs up
        if not error and conn.sk_err and not flags & (ConnFlag.LOCAL_CLOSE | ConnFlag.RX_FIN):
            error = errno_name(conn.sk_err)
            # broken off before any answer came: the connection served nothing
            if not conn.first_rx_ns or (tls is not None and request_us is None):
                state = "failed"

    return Record(
        id=_record_id(facts, conn),
        start=clock.text(start_ns),
        state=state,
        pid=conn.pid,
        tid=conn.tid,
        comm=who.comm,
        exe=who.exe,
        cmdline=who.cmdline,
        uid=conn.uid,
        unit=who.unit,
        container=who.container,
        netns=conn.netns or None,
        host=host,
        host_source=host_source,
        laddr=address_text(conn.family, conn.laddr) if any(conn.laddr) else None,
        lport=conn.lport or None,
        raddr=raddr,
        rport=conn.rport,
        family="ipv4" if ipv4 else "ipv6",
        peer=raddr if established else None,
        dns=lookup.addresses if lookup else None,
        dns_us=(lookup.end_ns - lookup.start_ns) // 1000 if lookup else None,
        dns_disp=_dns_disp(lookup, facts),
        dns_source=lookup.source if lookup else ("literal" if literal else None),
        dns_age_us=(conn.connect_ns - lookup.end_ns) // 1000 if lookup else None,
        dns_match=join.match if join else None,
        sockconn_us=(established - conn.connect_ns) // 1000 if established else None,
        attempts=attempts,
        tls_us=tls_us,
        tls=tls,
        txn_resp_us=request_us,
        greeting_us=greeting_us,
        turns=turns,
        prot_specific=prot,
        tcp=tcp_of(conn) if conn.end_ns and established else None,
        duration_us=(conn.end_ns - conn.connect_ns) // 1000 if conn.end_ns else None,
        error=error,
        lost_before=lost,
    )


def tcp_of(conn: ConnEvent) -> Tcp:
    """The kernel's own figures, as they stood when the event was filled in."""
    return Tcp(
        rtt_us=conn.rtt_us or None,
        rttvar_us=conn.rttvar_us if conn.rtt_us else None,
        retransmits=conn.retransmits,
        bytes_sent=conn.bytes_sent,
        bytes_received=conn.bytes_received,
    )


def _dns_disp(lookup: Lookup | None, facts: Facts) -> int | None:
    if lookup is not None:
        return dns_disposition(lookup.ret)
    return DNS_NONE if facts.lookups_seen else None


def _tls_turns(conn: ConnEvent, wire: Wire) -> Turns:
    """The log's turns, and those that the kernel counted once the log was full."""
    count = wire.turn_count + conn.turn_count
    total = wire.turn_sum_us + conn.turn_sum_ns // 1000
    return Turns(count, total, max(wire.turn_max_us, conn.turn_max_ns // 1000))


def lookup_record(lookup: Lookup, *, facts: Facts, clock: Clock, who: Identity) -> Record:
    """The record of a lookup that failed, so that no connection followed."""
    task = lookup.task
    return Record(
        id=f"{facts.boot}-n{lookup.start_ns:x}",
        start=clock.text(lookup.start_ns),
        state="failed",
        pid=task.pid,
        tid=task.tid,
        comm=who.comm,
        exe=who.exe,
        cmdline=who.cmdline,
        uid=task.uid,
        unit=who.unit,
        container=who.container,
        netns=task.netns or None,
        host=lookup.name,
        host_source="lookup",
        dns=(),
        dns_us=(lookup.end_ns - lookup.start_ns) // 1000 if lookup.end_seen else None,
        dns_disp=dns_disposition(lookup.ret, lookup.hint_flags),
        dns_source=lookup.source,
        error=eai_name(lookup.ret),
    )
