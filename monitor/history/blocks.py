"""Records by the block: for every 4,096 numbers, which of them have a value.

A row of ``posting`` holds the places of the records of one block that have one value of one column:
in a bitmap, in a list where they are few, in nothing where it is all of them. Whatever is asked
for together is found by putting bitmaps together, and a block that has none of it costs one look.
"""

from __future__ import annotations

import sqlite3
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

__all__ = [
    "ALL",
    "BLOCK",
    "KINDS",
    "at_least",
    "count_records",
    "doomed",
    "first_loose",
    "forget",
    "next_number",
    "of_places",
    "places_in",
    "places_of",
    "settle",
]

_SHIFT: Final = 12
BLOCK: Final = 1 << _SHIFT
ALL: Final = (1 << BLOCK) - 1
_BITMAP_BYTES: Final = BLOCK // 8
_FEW: Final = BLOCK // 8  # candidates, that are looked at one by one
_MOST_LOOSE: Final = 4 * BLOCK  # looked through for those too old; while more wait, it can wait
# The columns of ``record`` that are looked for by value, and their number in ``posting``: those of
# few values first, so that what is often asked together lies together.
KINDS: Final = {
    "failed": 1, "uid": 2, "comm": 3, "unit": 4, "host": 5, "container": 6, "pid": 7, "exe": 8,
}  # fmt: skip
# Values of the column "failed" besides 0: TLS that was set up and not used is no failure, but
# looked for in the same way.
FAILED, UNUSED = 1, 2


# -- in -----------------------------------------------------------------------------------------


def first_loose(database: sqlite3.Connection) -> int:
    """Return the number from which on records are in no block yet."""
    (number,) = database.execute("SELECT max(number) FROM block").fetchone()
    return 0 if number is None else (number + 1) << _SHIFT


def next_number(database: sqlite3.Connection) -> int:
    """Return the number of the next record: never one within a block, even if its last are gone."""
    (record,) = database.execute("SELECT max(seq) FROM record").fetchone()
    (body,) = database.execute("SELECT max(seq) FROM body").fetchone()
    return max(first_loose(database), 1 + (record or 0), 1 + (body or 0))


def settle(database: sqlite3.Connection, following: int) -> bool:
    """Make one block, in one transaction; False: there is none to make.

    Args:
        following: the number that the next record will have.
    """
    row = database.execute(
        "SELECT seq FROM record WHERE seq >= ? ORDER BY seq LIMIT 1", (first_loose(database),)
    ).fetchone()
    if row is None or (row[0] >> _SHIFT) + 1 > following >> _SHIFT:
        return False
    number = row[0] >> _SHIFT
    with database:
        records = _settle_times(database, number)
        for column, kind in KINDS.items():
            database.executemany(
                "INSERT INTO posting VALUES (?, ?, ?, ?)",
                (
                    (number, kind, value, b"" if len(places) == records else _pack(places))
                    for value, places in _by_value(database, number, column).items()
                ),
            )
    return True


def _settle_times(database: sqlite3.Connection, number: int) -> int:
    span = _span(number)
    records, oldest_us, newest_us = database.execute(
        "SELECT count(*), min(ended_us), max(ended_us) FROM record NOT INDEXED "
        "WHERE seq >= ? AND seq < ?",
        span,
    ).fetchone()
    slowest = [-1] * BLOCK
    for place, us in database.execute(
        f"SELECT seq & {BLOCK - 1}, slowest_us FROM record NOT INDEXED WHERE seq >= ? AND seq < ?",
        span,
    ):
        slowest[place] = us
    database.execute(
        "INSERT INTO block VALUES (?, ?, ?, ?, ?)",
        (number, records, oldest_us, newest_us, max(slowest)),
    )
    database.execute("INSERT INTO slowest VALUES (?, ?)", (number, _pack_slowest(slowest)))
    return int(records)


# A column at a time: a block as Python objects takes some megabytes.
def _by_value(database: sqlite3.Connection, number: int, column: str) -> dict[int | str, list[int]]:
    having: dict[int | str, list[int]] = {}
    wanted = "failed" if column == "failed" else f"{column} IS NOT NULL"
    for place, value in database.execute(
        f"SELECT seq & {BLOCK - 1}, {column} FROM record NOT INDEXED "
        f"WHERE seq >= ? AND seq < ? AND {wanted}",
        _span(number),
    ):
        places = having.get(value)
        if places is None:
            having[value] = [place]
        else:
            places.append(place)
    return having


def _span(number: int) -> tuple[int, int]:
    return number << _SHIFT, (number + 1) << _SHIFT


# -- out ----------------------------------------------------------------------------------------


def count_records(database: sqlite3.Connection) -> int:
    """Return how many records there are."""
    (settled,) = database.execute("SELECT total(records) FROM block").fetchone()
    (loose,) = database.execute(
        "SELECT count(*) FROM record NOT INDEXED WHERE seq >= ?", (first_loose(database),)
    ).fetchone()
    return int(settled) + int(loose)


def doomed(
    database: sqlite3.Connection, before_us: int, following: int, most: int
) -> list[tuple[int]]:
    """Return the numbers of records that ended before a moment, at most so many."""
    # Each by its own time: after a step of the clock, times do not follow numbers.
    found: list[tuple[int]] = database.execute(
        "SELECT seq FROM block CROSS JOIN record NOT INDEXED "
        f"ON seq >= number << {_SHIFT} AND seq < (number + 1) << {_SHIFT} "
        "WHERE oldest_us < ? AND ended_us < ? LIMIT ?",
        (before_us, before_us, most),
    ).fetchall()
    if found:
        return found
    loose = first_loose(database)
    (first,) = database.execute("SELECT min(seq) FROM record WHERE seq >= ?", (loose,)).fetchone()
    if first is None or following - first > _MOST_LOOSE:
        return []
    return database.execute(
        "SELECT seq FROM record NOT INDEXED WHERE seq >= ? AND ended_us < ? LIMIT ?",
        (first, before_us, most),
    ).fetchall()


def forget(database: sqlite3.Connection, numbers: Sequence[tuple[int]]) -> None:
    """Delete records, in one transaction, and the blocks that have none left."""
    with database:
        database.executemany("DELETE FROM record WHERE seq = ?", numbers)
        database.executemany("DELETE FROM body WHERE seq = ?", numbers)
        for block in {number >> _SHIFT for (number,) in numbers}:
            left, oldest_us = database.execute(
                "SELECT count(*), min(ended_us) FROM record NOT INDEXED WHERE seq >= ? AND seq < ?",
                _span(block),
            ).fetchone()
            if left:
                database.execute(
                    "UPDATE block SET records = ?, oldest_us = ? WHERE number = ?",
                    (left, oldest_us, block),
                )
                continue
            for table, column in (("block", "number"), ("slowest", "block"), ("posting", "block")):
                database.execute(f"DELETE FROM {table} WHERE {column} = ?", (block,))


# -- bitmaps, as whole numbers --------------------------------------------------------------------


def of_places(places: Iterable[int]) -> int:
    """Return the bitmap with these places."""
    bits = bytearray(_BITMAP_BYTES)
    for place in places:
        bits[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(bits, "little")


def places_in(bits: int, *, upwards: bool = True) -> Iterator[int]:
    """Yield the places in a bitmap, in order."""
    while bits:
        place = (bits & -bits if upwards else bits).bit_length() - 1
        bits ^= 1 << place
        yield place


def places_of(data: bytes) -> int:
    """Return the bitmap that a posting holds.

    Raises:
        sqlite3.DatabaseError: it is damaged.
    """
    if not data:
        return ALL
    if len(data) == _BITMAP_BYTES:
        return int.from_bytes(data, "little")
    try:
        return of_places(_numbers("H", data))
    except (IndexError, ValueError) as exc:
        raise sqlite3.DatabaseError("a posting in it is malformed") from exc


def at_least(data: bytes, slow_us: int, candidates: int) -> int:
    """Return those of the candidates whose slowest phase took so long.

    Args:
        data: of table ``slowest``.
    Raises:
        sqlite3.DatabaseError: it is damaged.
    """
    try:
        slowest = _numbers("Q" if len(data) == 8 * BLOCK else "I", data)
        if len(slowest) != BLOCK:
            raise ValueError("of another length")
    except ValueError as exc:
        raise sqlite3.DatabaseError("a block in it is malformed") from exc
    least = slow_us + 1
    if candidates.bit_count() < _FEW:
        return of_places([place for place in places_in(candidates) if slowest[place] >= least])
    return candidates & of_places([place for place, us in enumerate(slowest) if us >= least])


def _pack(places: list[int]) -> bytes:
    if 2 * len(places) < _BITMAP_BYTES:
        return _bytes(array("H", places))
    return of_places(places).to_bytes(_BITMAP_BYTES, "little")


def _pack_slowest(slowest: list[int]) -> bytes:
    # one more than it is, so that -1 (nothing known) needs no sign
    kind = "I" if max(slowest) < 0xFFFF_FFFF else "Q"
    return _bytes(array(kind, [us + 1 for us in slowest]))


def _bytes(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _numbers(kind: str, data: bytes) -> array[int]:
    numbers = array(kind)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
