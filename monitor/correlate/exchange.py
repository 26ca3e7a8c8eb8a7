"""What was exchanged on a connection once it stood: TLS, first request and answer, turns. Pure."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from conmon.heads import parse_heads
from conmon.names import errno_name
from conmon.record import Tls, Turns
from monitor.correlate.hellos import Hellos
from monitor.correlate.unanswered import (
    SILENT_PEER_NS,
    asks_inside,
    secured_in_vain_us,
    waited_in_vain_us,
)
from monitor.decode import ConnEvent, ConnFlag, Library, RecordFlag
from monitor.wire.alerts import alert_name
from monitor.wire.handshake import ENCRYPTED_ALERT, Wire, analyze
from monitor.wire.http2 import Http2
from monitor.wire.quic import Quic

__all__ = ["Exchange", "exchange_of", "given_up"]

RECORD_LOG_MAX: Final = 32  # bpf/event.h
MERGED_MOST: Final = 2048  # bpf/packet.bpf.c
FOLDED_FROM: Final = 16  # likewise: of that many entries of the log, all but two stay as they are
_DIR_TX, _DIR_RX = 1, 2  # bpf/event.h: last_dir
_EPROTO: Final = "EPROTO"
_RESET: Final = "ECONNRESET"
_LIBRARIES: Final[dict[int, str]] = {
    library: library.name.lower() for library in Library if library is not Library.NONE
}


class Exchange(NamedTuple):
    """As the record's keys of the same names; ``response_us`` is its ``txn_resp_us``, and
    ``source`` its ``txn_source``."""

    tls: Tls | None = None
    tls_us: int | None = None
    response_us: int | None = None
    source: str | None = None
    greeting_us: int | None = None
    turns: Turns | None = None
    prot_specific: dict[str, Any] | None = None
    error: str | None = None
    answered: bool = False
    """Inside TLS, or not to be told from HTTP/2's own frames; whether or not it is known when."""
    unanswered_us: int | None = None
    """It ended so long after its first request, which had to be answered and was not."""
    asking: bool = False
    """At its end a request was open, or may have been one: more than a goodbye."""


def exchange_of(
    conn: ConnEvent, hellos: Hellos | None, plain: dict[str, Any] | None = None
) -> Exchange:
    """Read one connection's packets.

    Args:
        conn: open or ended.
        hellos: its TLS hellos or QUIC datagrams.
        plain: what was spoken inside TLS, where its library was asked.
    """
    flags = conn.flags
    if flags & ConnFlag.QUIC:
        return _quic(conn, hellos)
    if flags & ConnFlag.TLS:
        return _secured(conn, hellos, plain)
    if not (conn.established_ns and flags & ConnFlag.PACKETS):
        return Exchange()
    if flags & ConnFlag.H2 and hellos is not None:
        return _http2(conn, hellos)
    response_us = None
    if conn.first_tx_ns and conn.first_resp_ns:
        response_us = (conn.first_resp_ns - conn.first_tx_ns) // 1000
    prot = None
    waited_us = waited_in_vain_us(conn)
    if (conn.rx_head_len or waited_us is not None) and not flags & ConnFlag.UDP:
        prot = parse_heads(conn.tx_head[: conn.tx_head_len], conn.rx_head[: conn.rx_head_len])
    is_http = prot is not None and prot["protocol"] == "http"
    if is_http and _is_interim(conn.rx_head[: conn.rx_head_len]):
        response_us = None  # the answer that counts was still to come
    return Exchange(
        unanswered_us=waited_us,
        asking=bool(flags & ConnFlag.TX_LATE) or (is_http and conn.last_dir == _DIR_TX),
        response_us=response_us,
        source="plain" if response_us is not None else None,
        greeting_us=_greeting_us(conn),
        turns=Turns(conn.turn_count, conn.turn_sum_ns // 1000, conn.turn_max_ns // 1000),
        prot_specific=prot,
    )


# An answer of HTTP/1.1 from 100 to 199 but for 101, as far as its first bytes go; one with the
# next in the same packet is as good as that.
def _is_interim(head: bytes) -> bool:
    if not head.startswith(b"HTTP/1.") or head[8:10] != b" 1" or head[8:12] == b" 101":
        return False
    return len(head) > 11 and not head.partition(b"\r\n\r\n")[2].startswith(b"HTTP/")


# Where the server speaks first, before TLS begins if it ever does.
def _greeting_us(conn: ConnEvent) -> int | None:
    first_ns = conn.first_rx_ns
    if not first_ns or (conn.first_tx_ns and first_ns >= conn.first_tx_ns):
        return None
    return (first_ns - conn.established_ns) // 1000 if conn.established_ns else None


def _secured(conn: ConnEvent, hellos: Hellos | None, plain: dict[str, Any] | None) -> Exchange:
    wire = _wire_of(conn, hellos)
    view = _tls_of(conn, hellos, wire)
    response_us = None
    if wire.request_us is not None and wire.response_us is not None:
        response_us = wire.response_us - wire.request_us
    elif wire.open_request_us is not None and wire.open_request_us == wire.request_us:
        response_us = _answered_late_us(conn, wire, wire.request_us)
    greeting_us = _greeting_us(conn)
    inside = conn.established_ns and not conn.flags & ConnFlag.TLS_LATE
    if greeting_us is None and wire.greeting_us is not None and inside:
        connecting_us = (conn.established_ns - conn.connect_ns) // 1000
        greeting_us = max(0, wire.greeting_us - connecting_us)
    turns = _tls_turns(conn, wire) if view.tls.result in ("ok", "unused") else None
    if conn.flags & ConnFlag.FOLDED and not wire.h2_guess:
        # what was taken out were answers
        turns = None
        if not _answered_before_folding(conn, wire):
            response_us = None
    source = None
    if response_us is not None:
        source = "h2_records" if wire.h2_guess else "records"
    return Exchange(
        tls=view.tls,
        tls_us=view.us,
        response_us=response_us,
        source=source,
        greeting_us=greeting_us,
        turns=turns,
        prot_specific=plain,
        error=view.error,
        answered=wire.turn_count > 0 or response_us is not None or wire.unsettled,
        unanswered_us=secured_in_vain_us(conn, wire, view.tls),
        asking=asks_inside(conn, wire, view.tls),
    )


# The log was full before the first request was answered: from the one turn that the kernel side
# counted since. That turn begins with the first packet sent after the last one received, which may
# be long after the request and need not begin a record; so None where it is not known exactly.
def _answered_late_us(conn: ConnEvent, wire: Wire, request_us: int) -> int | None:
    if conn.turn_count != 1 or wire.turn_count or not wire.turns_timed:
        return None
    if wire.h2_guess or wire.unsettled:
        return None
    if conn.flags & (ConnFlag.TLS_LATE | ConnFlag.RX_GAP | ConnFlag.TX_GAP):
        return None
    done_us = wire.handshake_done_us
    if done_us is None or wire.early_data is not None:
        return None
    if conn.last_dir == _DIR_RX:  # nothing was sent since
        begun_us = (conn.turn_start_ns - conn.connect_ns) // 1000
    else:
        sent_us = [0]  # since the last record received
        for record in conn.records():
            if not record.flags & RecordFlag.RX:
                sent_us.append(record.at_us)
            elif record.at_us >= request_us:
                return None  # more of the request was then on its way
            else:
                sent_us.clear()
        begun_us = sent_us[0]
        if begun_us < done_us:
            return None  # more of the server's flight may have come after that
    answered_us = begun_us + conn.turn_sum_ns // 1000
    if wire.ticket_limit_us is not None:
        # no ticket that came after Finished, nor one held back until the request was there
        least_us = max(done_us, request_us) + wire.ticket_limit_us - done_us
        if answered_us <= least_us:
            return None
    return answered_us - request_us


# SETTINGS come before the first request and its answer, and are neither. Beyond the first bytes,
# whose frames are read, a turn is what changes the direction, as for any protocol.
def _http2(conn: ConnEvent, hellos: Hellos) -> Exchange:
    seen = hellos.http2.seen() if hellos.http2 is not None else Http2()
    response_us = None
    if seen.request_us is not None and seen.response_us is not None:
        response_us = seen.response_us - seen.request_us
    turns = None
    if seen.request_us is not None:
        turns = Turns(
            len(seen.turns_us) + conn.turn_count,
            sum(seen.turns_us) + conn.turn_sum_ns // 1000,
            max((*seen.turns_us, conn.turn_max_ns // 1000)),
        )
    return Exchange(
        response_us=response_us,
        source="plain" if response_us is not None else None,
        turns=turns,
        prot_specific=seen.prot_specific(),
    )


# What follows the handshake is encrypted, and which datagram answers which is not to be seen.
def _quic(conn: ConnEvent, hellos: Hellos | None) -> Exchange:
    reader = hellos.quic if hellos is not None else None
    one_rtt_us = (conn.ssl_done_ns - conn.connect_ns) // 1000 if conn.ssl_done_ns else None
    seen = reader.seen(one_rtt_us=one_rtt_us) if reader is not None else Quic()
    result: str | None = None
    error: str | None = None
    if conn.ssl_done_ns or seen.done_us is not None:
        result = "ok"
    elif conn.end_ns:
        if seen.alert is not None:
            result, error = "alert", _EPROTO
        elif not conn.first_rx_ns and conn.sk_err:
            result, error = "failed", errno_name(conn.sk_err)
        elif not conn.first_rx_ns:
            result, error = given_up(conn.end_ns - conn.connect_ns)
        else:
            result, error = ("rejected" if seen.handshake_sent else "closed"), _EPROTO
    tls_us = None
    if result == "ok" and seen.done_us is not None and seen.hello_us is not None:
        tls_us = seen.done_us - seen.hello_us
    client, server = seen.client, seen.server
    tls = Tls(
        source="wire",
        version="TLSv1.3",  # the only one that QUIC has (RFC 9001 section 4.2)
        cipher=server.cipher if server is not None and not server.hello_retry else None,
        sni=client.sni if client is not None else None,
        alpn=(client.alpn or None) if client is not None else None,
        alpn_chosen=False if client is not None and client.alpn else None,
        resumed=server.psk_selected if server is not None and result == "ok" else None,
        result=result,
        alert=alert_name(seen.alert) if seen.alert is not None else None,
    )
    return Exchange(tls=tls, tls_us=tls_us, error=error)


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
        log_full=conn.log_len >= RECORD_LOG_MAX or conn.log_merged >= MERGED_MOST,
        gap_rx=bool(flags & ConnFlag.RX_GAP),
        gap_tx=bool(flags & ConnFlag.TX_GAP),
        alert_tx=_alert(conn.alert_tx),
        alert_rx=_alert(conn.alert_rx),
        path_us=_path_us(conn),
    )


def _answered_before_folding(conn: ConnEvent, wire: Wire) -> bool:
    whole = conn.records()[: FOLDED_FROM - 2]
    return any(r.flags & RecordFlag.RX and r.at_us == wire.response_us for r in whole)


# The shortest round trip of its packets that is known; None of an accepted connection, whose
# packets take none.
def _path_us(conn: ConnEvent) -> int | None:
    if conn.flags & ConnFlag.INBOUND or not conn.established_ns:
        return None
    connecting_us = (conn.established_ns - conn.connect_ns) // 1000
    return min(connecting_us, conn.rtt_us or connecting_us)


def _alert(seen: int) -> int | None:
    if not seen:
        return None
    return ENCRYPTED_ALERT if seen == 255 else seen - 1


class _TlsView(NamedTuple):
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
    source = _LIBRARIES.get(Library(conn.ssl_library), "wire") if conn.ssl_first_ns else "wire"
    # a library that connects within its call (wget2) does not shake hands before that
    begun_ns = conn.ssl_first_ns
    if conn.hello_ns > conn.established_ns:
        begun_ns = max(begun_ns, conn.established_ns)
    if conn.ssl_done_ns:
        us = (conn.ssl_done_ns - begun_ns) // 1000
    elif wire.handshake_done_us is not None and wire.hello_us is not None:
        us = wire.handshake_done_us - wire.hello_us
        if source != "wire":  # the library says when it began, the wire when it was done
            us += max(0, conn.hello_ns - begun_ns) // 1000
    result, error = _tls_result(conn, wire)
    if result != "ok":
        us = None if result is not None else us
    if result == "ok" and _unused(conn, wire):
        result = "unused"
    tls = Tls(
        source=source,
        version=wire.version or (server.version if server else None),
        cipher=server.cipher if server and not server.hello_retry else None,
        sni=client.sni if client else None,
        alpn=alpn,
        alpn_chosen=chosen,
        resumed=wire.resumed if result in ("ok", "unused") else None,
        result=result,
        alert=wire.alert if result in ("alert", "rejected") else None,
    )
    return _TlsView(tls, us, error)


# Nothing was said once the handshake had ended, and nothing broke it off: the program turned down
# what it learnt by it (many look at the certificate's name only then), or it was kept for later.
def _unused(conn: ConnEvent, wire: Wire) -> bool:
    cut_off = conn.sk_err and not conn.flags & (ConnFlag.LOCAL_CLOSE | ConnFlag.RX_FIN)
    seen = conn.end_ns and not conn.flags & ConnFlag.END_UNSEEN
    return bool(seen) and wire.unused and not cut_off


def _tls_result(conn: ConnEvent, wire: Wire) -> tuple[str | None, str | None]:
    """The handshake's result, and the errno name it means for the record."""
    ended = bool(conn.end_ns)
    if conn.ssl_done_ns:
        # in TLS 1.3 the client is done before the server has looked at its certificate
        if ended and wire.result == "alert" and wire.alert_from == "server":
            return "alert", _EPROTO
        return "ok", None
    # The library's own word that it failed outweighs lengths that look like a Finished, but not
    # what was said after it: reading and writing finish a handshake as well (hiredis).
    library_failed = bool(conn.flags & ConnFlag.SSL_RETURNED and ended)
    if wire.result == "ok" and not (library_failed and not wire.spoke):
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
    # A reset ends a connection at once, so one that came after this side's FIN was but its answer.
    closed_here = bool(conn.flags & ConnFlag.LOCAL_CLOSE)
    if conn.flags & ConnFlag.RX_RST and not closed_here:
        return "reset", _RESET
    if conn.sk_err:
        errno = errno_name(conn.sk_err)
        if not (closed_here and errno == _RESET):
            return ("timeout" if errno == "ETIMEDOUT" else "reset"), errno
    if wire.result is None:
        return None, None
    if conn.flags & ConnFlag.RX_FIN and not closed_here:
        return "closed", _EPROTO
    # This side gave up: on the server's certificate, without an alert, or on waiting for it.
    if wire.waiting_for == "client":
        return "rejected", _EPROTO
    return given_up(conn.end_ns - (conn.hello_ns or conn.connect_ns))


def given_up(waited_ns: int) -> tuple[str, str]:
    """What failed that this side left while the other had to speak: a handshake's result, and the
    errno name."""
    if waited_ns < SILENT_PEER_NS:
        return "failed", "ECANCELED"
    return "timeout", "ETIMEDOUT"


def _tls_turns(conn: ConnEvent, wire: Wire) -> Turns | None:
    """The log's turns, and those that the kernel counted once the log was full."""
    if wire.unsettled or not wire.turns_timed:
        return None
    count = wire.turn_count + conn.turn_count
    total = wire.turn_sum_us + conn.turn_sum_ns // 1000
    return Turns(count, total, max(wire.turn_max_us, conn.turn_max_ns // 1000))
