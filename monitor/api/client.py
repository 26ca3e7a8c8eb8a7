"""A client of the query socket, and what is sent to it as bytes of HTTP."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import h11

from monitor.api.access import Asker
from monitor.api.answer import Answer, Feed, Stream

__all__ = ["Client", "head_and_body", "response", "send"]

_REQUEST_BYTES: Final = 8 << 10  # line and headers, until they are complete
_SERVER_NAME: Final = b"conmond"


@dataclass(slots=True)
class Client:
    sock: socket.socket
    asker: Asker
    deadline: float
    http: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_BYTES)
    )
    out: deque[bytes] = field(default_factory=deque)
    waiting: int = 0
    """Bytes in ``out``."""
    body: Iterator[bytes] | None = None
    stream: Stream | None = None
    feed: Feed | None = None
    busy: bool = False
    """Its answer is being found in the other thread."""
    ended: bool = False
    """It sends nothing more; it may still read."""
    closing: bool = False
    """To be closed when ``out`` has been written."""
    gone: bool = False
    said_at: float = 0.0
    watched: int = 0


def response(answer: Answer, *, chunked: bool) -> h11.Response:
    headers = [
        ("Server", _SERVER_NAME.decode()),
        ("Content-Type", answer.content_type),
        ("Cache-Control", "no-store"),
        *answer.headers,
    ]
    if not chunked:
        assert isinstance(answer.body, bytes)
        headers.append(("Content-Length", str(len(answer.body))))
    return h11.Response(status_code=answer.status, headers=headers)


def send(http: h11.Connection, event: h11.Response | h11.Data | h11.EndOfMessage) -> bytes:
    return http.send(event) or b""


def head_and_body(http: h11.Connection, answer: Answer) -> bytes:
    assert isinstance(answer.body, bytes)
    return (
        send(http, response(answer, chunked=False))
        + (send(http, h11.Data(data=answer.body)) if answer.body else b"")
        + send(http, h11.EndOfMessage())
    )
