"""One conmon record from what is known of a connection. Pure; nothing is guessed: a figure whose
begin or end was not seen is None."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from conmon.names import (
    DNS_NONE,
    attempt_result,
    dns_disposition,
    eai_name,
    errno_name,
)
from conmon.record import Attempt, Record, Tcp
from monitor.correlate.ending import ending_of
from monitor.correlate.exchange import exchange_of
from monitor.correlate.hellos import Hellos
from monitor.correlate.identity import Identity
from monitor.correlate.lookup import Asked, Join, Lookup, fold, sni_name
from monitor.correlate.text import address_text, is_ipv4
from monitor.correlate.unanswered import SILENT_PEER_NS
from monitor.decode import ConnEvent, ConnFlag, Phase

__all__ = ["Clock", "Facts", "attempt_of", "lookup_record", "record_of", "tcp_of"]

# An answer older than this was remembered by the program: its lookup was not part of what the
# user waited for, and the record starts at connect().
CACHED_NS: Final = 1_000_000_000
_UNBOUND: Final = bytes(16)
_ENDS: Final = struct.Struct("=HHI")


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
        us = _span((conn.established_ns - conn.connect_ns) // 1000)
        return Attempt(raddr, conn.rport, us, offset_us, "ok", None)
    if conn.phase in (Phase.SYN_SENT, Phase.CALLING) or conn.flags & ConnFlag.END_UNSEEN:
        # not decided yet, or not seen
        return Attempt(raddr, conn.rport, None, offset_us, None, None)
    if conn.flags & ConnFlag.SYNC_FAIL:
        # connect() itself returned the error: no time passed that means anything
        errno = errno_name(conn.sk_err) if conn.sk_err else None
        return Attempt(
            raddr, conn.rport, None, offset_us, attempt_result(errno) if errno else "failed", errno
        )
    us = _span((conn.end_ns - conn.connect_ns) // 1000)
    if conn.sk_err:
        errno = errno_name(conn.sk_err)
        return Attempt(raddr, conn.rport, us, offset_us, attempt_result(errno), errno)
    silent = not won_elsewhere and (
        conn.retransmits > 0 or conn.end_ns - conn.connect_ns >= SILENT_PEER_NS
    )
    return Attempt(raddr, conn.rport, us, offset_us, "timeout" if silent else "abandoned", None)


# Something that ended before it began is two things, and how long either took is not known.
def _span(us: int | None) -> int | None:
    return us if us is not None and us >= 0 else None


# What an attempt without an errno of its own says in the record's ``error``.
_RESULT_ERROR: Final = {"timeout": "ETIMEDOUT", "abandoned": "ECANCELED"}


def _record_id(facts: Facts, conn: ConnEvent, *, again: bool) -> str:
    if conn.cookie:
        later = f".{conn.connect_ns:x}" if again else ""
        return f"{facts.boot}-{conn.cookie:x}{later}"
    # No cookie was made for this socket. Two of them may begin in one nanosecond, but not between
    # the same ends.
    ends = zlib.crc32(conn.laddr + conn.raddr + _ENDS.pack(conn.lport, conn.rport, conn.netns))
    return f"{facts.boot}-t{conn.connect_ns:x}.{ends:x}"


def record_of(
    conn: ConnEvent,
    *,
    facts: Facts,
    clock: Clock,
    who: Identity,
    join: Join | None,
    literal: bool,
    in_doubt: bool = False,
    asked: Asked | None = None,
    hellos: Hellos | None,
    earlier: Sequence[ConnEvent] = (),
    lost: bool = False,
    lost_hello: bool = False,
    plain: dict[str, Any] | None = None,
    tcp: Tcp | None = None,
    again: bool = False,
) -> Record:
    """Make the record of one connection, open or ended.

    Args:
        conn: the attempt that won, or the last one where all failed.
        who: the process.
        join: the lookup it came from.
        literal: the process handed the address to getaddrinfo() as a literal.
        in_doubt: some name with its address was looked up, and perhaps it came from that.
        asked: the host of its first HTTP request.
        hellos: its TLS hellos.
        earlier: the other attempts of the same connection.
        lost: events were lost that could belong to it.
        lost_hello: ... among them parts of its hellos.
        plain: what was spoken inside TLS, where its library was asked.
        tcp: what the socket of an open one says; of an ended one the event tells.
        again: its socket had been connected before.
    """
    flags = conn.flags
    established = conn.established_ns
    inbound = bool(flags & ConnFlag.INBOUND)
    datagrams = bool(flags & ConnFlag.UDP)
    transport = ("quic" if flags & ConnFlag.QUIC else "udp") if datagrams else "tcp"
    ipv4 = is_ipv4(conn.family, conn.raddr)
    raddr = address_text(conn.family, conn.raddr)
    connect_ns, end_ns = conn.connect_ns, conn.end_ns
    error: str | None = None
    lost = lost or lost_hello
    if flags & ConnFlag.END_UNSEEN:
        # what is known of it is what was known while it was open
        lost, end_ns, tcp = True, 0, None
        conn = conn._replace(end_ns=0, sk_err=0)

    if earlier:
        tries = sorted((*earlier, conn), key=lambda c: c.connect_ns)
        first_ns = tries[0].connect_ns
        won = bool(established)
        attempts = tuple(attempt_of(c, first_ns, won_elsewhere=won) for c in tries)
    else:
        first_ns = connect_ns
        attempts = (attempt_of(conn, first_ns),)
    if not established and conn.phase == Phase.FAILED:
        # one that was given up when the others had failed says less than they do
        errnos = [attempt.errno for attempt in attempts if attempt.errno]
        error = errnos[-1] if errnos else _RESULT_ERROR.get(attempts[-1].result or "")

    lookup = join.named if join else None
    host: str | None = None
    host_source: str | None = None
    start_ns = first_ns
    dns_us: int | None = None
    age_us: int | None = None
    if join and lookup:
        host, host_source = lookup.name, join.source
        answered_ns = lookup.end_before(first_ns)
        dns_us = _span((answered_ns - lookup.start_ns) // 1000)
        age_us = _span((connect_ns - lookup.end_before(connect_ns)) // 1000)
        if first_ns - answered_ns < CACHED_NS:
            start_ns = min(first_ns, lookup.start_ns)

    exchange = exchange_of(conn, hellos, plain)
    if lost_hello and _lacks_hello(hellos, flags):
        exchange = exchange._replace(response_us=None, greeting_us=None, turns=None)
    tls, request_us = exchange.tls, exchange.response_us
    sni = sni_name(tls.sni) if host is None and tls is not None and tls.sni else None
    if sni is not None:
        host, host_source = sni, "sni"
    elif host is None and asked is not None and asked.name is not None:
        host, host_source = asked.name, asked.source

    state = "failed"
    if conn.phase != Phase.FAILED:
        state, error = ending_of(conn, exchange)

    return Record(
        id=_record_id(facts, conn, again=again),
        start=clock.text(start_ns),
        state=state,
        role="server" if inbound else "client",
        pid=conn.pid or None,
        tid=conn.tid or None,
        comm=who.comm,
        exe=who.exe,
        cmdline=who.cmdline,
        uid=conn.uid if conn.pid else None,
        unit=who.unit,
        container=who.container,
        container_pid=who.container_pid,
        netns=conn.netns or None,
        host=host,
        host_source=host_source,
        laddr=address_text(conn.family, conn.laddr) if conn.laddr != _UNBOUND else None,
        lport=conn.lport or None,
        raddr=raddr,
        rport=conn.rport,
        family="ipv4" if ipv4 else "ipv6",
        transport=transport,
        peer=raddr if (conn.first_rx_ns if datagrams else established) else None,
        dns=lookup.addresses if lookup else None,
        dns_us=dns_us,
        dns_disp=None
        if inbound or (lost and lookup is None)
        else _dns_disp(lookup, facts, in_doubt and not literal),
        dns_source=lookup.source if lookup else ("literal" if literal else None),
        dns_age_us=age_us,
        dns_match=join.match if join and lookup else None,
        sockconn_us=(
            _span((established - connect_ns) // 1000)
            if established and not datagrams and not inbound
            else None
        ),
        attempts=() if datagrams or inbound else attempts,
        tls_us=_span(exchange.tls_us),
        tls=tls,
        txn_resp_us=_span(request_us),
        txn_source=exchange.source,
        greeting_us=_span(exchange.greeting_us),
        turns=exchange.turns,
        prot_specific=_with_host(exchange.prot_specific, asked, host, raddr),
        tcp=(tcp_of(conn) if end_ns else tcp) if established else None,
        duration_us=_span((end_ns - connect_ns) // 1000) if end_ns else None,
        error=error,
        lost_before=lost,
    )


# What was said when depends on what the hellos agreed on, and for HTTP/2 on its first frames.
def _lacks_hello(hellos: Hellos | None, flags: int) -> bool:
    if hellos is None:
        return True
    if not flags & ConnFlag.TLS:
        return False
    client, server = hellos.client, hellos.server
    return client is None or server is None or client.truncated or server.truncated


def tcp_of(conn: ConnEvent) -> Tcp:
    """The kernel's own figures, as they stood when the event was filled in; of datagrams the
    bytes alone."""
    if conn.flags & ConnFlag.UDP:
        return Tcp(bytes_sent=conn.bytes_sent, bytes_received=conn.bytes_received)
    return Tcp(
        rtt_us=conn.rtt_us or None,
        rttvar_us=conn.rttvar_us if conn.rtt_us else None,
        retransmits=conn.retransmits,
        bytes_sent=conn.bytes_sent,
        bytes_received=conn.bytes_received,
    )


def _dns_disp(lookup: Lookup | None, facts: Facts, in_doubt: bool) -> int | None:
    if lookup is not None:
        return dns_disposition(lookup.ret)
    return DNS_NONE if facts.lookups_seen and not in_doubt else None


# A request may ask for another host than the one that was looked up: both are told.
def _with_host(
    prot: dict[str, Any] | None, asked: Asked | None, host: str | None, raddr: str
) -> dict[str, Any] | None:
    if prot is None or asked is None or asked.host == fold(host or raddr):
        return prot
    return {**prot, "host": asked.host}


def lookup_record(lookup: Lookup, *, facts: Facts, clock: Clock, who: Identity) -> Record:
    """The record of a lookup that failed, so that no connection followed."""
    task = lookup.task
    return Record(
        id=f"{facts.boot}-n{lookup.start_ns:x}.{task.tid:x}",
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
        container_pid=who.container_pid,
        netns=task.netns or None,
        host=lookup.name,
        host_source="lookup",
        dns=(),
        dns_us=_span((lookup.end_ns - lookup.start_ns) // 1000) if lookup.end_seen else None,
        dns_disp=dns_disposition(lookup.ret, lookup.hint_flags),
        dns_source=lookup.source,
        error=eai_name(lookup.ret),
    )
