"""Reads records back: the newest or the oldest that fit, page by page.

Block by block (monitor/history/blocks.py), in order, until the page is full. The records that are
in no block yet, the newest, are looked through one by one.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from conmon.names import fits_exe
from monitor.history.blocks import (
    ALL,
    BLOCK,
    FAILED,
    KINDS,
    UNUSED,
    at_least,
    first_loose,
    of_places,
    places_in,
    places_of,
)

__all__ = ["DamagedRecord", "HistoryPage", "HistoryQuery", "fetch", "fetch_newest", "fetch_one"]

_BODIES_AT_ONCE: Final = 101  # a page of the usual size, and whether there is another


class DamagedRecord(sqlite3.DatabaseError):
    """The bytes of one record are no record any more; the file is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """Which records, and how many. Times are nanoseconds since 1970, of when a record ended."""

    since_ns: int | None = None
    until_ns: int | None = None
    limit: int = 100
    before: str | None = None
    """``next`` of the page before."""
    order: str = "newest"
    failed: bool = False
    unused: bool = False
    slow_us: int | None = None
    pid: int | None = None
    comm: str | None = None
    exe: tuple[str, ...] = ()
    unit: str | None = None
    container: str | None = None
    uid: int | None = None
    host: str | None = None
    uid_only: int | None = None


class HistoryPage(NamedTuple):
    """Records as lines of JSON."""

    bodies: list[bytes]
    next: str | None
    """Where the following page begins; None: this is the last."""
    damaged: int = 0
    """Records that are not in ``bodies``, since their bytes are no record any more."""


class _Condition(NamedTuple):
    column: str
    """One that blocks know of."""
    test: str
    """SQL; {0} is the column."""
    values: tuple[int | str, ...]


def fetch(
    database: sqlite3.Connection, query: HistoryQuery, dictionary: bytes, end_s: float
) -> HistoryPage:
    """Return one page.

    Args:
        end_s: of ``time.monotonic()``, when it is given up.
    Raises:
        ValueError: ``before`` is no cursor.
        sqlite3.Error: the file cannot be read, or not in time.
    """
    found: list[tuple[int, bytes | None]] = []
    fitting = _fitting(database, query, end_s)
    direction = "ASC" if query.order == "oldest" else "DESC"
    while len(found) <= query.limit:
        numbers = list(islice(fitting, min(_BODIES_AT_ONCE, query.limit + 1 - len(found))))
        if not numbers:
            break
        _look_at_clock(end_s)
        # deleted records are still in their block's bitmaps, but have no body
        for number, data in database.execute(
            f"SELECT seq, data FROM body WHERE seq IN ({','.join('?' * len(numbers))}) "
            f"ORDER BY seq {direction}",
            numbers,
        ):
            try:
                body = inflate(data, dictionary)
            except DamagedRecord:
                found.append((number, None))
                continue
            if not query.exe or _has_exe(body, query.exe):
                found.append((number, body))
    more = len(found) > query.limit
    found = found[: query.limit]
    bodies = [body for _, body in found if body is not None]
    following = str(found[-1][0]) if more and found else None
    return HistoryPage(bodies, following, len(found) - len(bodies))


# The index may not know it: of records that are older than the index, or of none.
def _has_exe(body: bytes, patterns: tuple[str, ...]) -> bool:
    exe = json.loads(body).get("exe")
    return all(fits_exe(pattern, exe) for pattern in patterns)


def fetch_one(
    database: sqlite3.Connection, identifier: str, uid: int | None, dictionary: bytes
) -> bytes | None:
    """Return the newest record with an id; None where there is none, or of another uid."""
    row = database.execute(
        "SELECT uid, data FROM record CROSS JOIN body USING (seq) WHERE id = ? "
        "ORDER BY seq DESC LIMIT 1",
        (identifier,),
    ).fetchone()
    if row is None or (uid is not None and row[0] != uid):
        return None
    return inflate(row[1], dictionary)


def fetch_newest(
    database: sqlite3.Connection, first: str, uid: int | None, dictionary: bytes
) -> bytes | None:
    """Likewise of a socket: its newest record, whose id is that of its first or begins so."""
    row = database.execute(
        "SELECT id FROM record WHERE id = ?1 OR (id > ?1 || '.' AND id < ?1 || '/') "
        "ORDER BY seq DESC LIMIT 1",
        (first,),
    ).fetchone()
    return fetch_one(database, row[0], uid, dictionary) if row is not None else None


def inflate(data: bytes, dictionary: bytes) -> bytes:
    """Return the record's JSON.

    Raises:
        DamagedRecord: the data is damaged.
    """
    unpacker = zlib.decompressobj(-15, zdict=dictionary)
    try:
        body = unpacker.decompress(data)
    except zlib.error as exc:
        raise DamagedRecord("a record in it is malformed") from exc
    if not unpacker.eof:
        raise DamagedRecord("a record in it is malformed")
    return body


def _look_at_clock(end_s: float) -> None:
    if time.monotonic() > end_s:
        raise sqlite3.OperationalError("interrupted")


def _fitting(database: sqlite3.Connection, query: HistoryQuery, end_s: float) -> Iterator[int]:
    """Yield the numbers of the records that fit, in order, some of them deleted ones."""
    first, last = _span(query)
    loose = first_loose(database)
    if query.order == "oldest":
        yield from _settled(database, query, range(first, min(last, loose)), end_s)
        yield from _loose(database, query, range(max(first, loose), last))
    else:
        yield from _loose(database, query, range(max(first, loose), last))
        yield from _settled(database, query, range(first, min(last, loose)), end_s)


def _span(query: HistoryQuery) -> tuple[int, int]:
    """Return the numbers of records that a page is about, the last exclusive."""
    number = None
    if query.before is not None:
        number = int(query.before)
        if not 0 <= number < 1 << 62:
            raise ValueError("no number of a record")
    if number is None:
        return 0, 1 << 62
    return (number + 1, 1 << 62) if query.order == "oldest" else (0, number)


def _loose(database: sqlite3.Connection, query: HistoryQuery, span: range) -> Iterator[int]:
    tests = ["seq >= ?", "seq < ?"]
    values: list[int | str] = [span.start, span.stop]
    for condition in _conditions(query):
        tests.append(condition.test.format(condition.column))
        values += condition.values
    for test, value in (
        ("ended_us >= ?", _us(query.since_ns)),
        ("ended_us < ?", _us(query.until_ns)),
        ("slowest_us >= ?", query.slow_us),
    ):
        if value is not None:
            tests.append(test)
            values.append(value)
    direction = "ASC" if query.order == "oldest" else "DESC"
    for number, exe in database.execute(
        f"SELECT seq, exe FROM record NOT INDEXED WHERE {' AND '.join(tests)} "
        f"ORDER BY seq {direction}",
        values,
    ):
        if exe is None or all(fits_exe(pattern, exe) for pattern in query.exe):
            yield number


def _settled(
    database: sqlite3.Connection, query: HistoryQuery, span: range, end_s: float
) -> Iterator[int]:
    if not span:
        return
    upwards = query.order == "oldest"
    conditions = _conditions(query)
    blocks = database.execute(
        "SELECT number, oldest_us, newest_us FROM block WHERE number BETWEEN ? AND ? "
        "AND newest_us >= ? AND oldest_us < ? AND slowest_us >= ? "
        f"ORDER BY number {'ASC' if upwards else 'DESC'}",
        (
            span.start // BLOCK,
            (span.stop - 1) // BLOCK,
            _us(query.since_ns) or 0,
            1 << 62 if query.until_ns is None else _us(query.until_ns),
            -1 if query.slow_us is None else query.slow_us,
        ),
    ).fetchall()
    for number, oldest_us, newest_us in blocks:
        _look_at_clock(end_s)
        base = number * BLOCK
        bits = ALL
        if base < span.start:
            bits &= ALL << (span.start - base)
        if base + BLOCK > span.stop:
            bits &= ALL >> (base + BLOCK - span.stop)
        for condition in conditions:
            bits &= _having(database, number, condition)
            if not bits:
                break
        if bits and query.exe:
            bits &= _with_exe(database, number, query.exe)
        if bits and query.slow_us is not None:
            (data,) = database.execute(
                "SELECT us FROM slowest WHERE block = ?", (number,)
            ).fetchone() or (b"",)
            bits = at_least(data, query.slow_us, bits)
        if bits:
            bits &= _in_time(database, query, base, oldest_us, newest_us)
        for place in places_in(bits, upwards=upwards):
            yield base + place


def _having(database: sqlite3.Connection, number: int, condition: _Condition) -> int:
    bits = 0
    for (data,) in database.execute(
        "SELECT places FROM posting WHERE block = ? AND kind = ? AND "
        + condition.test.format("value"),
        (number, KINDS[condition.column], *condition.values),
    ):
        bits |= places_of(data)
    return bits


# And those of which the index knows none.
def _with_exe(database: sqlite3.Connection, number: int, patterns: tuple[str, ...]) -> int:
    having = known = 0
    for exe, data in database.execute(
        "SELECT value, places FROM posting WHERE block = ? AND kind = ?", (number, KINDS["exe"])
    ):
        places = places_of(data)
        known |= places
        if all(fits_exe(pattern, exe) for pattern in patterns):
            having |= places
    return having | (ALL & ~known)


def _in_time(
    database: sqlite3.Connection, query: HistoryQuery, base: int, oldest_us: int, newest_us: int
) -> int:
    since_us, until_us = _us(query.since_ns), _us(query.until_ns)
    if (since_us is None or since_us <= oldest_us) and (until_us is None or newest_us < until_us):
        return ALL
    # one block at either end of the window, and those that a step of the clock fell into
    return of_places(
        number - base
        for (number,) in database.execute(
            "SELECT seq FROM record NOT INDEXED "
            "WHERE seq >= ? AND seq < ? AND ended_us >= ? AND ended_us < ?",
            (base, base + BLOCK, since_us or 0, 1 << 62 if until_us is None else until_us),
        )
    )


def _us(moment_ns: int | None) -> int | None:
    return None if moment_ns is None else moment_ns // 1000


def _conditions(query: HistoryQuery) -> list[_Condition]:
    """Return what has postings, the rarest kinds first."""
    found = []
    if query.pid is not None:
        found.append(_Condition("pid", "{0} = ?", (query.pid,)))
    if query.host is not None:
        found.append(_Condition("host", "{0} = ?", (query.host,)))
    if query.container is not None:
        first, last = query.container, query.container + "\U0010ffff"
        found.append(_Condition("container", "{0} >= ? AND {0} <= ?", (first, last)))
    if query.unit is not None:
        units = (query.unit, f"{query.unit}.service")
        found.append(_Condition("unit", "{0} IN (?, ?)", units))
    if query.comm is not None:
        found.append(_Condition("comm", "{0} = ?", (query.comm,)))
    for wanted, value in ((query.failed, FAILED), (query.unused, UNUSED)):
        if wanted:
            found.append(_Condition("failed", "{0} = ?", (value,)))
    for uid in (query.uid, query.uid_only):
        if uid is not None:
            found.append(_Condition("uid", "{0} = ?", (uid,)))
    return found
