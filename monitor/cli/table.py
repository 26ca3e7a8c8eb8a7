"""The table: one row a record, for a person who watches.

``render()`` turns a record into a row as wide as the terminal is at that moment, with the header
before it where a new screenful begins. What each column says about a stage that has no figure:
``-`` it did not happen, ``?`` it did, or may have, and how long it took is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conmon.escape import printable, width
from conmon.record import Attempt, Record
from conmon.words import clock

__all__ = ["Table", "latency", "outcome"]

NOT_DONE = "-"
UNKNOWN = "?"

# A stage at or above this is slow whatever the others took: people notice it.
SLOW_US = {"dns": 100_000, "connect": 200_000, "tls": 300_000, "response": 500_000}
# A stage dominates with half of the sum, where the sum is long enough to care.
DOMINANT_SUM_US = 20_000

PLAIN, DOMINANT, SLOW = 0, 1, 2
MARKS = {PLAIN: " ", DOMINANT: "*", SLOW: "!"}

RESET = "\x1b[0m"
BOLD = "\x1b[1m"
DIM = "\x1b[2m"
RED = "\x1b[31m"
BOLD_RED = "\x1b[1;31m"
YELLOW = "\x1b[33m"
STANDS_OUT = {PLAIN: "", DOMINANT: BOLD, SLOW: BOLD_RED}

STAGES = ("dns", "connect", "tls", "response")
TITLES = {
    "time": "TIME",
    "process": "PROCESS",
    "target": "TO",
    "peer": "PEER",
    "dns": "DNS",
    "connect": "CONNECT",
    "tls": "TLS",
    "response": "RESPONSE",
    "slowest": "SLOWEST",
    "result": "RESULT",
}
NARROW_TITLES = {"response": "RESP"}

ERRORS = {
    "ECONNREFUSED": "refused",
    "ETIMEDOUT": "timed out",
    "ECONNRESET": "reset",
    "ECONNABORTED": "aborted",
    "EPIPE": "reset",
    "ENODATA": "no answer",
    "ECANCELED": "given up",
    "ENETUNREACH": "network unreachable",
    "EHOSTUNREACH": "host unreachable",
    "EADDRNOTAVAIL": "no local address left",
    "EACCES": "not permitted",
    "EPERM": "not permitted",
    "EAI_NONAME": "name not found",
    "EAI_NODATA": "name has no address",
    "EAI_AGAIN": "resolver unreachable",
    "EAI_FAIL": "resolver failed",
}
TLS_RESULTS = {
    "rejected": "TLS: certificate rejected",
    "closed": "TLS: closed in handshake",
    "reset": "TLS: reset in handshake",
    "timeout": "TLS: timed out",
    "failed": "TLS: failed",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns for terminals of at least ``columns``; the one with width 0 takes the rest."""

    columns: int
    widths: Sequence[tuple[str, int]]


def _stages(each: int) -> tuple[tuple[str, int], ...]:
    return tuple((stage, each) for stage in STAGES)


LAYOUTS = (
    Layout(
        150,
        (("time", 12), ("process", 22), ("target", 0), ("peer", 28), *_stages(9), ("result", 30)),
    ),
    Layout(120, (("time", 12), ("process", 20), ("target", 0), *_stages(9), ("result", 26))),
    Layout(100, (("time", 8), ("process", 18), ("target", 0), *_stages(8), ("result", 18))),
    Layout(80, (("process", 13), ("target", 0), *_stages(7), ("result", 14))),
    Layout(50, (("process", 12), ("target", 0), ("slowest", 12), ("result", 12))),
    Layout(30, (("target", 0), ("result", 12))),
    Layout(0, (("target", 0),)),
)


def latency(us: int) -> str:
    """Return microseconds in three figures and the unit that suits, in at most six cells."""
    if us < 1000:
        return f"{us}µs"
    for unit_us, unit in ((1000, "ms"), (1_000_000, "s")):
        # The bounds lie where rounding would reach the next figure: 9.996 is shown as 10.0.
        for below, digits in ((9.995, 2), (99.95, 1), (999.5, 0)):
            if us / unit_us < below:
                return f"{us / unit_us:.{digits}f}{unit}"
    minutes = round(us / 60_000_000)
    return f"{minutes}min" if minutes < 600 else f"{minutes // 60}h"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def outcome(record: Record) -> tuple[str, str]:
    """Return what became of the connection, in words, and the colour they deserve."""
    text, colour = _ending(record)
    failed = sum(1 for attempt in record.attempts if attempt.result not in ("ok", None))
    if record.state != "failed" and failed:
        text += f" +{_plural(failed, 'attempt')}"
    elif record.state == "failed" and len(record.attempts) > 1:
        text += f" ({_plural(len(record.attempts), 'attempt')})"
    if record.transport != "tcp":
        text += f" {record.transport}"
    if record.role == "server":
        text += " accepted"
    if record.lost_before:
        text += " (events lost)"
    return text, colour


def _ending(record: Record) -> tuple[str, str]:
    if record.state == "failed":
        return _failure(record), RED
    status = (record.prot_specific or {}).get("resp")
    if record.error:
        return ERRORS.get(record.error, record.error), RED
    if status is not None:
        colour = RED if status >= 500 else YELLOW if status >= 400 else ""
        return f"HTTP {status}", colour
    if record.tls is not None and record.tls.result == "unused":
        return "TLS: not used", ""
    return ("open", DIM) if record.state == "open" else ("ok", "")


def _failure(record: Record) -> str:
    tls = record.tls
    if tls is not None and tls.result not in ("ok", "unused", None):
        if tls.alert is not None:
            return f"TLS: {tls.alert}"
        return TLS_RESULTS.get(tls.result, f"TLS: {tls.result}")
    if record.error is not None:
        return ERRORS.get(record.error, record.error)
    return {2: "resolver unreachable", 3: "name not found"}.get(record.dns_disp or 0, "failed")


@dataclass(frozen=True, slots=True)
class Cell:
    """What one stage shows."""

    text: str
    weight: int = PLAIN


def _stage_us(record: Record) -> tuple[int | None, int | None, int | None, int | None]:
    return record.dns_us, record.sockconn_us, record.tls_us, record.txn_resp_us


def _weigh(figures: Sequence[int | None]) -> list[int]:
    total = sum(us for us in figures if us is not None)
    weights = []
    for stage, us in zip(STAGES, figures, strict=True):
        if us is None:
            weights.append(PLAIN)
        elif us >= SLOW_US[stage]:
            weights.append(SLOW)
        else:
            dominates = total >= DOMINANT_SUM_US and us * 2 >= total
            weights.append(DOMINANT if dominates else PLAIN)
    return weights


# Whether a stage without a figure took place; true also where nobody can tell.
def _may_have_happened(record: Record) -> tuple[bool, bool, bool, bool]:
    connected = record.peer is not None
    accepted = record.role == "server"  # somebody else looked up and connected
    looked_up = record.dns_disp != 0 and record.dns_source != "literal" and not accepted
    by_packets = record.transport == "tcp" and not accepted
    handshake = record.tls is not None and record.tls.result in ("ok", "unused", None)
    asked = record.turns is None or record.turns.count > 0
    served = connected and record.state != "failed" and record.greeting_us is None
    return looked_up, connected and by_packets, handshake, asked and served


def _stage_cells(record: Record) -> dict[str, Cell]:
    figures = _stage_us(record)
    cells = {}
    for stage, us, weight, happened in zip(
        STAGES, figures, _weigh(figures), _may_have_happened(record), strict=True
    ):
        text = latency(us) if us is not None else UNKNOWN if happened else NOT_DONE
        cells[stage] = Cell(text, weight)
    return cells


def _slowest(record: Record, cells: dict[str, Cell]) -> Cell:
    known = [(us, stage) for us, stage in zip(_stage_us(record), STAGES, strict=True) if us]
    if not known:
        return Cell(NOT_DONE)
    stage = max(known)[1]
    name = {"connect": "conn", "response": "resp"}.get(stage, stage)
    return Cell(f"{name} {cells[stage].text}", cells[stage].weight)


def _address(address: str | None, port: int | None) -> str:
    if address is None:
        return NOT_DONE
    if ":" in address:
        address = f"[{address}]"
    return address if port is None else f"{address}:{port}"


# The port matters more than the end of a long name, so the name is what gets cut.
def _target(record: Record, limit: int, *, with_peer: bool) -> str:
    name = record.host
    if name is None:
        if record.raddr is None:
            return NOT_DONE
        name = f"[{record.raddr}]" if ":" in record.raddr else record.raddr
        with_peer = False
    port = "" if record.rport is None or with_peer else f":{record.rport}"
    if limit < len(port) + 4:
        port = ""
    return printable(name, limit - len(port)) + port


def _peer(record: Record) -> str:
    # The address that answered; for a failure, those that did not.
    if record.peer is not None or record.state != "failed":
        return _address(record.peer, record.rport)
    tried: Sequence[Attempt] = record.attempts
    if len(tried) > 1:
        return f"{_address(tried[-1].raddr, tried[-1].rport)} +{len(tried) - 1}"
    return _address(record.raddr, record.rport)


def _process(record: Record, limit: int) -> str:
    comm = UNKNOWN if record.comm is None else record.comm
    pid = "" if record.pid is None else f"[{record.pid}]"
    if limit < len(pid) + 4:
        return printable(comm, limit)
    return printable(comm, limit - len(pid)) + pid


class Table:
    """Renders records as rows.

    Args:
        colour: emphasis by ANSI colour; without it ``*`` marks the stage that took half or more of
            the time, ``!`` a slow one.
        size: columns and lines of the terminal, asked anew for every row, so that it may be
            resized; lines 0 is an endless page, with one header.
    """

    def __init__(self, *, colour: bool, size: Callable[[], tuple[int, int]]) -> None:
        self._colour = colour
        self._size = size
        self._layout: Layout | None = None
        self._rows = 0  # since the header

    def render(self, record: Record) -> bytes:
        """Return the record's row, with the header before it where one is due."""
        columns, lines = self._size()
        layout = next(layout for layout in LAYOUTS if layout.columns <= columns)
        row = self._row(layout, columns, record)
        if layout is not self._layout or (lines > 2 and self._rows >= lines - 1):
            row = self._header(layout, columns) + row
            self._layout = layout
            self._rows = 0
        self._rows += 1
        return row.encode("utf-8")

    def _header(self, layout: Layout, columns: int) -> str:
        cells = []
        for name, cell_width in _fit(layout, columns):
            title = TITLES[name]
            if len(title) > cell_width:
                title = NARROW_TITLES.get(name, title[:cell_width])
            mark = "" if self._colour or len(title) == cell_width else " "
            cells.append(
                f"{title + mark:>{cell_width}}" if name in STAGES else f"{title:<{cell_width}}"
            )
        line = " ".join(cells).rstrip()
        return (f"{BOLD}{line}{RESET}" if self._colour else line) + "\n"

    def _row(self, layout: Layout, columns: int, record: Record) -> str:
        stages = _stage_cells(record)
        ending, colour = outcome(record)
        with_peer = any(name == "peer" for name, _ in layout.widths)
        # A row without the result's column still has to tell a failure.
        row_colour = DIM if record.state == "open" else ""
        cells = []
        for name, limit in _fit(layout, columns):
            style = row_colour
            if name in stages or name == "slowest":
                cell = stages[name] if name in stages else _slowest(record, stages)
                mark = "" if self._colour else MARKS[cell.weight]
                text = cell.text + mark
                text = " " * (limit - width(text)) + text if name in stages else text
                style = STANDS_OUT[cell.weight] or row_colour
            elif name == "result":
                text, style = printable(ending, limit), colour or row_colour
            elif name == "time":
                text = UNKNOWN if record.start is None else clock(record.start, limit)
            elif name == "process":
                text = _process(record, limit)
            elif name == "peer":
                text = printable(_peer(record), limit)
            else:
                text = _target(record, limit, with_peer=with_peer)
                style = colour if len(layout.widths) == 1 else row_colour
            padding = " " * (limit - width(text))
            cells.append((f"{style}{text}{RESET}" if style and self._colour else text) + padding)
        return " ".join(cells).rstrip() + "\n"


# The layout's columns with the last word on their widths.
def _fit(layout: Layout, columns: int) -> list[tuple[str, int]]:
    fixed = sum(cell_width + 1 for _, cell_width in layout.widths if cell_width)
    return [(name, cell_width or max(columns - fixed, 1)) for name, cell_width in layout.widths]
