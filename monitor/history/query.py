"""Reads records back: the newest that fit, page by page.

Each filter has an index. Which of them is the narrowest is found by counting, up to a bound, before
the query: SQLite's own guess would need statistics that go stale by the minute.
"""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

__all__ = ["HistoryPage", "HistoryQuery", "fetch", "fetch_one"]

# Below so many candidates they are all fetched and sorted; above, the table is read in order,
# where so dense a filter soon fits.
_FEW: Final = 4000


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
    slow_us: int | None = None
    pid: int | None = None
    comm: str | None = None
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
    by: str
    """An index; empty: none serves it."""
    sql: str
    values: tuple[int | str, ...]


def fetch(database: sqlite3.Connection, query: HistoryQuery, dictionary: bytes) -> HistoryPage:
    """Return one page.

    Raises:
        ValueError: ``before`` is no cursor.
        sqlite3.Error: the file cannot be read.
    """
    conditions = list(_conditions(query))
    place = _place(query)
    if place is not None:
        conditions.append(place)
    narrowest = _narrowest(database, conditions)
    table = f"record INDEXED BY {narrowest}" if narrowest else "record NOT INDEXED"
    where = " AND ".join(condition.sql for condition in conditions) or "1"
    values = [value for condition in conditions for value in condition.values]
    direction = "ASC" if query.order == "oldest" else "DESC"
    rows = database.execute(
        f"SELECT seq, data FROM (SELECT seq FROM {table} WHERE {where} "
        f"ORDER BY seq {direction} LIMIT ?) CROSS JOIN body USING (seq)",
        (*values, query.limit + 1),
    ).fetchall()
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    bodies = []
    damaged = 0
    for _, data in rows:
        try:
            bodies.append(inflate(data, dictionary))
        except sqlite3.DatabaseError:
            damaged += 1
    return HistoryPage(bodies, str(rows[-1][0]) if more and rows else None, damaged)


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


def inflate(data: bytes, dictionary: bytes) -> bytes:
    """Return the record's JSON.

    Raises:
        sqlite3.DatabaseError: the data is damaged.
    """
    unpacker = zlib.decompressobj(-15, zdict=dictionary)
    try:
        body = unpacker.decompress(data)
    except zlib.error as exc:
        raise sqlite3.DatabaseError("a record in it is malformed") from exc
    if not unpacker.eof:
        raise sqlite3.DatabaseError("a record in it is malformed")
    return body


def _place(query: HistoryQuery) -> _Condition | None:
    if query.before is None:
        return None
    comparison = ">" if query.order == "oldest" else "<"
    number = int(query.before)
    if not 0 <= number < 1 << 63:
        raise ValueError("no number of a record")
    return _Condition("", f"seq {comparison} ?", (number,))


def _conditions(query: HistoryQuery) -> list[_Condition]:
    found = []
    if query.uid_only is not None:
        found.append(_Condition("record_uid", "uid = ?", (query.uid_only,)))
    for name, value in (("pid", query.pid), ("uid", query.uid), ("comm", query.comm)):
        if value is not None:
            found.append(_Condition(f"record_{name}", f"{name} = ?", (value,)))
    if query.host is not None:
        found.append(_Condition("record_host", "host = ?", (query.host,)))
    if query.unit is not None:
        units = (query.unit, f"{query.unit}.service")
        found.append(_Condition("record_unit", "unit IN (?, ?)", units))
    if query.container is not None:
        first, last = query.container, query.container + "\U0010ffff"
        found.append(
            _Condition("record_container", "container >= ? AND container <= ?", (first, last))
        )
    if query.failed:
        found.append(_Condition("record_failed", "failed", ()))
    if query.slow_us is not None:
        found.append(_Condition("record_slowest", "slowest_us >= ?", (query.slow_us,)))
    if query.since_ns is not None:
        found.append(_Condition("record_ended", "ended_us >= ?", (query.since_ns // 1000,)))
    if query.until_ns is not None:
        found.append(_Condition("record_ended", "ended_us < ?", (query.until_ns // 1000,)))
    return found


def _narrowest(database: sqlite3.Connection, conditions: list[_Condition]) -> str | None:
    best, least = None, _FEW
    for condition in conditions:
        if not condition.by:
            continue
        (count,) = database.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM record INDEXED BY {condition.by} "
            f"WHERE {condition.sql} LIMIT {least})",
            condition.values,
        ).fetchone()
        if count < least:
            best, least = condition.by, count
            if not count:
                break
    return best
