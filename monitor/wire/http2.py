"""HTTP/2 in the clear: the first request and its answer, from the first bytes of both directions.

Strangers chose the bytes: nothing here raises, and no more is read than a bounded number of bytes,
frames and header fields. Each byte is read once, as it comes.

Source: RFC 9113 sections 3.4, 4.1, 6.2, 6.10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from monitor.wire.fields import Fields
from monitor.wire.http1 import parse_authority

__all__ = ["Http2", "Piece", "Reader", "analyze"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HANDED_OVER: Final = 2048  # HTTP2_BYTES in bpf/packet.bpf.c
_FRAME_HEADER: Final = 9
_HEADERS, _CONTINUATION = 1, 9
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_MAX_BYTES: Final = 4096  # of one direction: PLAIN_MAX in bpf/event.h
# Three frames of 39 bytes are gRPC's smallest answer: 156 in what is handed over.
_MAX_FRAMES: Final = 170  # of one direction


class Piece(NamedTuple):
    """Bytes of one direction, from one packet."""

    at_us: int
    seq: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2:
    """The first request, None where it was not seen, and how long each answer took that was.

    ``status`` is final: 1xx come before the answer proper.
    """

    method: str | None = None
    status: int | None = None
    request_us: int | None = None
    response_us: int | None = None
    turns_us: tuple[int, ...] = ()

    def prot_specific(self) -> dict[str, Any] | None:
        """As the record has it."""
        if self.status is None:
            return None
        found: dict[str, Any] = {"protocol": "http", "resp": self.status, "version": "2"}
        if self.method is not None:
            found["method"] = self.method
        return found


# A header block: when its first frame began, its stream, its bytes.
_Block = tuple[int, int, bytes]


@dataclass(slots=True)
class _Way:
    """One direction: its bytes to frames, the frames to header blocks."""

    skip: int
    """Bytes before the first frame."""
    ended: bool = False
    """Nothing more is read: a gap, too much of it, or what is no HTTP/2."""
    fields: Fields = field(default_factory=Fields)
    _bytes: int = 0
    _frames: int = 0
    _next_seq: int | None = None
    _rest: bytes = b""
    _begun_us: int = 0
    _open: _Block | None = None
    """A block that its next frame continues."""

    def blocks(self, piece: Piece) -> Iterator[_Block]:
        """The header blocks that these bytes complete."""
        at_us, seq, data = piece
        if self._next_seq not in (None, seq):
            self.ended = True
        self._next_seq = (seq + len(data)) & 0xFFFFFFFF
        if self.ended:
            return
        if not self._rest:
            self._begun_us = at_us
        data = data[: _MAX_BYTES - self._bytes]
        self._bytes += len(data)
        data = self._rest + data
        size = len(data)
        at = min(self.skip, size)
        self.skip -= at
        while at + _FRAME_HEADER <= size and not self.ended:
            begin = at + _FRAME_HEADER
            end = begin + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind in (_HEADERS, _CONTINUATION) or self._open is not None:
                stream = int.from_bytes(data[at + 5 : begin], "big") & 0x7FFFFFFF
                block = self._joined(kind, flags, stream, data[begin:end])
                if block is not None and flags & _END_HEADERS:
                    yield block
                else:
                    self._open = block
            at = end
            self._begun_us = at_us
            self._frames += 1
            self.ended = self.ended or self._frames == _MAX_FRAMES
        self.ended = self.ended or self._bytes == _MAX_BYTES
        self._rest = b"" if self.ended else data[at:]

    # A block with what this frame adds to it. Nothing may stand between a block's frames.
    def _joined(self, kind: int, flags: int, stream: int, payload: bytes) -> _Block | None:
        begun, self._open = self._open, None
        if begun is None and kind == _HEADERS:
            if flags & (_PADDED | _PRIORITY):
                payload = _fragment(payload, flags)
            return self._begun_us, stream, payload
        if begun is not None and kind == _CONTINUATION and stream == begun[1]:
            return begun[0], stream, begun[2] + payload
        self.ended = True
        return None


class Reader:
    """Reads the first bytes of a connection, as they come."""

    __slots__ = (
        "_answered", "_answers", "_asked", "_authority", "_method", "_sent_bytes", "_spent_us",
        "_ways",
    )  # fmt: skip

    def __init__(self) -> None:
        self._ways = (_Way(len(PREFACE)), _Way(0))
        self._method = ""
        self._authority = ""
        self._asked: dict[int, int] = {}  # stream: when its request began, the first one first
        self._answers: list[tuple[int, int, int | None]] = []  # when, stream, status
        self._answered = False  # the first request finally is
        self._sent_bytes = 0
        self._spent_us: int | None = None

    def add(self, piece: Piece, *, received: bool) -> bool:
        """Take in bytes, each direction's in order from its first byte on.

        Returns:
            Whether they hold a request or an answer.
        """
        if not received and self._spent_us is None:
            self._sent_bytes += len(piece.data)
            if self._sent_bytes >= HANDED_OVER:
                self._spent_us = piece.at_us
        found = False
        for at_us, stream, block in self._ways[received].blocks(piece):
            found = True
            if received:
                self._answer(at_us, stream, block)
            else:
                self._request(at_us, stream, block)
        return found

    # Only the first is looked into: what follows on another stream is a request whatever it says.
    def _request(self, at_us: int, stream: int, block: bytes) -> None:
        if not self._asked:
            fields = self._fields(self._ways[False], block)
            method = fields.get(":method")
            if method is None:
                return
            self._method = method
            self._authority = fields.get(":authority") or fields.get("host", "")
        self._asked.setdefault(stream, at_us)

    # Likewise: the status of one answer is told. On other streams the first block is the answer.
    def _answer(self, at_us: int, stream: int, block: bytes) -> None:
        if self._answered:
            self._answers.append((at_us, stream, None))
            return
        status = self._fields(self._ways[True], block).get(":status", "")
        if status.isdecimal() and len(status) == 3:
            self._answers.append((at_us, stream, int(status)))
            self._answered = int(status) >= 200 and stream == next(iter(self._asked), stream)

    # What cannot be read ends its direction: what comes after builds on it.
    def _fields(self, way: _Way, block: bytes) -> dict[str, str]:
        try:
            return way.fields.read(block)
        except ValueError:
            way.ended = True
            return {}

    def authority(self) -> str | None:
        """The host that the first request asks for, as ``http1.request_host`` has it."""
        if not self._authority or self._method == "CONNECT":
            return None
        return parse_authority(self._authority.encode("latin-1").lower())

    def seen(self) -> Http2:
        """What they said so far."""
        if not self._asked:
            return Http2()
        waiting = dict(self._asked)
        first, request_us = next(iter(waiting.items()))
        status: int | None = None
        response_us: int | None = None
        turns_us = []
        for at_us, stream, code in self._answers:
            if code is not None and code < 200:
                continue
            if stream == first and status is None:
                status, response_us = code, at_us
            # after what is handed over, the kernel side counts turns
            if stream in waiting and (self._spent_us is None or at_us < self._spent_us):
                turns_us.append(max(0, at_us - waiting.pop(stream)))
        method = self._method
        return Http2(
            method=method if method.isascii() and method.isalpha() and len(method) <= 20 else None,
            status=status,
            request_us=request_us,
            response_us=response_us,
            turns_us=tuple(turns_us),
        )


def analyze(sent: Sequence[Piece], received: Sequence[Piece]) -> Http2:
    """Read the first bytes of a connection at once.

    Args:
        sent, received: in order of time, from the first byte of their direction on.
    """
    reader = Reader()
    for piece in sent:
        reader.add(piece, received=False)
    for piece in received:
        reader.add(piece, received=True)
    return reader.seen()


def _fragment(payload: bytes, flags: int) -> bytes:
    padding = 0
    if flags & _PADDED:
        padding, payload = payload[0] if payload else 0, payload[1:]
    if flags & _PRIORITY:
        payload = payload[5:]
    return payload[: max(0, len(payload) - padding)]
