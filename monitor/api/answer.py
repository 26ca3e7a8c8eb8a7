"""What a request is answered with. Pure."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from monitor.api.parameters import Filters

__all__ = ["JSON", "NDJSON", "Answer", "Feed", "Later", "Reply", "Stream", "error", "json_answer"]

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"


class Answer(NamedTuple):
    """A whole answer; ``body`` in pieces where it is long, each made when the last has gone."""

    status: int
    body: bytes | Iterator[bytes]
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class Stream(NamedTuple):
    """Records as they come, until the reader goes."""

    filters: Filters
    live: bool


class Feed:
    """Lines that are made by one thread and read by a client of the server's, in another.

    The answer's status is 200 and its body NDJSON, until its maker calls :meth:`end`.
    """

    def __init__(self) -> None:
        self.closed = False
        """Nobody reads it any more."""
        self.ended = False
        self._lines: deque[bytes] = deque()
        # one is written by the maker's thread alone, the other by the server's
        self._put_bytes = 0
        self._taken_bytes = 0
        self._wake: Callable[[], None] | None = None

    @property
    def waiting(self) -> int:
        """Lines not yet taken."""
        return len(self._lines)

    @property
    def unread_bytes(self) -> int:
        """Bytes not yet taken."""
        return self._put_bytes - self._taken_bytes

    def put(self, line: bytes) -> None:
        """Add a line, its newline included."""
        if not self.closed:
            self._put_bytes += len(line)
            self._lines.append(line)
            self._notify()

    def end(self) -> None:
        """No more lines follow."""
        self.ended = True
        self._notify()

    def connect(self, wake: Callable[[], None]) -> None:
        """From the server: what to call when there is something to take."""
        self._wake = wake
        self._notify()

    def take(self) -> bytes | None:
        """From the server: the next line that has come; None: there is none yet."""
        if not self._lines:
            return None
        line = self._lines.popleft()
        self._taken_bytes += len(line)
        return line

    def close(self) -> None:
        """From the server: its reader has gone."""
        self.closed = True
        self._lines.clear()

    def _notify(self) -> None:
        if self._wake is not None:
            self._wake()


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that takes long to find: the server finds it beside other requests.

    ``slow``: it may take a disk's time, and waits for others of its kind. What is not in memory
    after all is looked for by the one that ``find`` returns.
    """

    find: Callable[[], Answer | Feed | Later]
    slow: bool = False


Reply = Answer | Stream | Later


def json_answer(data: Any, status: int = 200) -> Answer:
    """Answer with one line of JSON. Lone surrogates, which orjson refuses, come escaped."""
    return Answer(status, to_json(data))


def to_json(data: Any) -> bytes:
    """Return data as one line of JSON in printable ASCII, for who shows it to a terminal."""
    try:
        line = orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        import json

        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    if not line.isascii():
        line = line.decode().encode("ascii", _ESCAPE)
    return line.replace(b"\x7f", b"\\u007f")


# orjson lets C1 and bidi controls through, and DEL. Outside strings JSON is ASCII.
def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


_ESCAPE: Final = "conmon.json"
codecs.register_error(_ESCAPE, _escape)


def error(status: int, sentence: str, *headers: tuple[str, str]) -> Answer:
    """Answer with what went wrong, in one sentence."""
    body = to_json({"error": sentence, "status": status})
    return Answer(status, body, JSON, headers)
