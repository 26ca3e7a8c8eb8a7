"""Whether a request that had to be answered was not. Pure.

Not known is no: of most protocols nobody can tell from outside whether the last thing said wanted
an answer.
"""

from __future__ import annotations

from typing import Final

from conmon.heads import parse_heads
from conmon.record import Tls
from monitor.decode import ConnEvent, ConnFlag, RecordFlag
from monitor.wire.handshake import Wire

__all__ = ["SILENT_PEER_NS", "asks_inside", "secured_in_vain_us", "waited_in_vain_us"]

# A SYN that was never answered is sent again after a second. A process that gives up later than
# this waited for a silent peer; one that gives up earlier changed its mind.
SILENT_PEER_NS: Final = 900_000_000
_HTTP_PROTOCOLS: Final = frozenset(("h2", "http/1.1", "http/1.0"))
# A line that begins as a request does may be of something else, sent to who never answers (a log).
_HTTP_METHODS: Final = frozenset((
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH",
))  # fmt: skip
_DATA: Final = 23
# A record that long holds more than a goodbye (LOGOUT, QUIT, GOAWAY), and the shortest of HTTP/1.1.
_REQUEST_RECORD: Final = 44


def waited_in_vain_us(conn: ConnEvent) -> int | None:
    """Return how long a request in the clear was not answered; None where it was, or where it is
    not certain that it had to be."""
    flags = conn.flags
    if not _has_ended(conn) or not conn.first_tx_ns or flags & ConnFlag.UDP:
        return None
    inbound = flags & ConnFlag.INBOUND
    answered_bytes = conn.bytes_sent if inbound else conn.bytes_received
    head = conn.rx_head[: conn.rx_head_len]
    if answered_bytes > len(head) or (conn.first_rx_ns and not head):
        return None
    seen = parse_heads(conn.tx_head[: conn.tx_head_len], head)
    if seen is None:
        return None
    if seen["protocol"] == "http":
        # answered with a mere 100 Continue: the answer that counts was still to come
        waits = not head or (head.endswith(b"\r\n\r\n") and "resp" not in seen)
        if not waits or ("method" in seen and seen["method"] not in _HTTP_METHODS):
            return None
    elif head:
        return None
    return (conn.end_ns - conn.first_tx_ns) // 1000


def secured_in_vain_us(conn: ConnEvent, wire: Wire, tls: Tls) -> int | None:
    """Return the same of a request inside TLS."""
    if not _has_ended(conn) or tls.result != "ok" or wire.request_us is None:
        return None
    if not _is_http(tls) or not _is_whole(conn):
        return None
    if wire.turn_count or conn.turn_count or wire.response_us is not None:
        return None
    if wire.unsettled or not wire.turns_timed:
        return None
    end_us = (conn.end_ns - conn.connect_ns) // 1000
    # HTTP/2's servers refuse by a frame that looks like any other; the program leaves upon it
    if wire.h2_guess and conn.flags & ConnFlag.LOCAL_CLOSE:
        heard_us = max((r.at_us for r in conn.records() if r.flags & RecordFlag.RX), default=0)
        if heard_us >= wire.request_us and end_us - heard_us < SILENT_PEER_NS // 1000:
            return None
    return max(0, end_us - wire.request_us)


def asks_inside(conn: ConnEvent, wire: Wire, tls: Tls) -> bool:
    """Whether a request was open inside TLS when it ended."""
    if conn.flags & ConnFlag.TX_LATE:
        return True
    since_us = wire.open_request_us
    if since_us is None or not _is_whole(conn) or wire.log_full:
        return False
    return _is_http(tls) or any(
        record.type == _DATA
        and not record.flags & RecordFlag.RX
        and record.at_us >= since_us
        and record.len >= _REQUEST_RECORD
        for record in conn.records()
    )


def _is_http(tls: Tls) -> bool:
    return bool(tls.alpn) and _HTTP_PROTOCOLS.issuperset(tls.alpn or ())


# Whether its end was seen: what came before one that was not may be an answer.
def _has_ended(conn: ConnEvent) -> bool:
    return bool(conn.end_ns) and not conn.flags & ConnFlag.END_UNSEEN


# Whether no record is missing from the log, but for those after it was full.
def _is_whole(conn: ConnEvent) -> bool:
    return not conn.flags & (ConnFlag.RX_GAP | ConnFlag.TX_GAP | ConnFlag.FOLDED)
