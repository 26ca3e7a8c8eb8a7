"""What a request is answered with. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from monitor.api.parameters import Filters

__all__ = ["JSON", "NDJSON", "Answer", "Later", "Reply", "Stream", "error", "json_answer"]

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


@dataclass(frozen=True, slots=True)
class Later:
    """An answer that takes long to find: the server finds it beside other requests."""

    find: Callable[[], Answer]


Reply = Answer | Stream | Later


def json_answer(data: Any, status: int = 200) -> Answer:
    """Answer with one line of JSON. Lone surrogates, which orjson refuses, come escaped."""
    return Answer(status, to_json(data))


def to_json(data: Any) -> bytes:
    """Return data as one line of JSON."""
    try:
        return orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        import json

        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def error(status: int, sentence: str, *headers: tuple[str, str]) -> Answer:
    """Answer with what went wrong, in one sentence."""
    body = to_json({"error": sentence, "status": status})
    return Answer(status, body, JSON, headers)
