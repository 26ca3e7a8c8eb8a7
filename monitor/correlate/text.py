"""Bytes that strangers chose, as text; addresses as keys and as text."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Final

__all__ = ["address_key", "address_text", "printable_text"]

AF_INET: Final = 2  # Linux's numbers, whatever system runs the tests
AF_INET6: Final = 10
_MAPPED: Final = bytes(10) + b"\xff\xff"


def printable_text(raw: bytes) -> str:
    """Decode; bytes that are no UTF-8 stay readable as ``\\xff``. Control characters stay: only
    who prints to a terminal knows what it must escape."""
    return raw.decode("utf-8", "backslashreplace")


def address_key(family: int, addr: bytes) -> bytes:
    """Return what tells one address from another: 4 bytes for IPv4, also mapped, else 16."""
    if family == AF_INET:
        return addr[:4]
    if addr.startswith(_MAPPED):
        return addr[12:16]
    return addr


def is_ipv4(family: int, addr: bytes) -> bool:
    """Whether this is IPv4 on the wire: AF_INET, or v4-mapped IPv6."""
    return family == AF_INET or addr.startswith(_MAPPED)


def is_ipv4_text(text: str) -> bool:
    """Whether this is an IPv4 address as it is usually written."""
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


@lru_cache(maxsize=4096)
def address_text(family: int, addr: bytes, scope_id: int = 0) -> str:
    """Return the usual text of an address, v4-mapped ones as IPv4."""
    key = address_key(family, addr)
    if len(key) == 4:
        return ".".join(map(str, key))
    text = socket.inet_ntop(socket.AF_INET6, key)
    return f"{text}%{scope_id}" if scope_id else text
