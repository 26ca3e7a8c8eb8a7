"""How a connection that stood ended: whether it failed, and by which errno name. Pure.

Theory of operation. A connection that stood has failed where its TLS handshake failed, where it
was broken off before anything was answered, or where its first request got no answer. The last is
said only where there had to be one: an HTTP or MQTT request by its first bytes, or TLS with no
protocol on offer but HTTP. Much else may end without an answer and be well (syslog, statsd, QUIT).

=================================  ==================================  =========================
the first request                  and                                 error
=================================  ==================================  =========================
was not answered                   the server closed                   ENODATA
...                                a reset, a time-out of the kernel   that errno
...                                the client left within 0.9 s        ECANCELED
...                                the client left later               ETIMEDOUT
was answered                       a reset or a time-out               that errno; not failed
=================================  ==================================  =========================

A reset after a goodbye is only how the other side hangs up: after this side's close(), and after
the peer's FIN unless a new request was sent into it, as on a connection kept alive that the server
closed meanwhile. Who only shut down its own direction waits for an answer: that is no goodbye.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from conmon.names import errno_name
from monitor.correlate.exchange import Exchange, given_up
from monitor.decode import ConnEvent, ConnFlag, Phase

__all__ = ["Ending", "ending_of"]

HUNG_UP: Final = "ENODATA"
"""The server ended the connection instead of answering."""


class Ending(NamedTuple):
    """As the record's keys of the same names."""

    state: str
    error: str | None


def ending_of(conn: ConnEvent, exchange: Exchange) -> Ending:
    """Judge a connection that stood, and say "open" of one that still does."""
    if conn.phase != Phase.CLOSED:
        return Ending("open", exchange.error)
    if exchange.error:
        return Ending("failed", exchange.error)
    waited_us = exchange.unanswered_us
    # a reset that comes after its FIN is how its host takes a goodbye
    if waited_us is not None and _server_left(conn):
        return Ending("failed", HUNG_UP)
    error = _broken_off(conn, exchange)
    if error is not None:
        served = conn.first_rx_ns and (exchange.tls is None or exchange.answered)
        return Ending("closed" if served else "failed", error)
    if waited_us is not None:
        return Ending("failed", given_up(waited_us * 1000)[1])
    return Ending("closed", None)


def _broken_off(conn: ConnEvent, exchange: Exchange) -> str | None:
    if not conn.sk_err or _left_here(conn):
        return None
    if conn.flags & ConnFlag.RX_FIN and (
        conn.flags & (ConnFlag.LOCAL_CLOSE | ConnFlag.INBOUND) or not exchange.asking
    ):
        return None
    return errno_name(conn.sk_err)


# Whether this side closed first, both directions.
def _left_here(conn: ConnEvent) -> bool:
    return bool(conn.flags & ConnFlag.LOCAL_CLOSE) and not conn.flags & ConnFlag.HALF_CLOSE


def _server_left(conn: ConnEvent) -> bool:
    if conn.flags & ConnFlag.INBOUND:
        return not conn.flags & (ConnFlag.RX_FIN | ConnFlag.RX_RST)
    return bool(conn.flags & ConnFlag.RX_FIN) and not _left_here(conn)
