"""HTTP/1 from the first bytes each way of a plaintext connection.

The kernel keeps 32 bytes a direction, so a request line is mostly cut in its target and a
status line never before its code. What does not look like HTTP beyond doubt is not called so.

Source: RFC 9112 sections 3 and 4, RFC 9113 section 3.4 (the HTTP/2 preface).
"""

from __future__ import annotations

import re

__all__ = ["is_client_hello", "parse_heads"]

# A method is upper case in every registered one; a target starts as one of its four forms
# does; a complete line must end in the version.
_REQUEST = re.compile(
    rb"(CONNECT [\w.\-\[:]|[A-Z][A-Z-]{0,15} (?:/|https?:|\*(?= |\Z)))"
    rb"[!-~\x80-\xff]*(?: HTTP/(1\.[01])\r?\n| ?H?T?T?P?/?1?\.?[01]?\r?\Z)"
)
_STATUS = re.compile(rb"HTTP/(1\.[01]) ([1-9]\d\d)(?:[ \r\n]|\Z)")
_FINAL_STATUS = re.compile(rb"\r?\n\r?\nHTTP/1\.[01] ([2-9]\d\d)[ \r\n]")
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def parse_heads(tx_head: bytes, rx_head: bytes) -> dict[str, object] | None:
    """Tell HTTP/1 from the first payload bytes sent and received.

    Args:
        tx_head: first bytes the client sent; may be empty or cut anywhere.
        rx_head: first bytes the server sent, likewise.
    Returns:
        None where neither side is HTTP. Else ``protocol`` and what was seen of ``method``,
        ``resp`` (the status) and ``version`` (the response's, else the request's). An interim
        status (100 Continue, 103 Early Hints) is no ``resp``: the final one is, where it is in
        sight as well. 101 is final: what follows it is another protocol.
    """
    request = _REQUEST.match(tx_head)
    status = _STATUS.match(rx_head)
    if request is None and status is None:
        if tx_head.startswith(_HTTP2_PREFACE):
            return {"protocol": "http", "version": "2"}
        return None
    if status is None and rx_head:
        return None  # the answer is not HTTP; one that says 400 to something else would be

    seen: dict[str, object] = {"protocol": "http"}
    if status is not None:
        code = int(status[2])
        if code >= 200 or code == 101:
            seen["resp"] = code
        else:
            final = _FINAL_STATUS.search(rx_head)
            if final is not None:
                seen["resp"] = int(final[1])
    if request is not None:
        seen["method"] = request[1].partition(b" ")[0].decode("ascii")
    if status is not None:
        seen["version"] = status[1].decode("ascii")
    elif request is not None and request[2] is not None:
        seen["version"] = request[2].decode("ascii")
    return seen


def is_client_hello(head: bytes) -> bool:
    """Whether a connection's first bytes sent are a TLS ClientHello.

    Args:
        head: at least 6 bytes, else the answer is no.
    Source: RFC 8446 sections 5.1 and 4; versions SSL 3.0 to TLS 1.3.
    """
    return (
        len(head) >= 6
        and head[0] == 22
        and head[1] == 3
        and head[2] <= 4
        and head[5] == 1
        and 4 <= (head[3] << 8 | head[4]) <= 16384
        and (len(head) < 7 or head[6] == 0)  # none is longer than 64 KiB
    )
