"""HTTP/2 in the clear: the first request and its answer, from the first bytes of both directions.

Strangers chose the bytes: nothing here raises, and what is read is bounded by what the kernel side
hands over. Header fields are decoded by hpack.

Source: RFC 9113 sections 3.4, 4.1, 6.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

__all__ = ["Http2", "Piece", "analyze"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HANDED_OVER: Final = 2048  # HTTP2_BYTES in bpf/packet.bpf.c
_FRAME_HEADER: Final = 9
_HEADERS, _CONTINUATION = 1, 9
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_MAX_FRAMES: Final = 200
_MAX_FIELDS: Final = 64_000  # bytes of one header block, decoded


class Piece(NamedTuple):
    """Bytes of one direction, from one packet."""

    at_us: int
    seq: int
    data: bytes


class _Block(NamedTuple):
    at_us: int
    stream: int
    fields: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2:
    """The first request, None where it was not seen, and how long each answer took that was."""

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


def analyze(sent: Sequence[Piece], received: Sequence[Piece]) -> Http2:
    """Read the first bytes of a connection.

    Args:
        sent, received: in order of time, from the first byte of their direction on.
    """
    requests = [block for block in _blocks(sent, len(PREFACE)) if ":method" in block.fields]
    if not requests:
        return Http2()
    request = requests[0]
    answer = None
    waiting = {block.stream: block.at_us for block in reversed(requests)}
    turns_us = []
    for block in _blocks(received, 0):
        status = block.fields.get(":status", "")
        if not (status.isdecimal() and len(status) == 3):
            continue
        final = not status.startswith("1")  # 1xx come before the answer proper
        if block.stream == request.stream and (
            answer is None or answer.fields[":status"].startswith("1")
        ):
            answer = block
        if final and block.stream in waiting and _handed_on(sent, block.at_us):
            turns_us.append(max(0, block.at_us - waiting.pop(block.stream)))
    method = request.fields[":method"]
    return Http2(
        method=method if method.isascii() and method.isalpha() and len(method) <= 20 else None,
        status=int(answer.fields[":status"]) if answer is not None else None,
        request_us=request.at_us,
        response_us=answer.at_us if answer is not None else None,
        turns_us=tuple(turns_us),
    )


# Whether what was sent was still being handed over then; after that the kernel side counts turns.
def _handed_on(sent: Sequence[Piece], at_us: int) -> bool:
    return sum(len(piece.data) for piece in sent if piece.at_us <= at_us) < HANDED_OVER


# The header blocks of one direction. One decoder for all: it remembers.
def _blocks(pieces: Sequence[Piece], pos: int) -> Iterator[_Block]:
    from hpack import Decoder, HPACKError

    data, ends = _joined(pieces)
    decoder = Decoder(max_header_list_size=_MAX_FIELDS)
    block = b""
    begun_us = 0
    for _ in range(_MAX_FRAMES):
        if pos + _FRAME_HEADER > len(data):
            return
        length = int.from_bytes(data[pos : pos + 3], "big")
        kind, flags = data[pos + 3], data[pos + 4]
        stream = int.from_bytes(data[pos + 5 : pos + 9], "big") & 0x7FFFFFFF
        payload = data[pos + _FRAME_HEADER : pos + _FRAME_HEADER + length]
        if len(payload) < length:
            return
        if kind == _HEADERS:
            begun_us = next(at_us for end, at_us in ends if pos < end)
            block = _fragment(payload, flags)
        elif kind == _CONTINUATION:
            block += payload
        if kind in (_HEADERS, _CONTINUATION) and flags & _END_HEADERS:
            try:
                fields = decoder.decode(block, raw=True)
            except (HPACKError, IndexError, ValueError, UnicodeDecodeError):
                return
            yield _Block(
                begun_us,
                stream,
                {
                    bytes(name).decode("latin-1"): bytes(value).decode("latin-1")
                    for name, value in reversed(fields)
                },
            )
        pos += _FRAME_HEADER + length


def _fragment(payload: bytes, flags: int) -> bytes:
    padding = 0
    if flags & _PADDED:
        padding, payload = payload[0] if payload else 0, payload[1:]
    if flags & _PRIORITY:
        payload = payload[5:]
    return payload[: max(0, len(payload) - padding)]


# All bytes up to the first gap, and where each piece ends in them.
def _joined(pieces: Sequence[Piece]) -> tuple[bytes, list[tuple[int, int]]]:
    data = b""
    ends: list[tuple[int, int]] = []
    expected = 0
    for piece in pieces:
        if ends and piece.seq != expected:
            break
        data += piece.data
        expected = (piece.seq + len(piece.data)) & 0xFFFFFFFF
        ends.append((len(data), piece.at_us))
    return data, ends
