"""HTTP/1 in the clear: whom the first request asks for, from its first bytes.

Strangers chose the bytes: nothing here raises, and what is not a host beyond doubt is none.

Source: RFC 9112 section 3, RFC 9110 section 7.2, RFC 3986 section 3.2.2.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["HEAD_MOST", "is_head_over", "parse_authority", "request_host"]

HEAD_MOST: Final = 1024  # HTTP1_BYTES in bpf/packet.bpf.c
# The target has the form that a server is asked by; a proxy is asked by a whole URL, and its Host
# is somebody else's.
_REQUEST: Final = re.compile(rb"[A-Z][A-Z-]{2,19} (?:/[!-~\x80-\xff]*|\*) HTTP/1\.[01]\r?(?=\n)")
_HOST: Final = b"\nhost:"
_END: Final = re.compile(rb"\n\r?\n")
# as in DNS, where names may have underscores, too; then a port
_AUTHORITY: Final = re.compile(
    rb"((?=[^:]{1,254}(?::|\Z))[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_-]{1,63})*\.?"
    rb"|\[[0-9a-f:.]{2,45}\])(?::[0-9]{0,5})?"
)


def is_head_over(head: bytes) -> bool:
    """Whether no more of a request's header fields can follow."""
    return len(head) >= HEAD_MOST or _END.search(head) is not None


def request_host(head: bytes) -> str | None:
    """Return the host that a request asks for.

    Args:
        head: its first bytes; may be cut anywhere.
    Returns:
        A name or an IPv4 address in lower case, or an IPv6 address in brackets, without a port and
        without a dot at the end. None where it is not there, or not beyond doubt: no HTTP/1, a
        request to a proxy, two hosts, what no host may be called.
    """
    line = _REQUEST.match(head)
    if line is None:
        return None
    fields = head.lower()  # one is made for every plain connection: no pattern is as fast
    at = fields.find(_HOST, line.end())
    end = fields.find(b"\n", at + 1)
    if at < 0 or end < 0 or fields.find(_HOST, end) >= 0 or not _is_before_body(fields, at):
        return None
    return parse_authority(fields[at + len(_HOST) : end].strip(b" \t\r"))


# Whether no empty line, which ends the fields, comes before that one.
def _is_before_body(head: bytes, at: int) -> bool:
    return head.find(b"\n\r\n", 0, at + 1) < 0 and head.find(b"\n\n", 0, at + 1) < 0


@lru_cache(maxsize=1024)
def parse_authority(text: bytes) -> str | None:
    """Return the host of ``host[:port]`` in lower case, as :func:`request_host` does."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    return match[1].decode("ascii").removesuffix(".")
