"""Whom a connection's own bytes ask for. Pure."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Final

from monitor.correlate.hellos import Hellos
from monitor.correlate.lookup import Asked, sni_name
from monitor.correlate.text import address_key, is_ipv4_text
from monitor.decode import ConnEvent, ConnFlag
from monitor.wire.http1 import request_host

__all__ = ["has_hellos", "http_asked", "says_whom", "sni_asked"]

_HELLOS: Final = ConnFlag.TLS | ConnFlag.QUIC | ConnFlag.H2
_SAYS: Final = _HELLOS | ConnFlag.HTTP


def has_hellos(conn: ConnEvent) -> bool:
    """Whether some of its bytes came as hello events."""
    flags = conn.flags
    return bool(flags & _HELLOS or (flags & ConnFlag.HTTP and not conn.log_merged))


def says_whom(conn: ConnEvent) -> bool:
    """Whether its bytes may say whom they ask for."""
    return bool(conn.flags & _SAYS)


def sni_asked(conn: ConnEvent, hellos: Hellos | None) -> Asked | None:
    """The name in its ClientHello, where TLS or QUIC is all that was spoken."""
    if not conn.flags & (ConnFlag.TLS | ConnFlag.QUIC) or conn.flags & ConnFlag.TLS_LATE:
        return None
    if hellos is None:
        return None
    client = hellos.quic_client() if conn.flags & ConnFlag.QUIC else hellos.client
    name = sni_name(client.sni) if client is not None and client.sni is not None else None
    return Asked("sni", name, name) if name is not None else None


def http_asked(conn: ConnEvent, hellos: Hellos | None) -> Asked | None:
    """The host that its first request asks for, in the clear."""
    flags = conn.flags
    if flags & ConnFlag.HTTP:
        if conn.log_merged:
            return _asked_in(conn.request_head())
        return _asked(hellos.host(conn.tx_head[: conn.log_last])) if hellos is not None else None
    if flags & ConnFlag.H2 and hellos is not None and hellos.http2 is not None:
        return _asked(hellos.http2.authority())
    return None


# The same request is sent over and over.
@lru_cache(maxsize=512)
def _asked_in(head: bytes) -> Asked | None:
    return _asked(request_host(head))


@lru_cache(maxsize=1024)
def _asked(host: str | None) -> Asked | None:
    if host is None:
        return None
    if is_ipv4_text(host):
        return Asked("http", host, None, socket.inet_pton(socket.AF_INET, host))
    if not host.startswith("["):
        # an address in another spelling, or cut short, is no name
        return Asked("http", host, host) if not host.rpartition(".")[2].isdecimal() else None
    try:
        packed = socket.inet_pton(socket.AF_INET6, host[1:-1])
    except OSError:
        return None
    return Asked("http", host[1:-1], None, address_key(socket.AF_INET6, packed))
