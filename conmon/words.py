"""Figures and names as people read them. Strangers' text comes out escaped."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from functools import cache

from .escape import printable, width

__all__ = ["address", "clock", "columns", "count", "duration", "name", "size", "user"]


def duration(us: int | None) -> str:
    """Three digits and a unit; a dash where not known."""
    if us is None:
        return "-"
    if us < 1000:
        return f"{us}us"
    if us < 1_000_000:
        return f"{us / 1000:.3g}ms" if us < 999_500 else "1s"
    seconds = us / 1e6
    if seconds < 120:
        return f"{seconds:.3g}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.0f}h" if seconds < 172_800 else f"{seconds / 86_400:.0f}d"


def size(number: int | None) -> str:
    """Bytes, three digits and a unit; a dash where not known."""
    if number is None:
        return "-"
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}TB"


def count(number: int | None) -> str:
    """A number; a dash where not known."""
    return "-" if number is None else str(number)


def name(text: str | None, limit: int = 40) -> str:
    """Text that a stranger chose; a dash where not known."""
    return "-" if text is None else printable(text, limit)


def address(raddr: str | None, port: int | None) -> str:
    """Address and port; a dash where not known."""
    if raddr is None:
        return "-"
    return f"[{raddr}]:{port}" if ":" in raddr else f"{raddr}:{port}"


def clock(moment: str | None, limit: int = 12) -> str:
    """The time of day here, to the millisecond, of a moment in RFC 3339; a dash where not known."""
    if moment is None:
        return "-"
    try:
        # before Python 3.11 it knew no Z
        there = datetime.datetime.fromisoformat(moment.replace("Z", "+00:00"))
        return there.astimezone().strftime("%H:%M:%S.%f")[:limit]
    except (ValueError, OverflowError):
        return printable(moment, limit)


@cache
def user(uid: int | None) -> str:
    """A user's name, or the number of one that has none here."""
    if uid is None:
        return "-"
    try:
        import pwd

        return printable(pwd.getpwuid(uid).pw_name, 32)
    except (KeyError, ImportError):
        return str(uid)


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Lay out a table.

    Args:
        left: so many columns are flush left, those after it flush right.
    """
    table = [[(cell, width(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(row[i][1] for row in table) for i in range(len(head))]
    lines = []
    for row in table:
        cells = []
        for i, (cell, used) in enumerate(row):
            blank = " " * (widths[i] - used)
            cells.append(cell + blank if i < left else blank + cell)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
