"""The forms that records take on stdout: JSON lines, lws's own JSON, the table, nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import orjson

from conmon.record import Record
from monitor.cli.say import say
from monitor.cli.table import Table
from monitor.cli.writer import LineWriter
from monitor.options import RecordSink

__all__ = ["Form", "LineSink", "QuietSink", "json_line", "lws_line", "open_sink", "say"]

Form = Literal["json", "lws", "table", "quiet"]


def json_line(record: Record) -> bytes:
    """Return the record as one line of JSON in printable ASCII."""
    return _line(record.to_dict()) or record.to_json().encode("ascii") + b"\n"


def lws_line(record: Record) -> bytes:
    """Return the record as one line of what ``lws_conmon`` gives, and no more."""
    # Of its values none is a stranger's text but the HTTP version, which is not in it.
    return orjson.dumps(record.to_lws(), option=orjson.OPT_APPEND_NEWLINE)


# None where the text needs escapes that orjson has not: it lets DEL, C1 and bidi controls through
# and refuses lone surrogates, all of which a process name or a host name may hold.
def _line(data: dict[str, object]) -> bytes | None:
    try:
        line = orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        return None
    if not line.isascii() or b"\x7f" in line:
        return None
    return bytes(memoryview(line))  # orjson's own holds 16 KB, however short it is (3.13)


class LineSink:
    """A RecordSink that writes each record as the lines that render makes of it."""

    def __init__(self, writer: LineWriter, render: Callable[[Record], bytes]) -> None:
        self._writer = writer
        self._render = render

    @property
    def dropped(self) -> int:
        """Records thrown away because the reader did not keep up."""
        return self._writer.dropped

    @property
    def closed(self) -> bool:
        """The reader has gone."""
        return self._writer.closed

    @property
    def wants_write(self) -> bool:
        """Something waits for the reader."""
        return self._writer.wants_write

    def fileno(self) -> int | None:
        """The descriptor to watch, or None."""
        return self._writer.fileno()

    def write(self, record: Record) -> None:
        """Take one record."""
        self._writer.put(self._render(record))

    def flush(self) -> None:
        """Pass on what can be passed on now."""
        self._writer.flush()


class QuietSink:
    """A RecordSink that prints nothing."""

    dropped = 0
    closed = False
    wants_write = False

    def fileno(self) -> int | None:
        """Nothing to watch."""
        return None

    def write(self, record: Record) -> None:
        """Forget the record."""

    def flush(self) -> None:
        """Do nothing."""


def _renderer(form: Form, fd: int) -> Callable[[Record], bytes]:
    if form == "table":
        colour = os.isatty(fd) and not os.environ.get("NO_COLOR")
        colour = colour and os.environ.get("TERM", "dumb") != "dumb"
        return Table(colour=colour, size=lambda: terminal_size(fd)).render
    return json_line if form == "json" else lws_line


def terminal_size(fd: int) -> tuple[int, int]:
    """Return columns and lines of the terminal; 120 and 0, no end of lines, where there is none."""
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        columns, lines = 0, 0
    if not columns:
        with suppress(ValueError):
            columns = int(os.environ.get("COLUMNS", ""))
    return (columns if columns > 0 else 120), lines


@contextmanager
def open_sink(form: Form, fd: int = 1) -> Iterator[RecordSink]:
    """Yield the sink for one form; at the end, write what is pending and say what was lost."""
    if form == "quiet":
        yield QuietSink()
        return
    writer = LineWriter(fd, say)
    try:
        yield LineSink(writer, _renderer(form, fd))
    finally:
        writer.close()
