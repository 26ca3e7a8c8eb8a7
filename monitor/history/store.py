"""The history file: one thread writes in batches, any thread reads, nothing stops the daemon.

Whatever goes wrong with the file is said once, and records are dropped and counted meanwhile: a
full disk and another's lock are tried again, a broken file set aside for a new one. The thread
also makes blocks of what was written (monitor/history/blocks.py) and forgets what is too old, a
little at a time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from conmon.names import fold_host
from conmon.record import Record
from monitor.api.parameters import is_unused, slowest_us
from monitor.errors import SourceError
from monitor.history import blocks
from monitor.history.place import Lock, Place, forget_broken
from monitor.history.query import (
    DamagedRecord,
    HistoryPage,
    HistoryQuery,
    fetch,
    fetch_newest,
    fetch_one,
)
from monitor.history.schema import NewerFile, drop_index, migrate, old_indexes, read_dictionary

__all__ = ["History", "HistoryStatus"]

_MAX_QUEUED: Final = 8_000  # rows, some 13 MB at worst; a disk that is slower loses some
_BATCH: Final = 256  # so that what waits takes little memory; a commit costs no sync
_BATCH_S: Final = 1.0
_SETTLING_S: Final = 0.05  # while blocks are made of an older file
_FLUSH_S: Final = 0.5
_CLOSE_S: Final = 5.0
_RETRY_S: Final = 30.0  # after a write that failed
_RETRY_SOON_S: Final = 5.0  # of a file that others have made read-only
_RETENTION_S: Final = 10.0
_DELETE_AT_ONCE: Final = 5_000
_QUERY_S: Final = 5.0
_QUERY_STEPS: Final = 20_000  # of SQLite's machine, between looks at the clock
_BROKEN_KEPT: Final = 3
_FREE_PAGES: Final = 64
_FREE: Final = 0.25  # of the file, unused, from where on it is made smaller
_TIDY_AT_ONCE: Final = 500  # pages
_MOST_INTEGER: Final = (1 << 63) - 1  # that SQLite takes
_FULL: Final = 0.95  # of the size allowed, where the oldest begin to go
_Found = TypeVar("_Found")
_Row = tuple[
    int, str | None, int | None, int | None, str | None, str | None, str | None, str | None,
    int, int, str | None,
]  # fmt: skip
"""A row of the table ``record``, without its number."""
_BROKEN: Final = (
    "malformed", "not a database", "file is encrypted", "no such", "already exists",
    "constraint failed",
)  # fmt: skip


class HistoryStatus(NamedTuple):
    """How the history does.

    ``enabled``: it can be asked. ``bytes``: of its files. ``records`` None: being counted.
    """

    enabled: bool
    path: Path
    records: int | None
    bytes: int
    oldest_ns: int | None
    dropped: int
    error: str | None


class _Reader:
    """A connection that reads, made by the first who asks; to be used with its lock held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.database: sqlite3.Connection | None = None

    def close(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None


class History:
    """Records on disk. Made by :meth:`open`."""

    def __init__(
        self, path: Path, *, max_age_s: float, max_bytes: int, say: Callable[[str], None]
    ) -> None:
        self.path = path
        self.dropped = 0
        self.error: str | None = None
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._say = say
        self._queue: deque[tuple[_Row, bytes]] = deque()
        self._wake = threading.Event()
        self._written = threading.Condition()
        self._added = 0
        self._done = 0
        self._ending = False
        self._retry_at = 0.0
        self._retention_at = 0.0
        self._settle_at = 0.0
        self._settling = False
        self._lock = Lock(path.with_suffix(".lock"))
        self._database: sqlite3.Connection | None = None
        self._place = Place(path)
        self._unsure = 0  # records written since the file was last seen in its place
        self._readers = (_Reader(), _Reader())  # root's question waits for nobody else's
        self._damage: str | None = None  # that a reader came across
        self._dictionary = b""
        self._following = 1  # the next record's number
        self._old_indexes: list[str] = []
        self._count: int | None = None
        self._oldest_us: int | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, max_age_s: float, max_bytes: int, say: Callable[[str], None]
    ) -> History:
        """Open or begin a history. Where that cannot be done it says why, and tries again later.

        Args:
            path: of the file; its folder is made, for its owner alone.
            max_age_s, max_bytes: older records go, and the oldest where it grows larger.
            say: tells a person.
        """
        history = cls(Path(path), max_age_s=max_age_s, max_bytes=max_bytes, say=say)
        history._try_open()
        history._thread = threading.Thread(target=history._write, name="history", daemon=True)
        history._thread.start()
        return history

    # -- from the daemon ----------------------------------------------------------------------

    def add(self, record: Record, body: bytes) -> None:
        """Keep a record.

        Args:
            body: its line of JSON.
        """
        unusable = self._database is None and self.error is not None
        if unusable or not self._alive or len(self._queue) >= _MAX_QUEUED:
            self.dropped += 1
            return
        row = (
            time.time_ns() // 1000, record.id, record.pid, record.uid, _storable(record.comm),
            _storable(record.unit), record.container,
            None if record.host is None else _storable(fold_host(record.host)),
            blocks.FAILED if record.state == "failed" else blocks.UNUSED * is_unused(record),
            min(slowest_us(record), _MOST_INTEGER),
            _storable(record.exe),
        )  # fmt: skip
        self._queue.append((row, body))
        self._added += 1
        if len(self._queue) == _BATCH:
            self._wake.set()

    def flush(self, timeout_s: float = _FLUSH_S) -> None:
        """Wait until what was added up to now can be read back, or for so long."""
        if not self._alive:
            return
        wanted = self._added
        if self._done >= wanted:
            return
        self._wake.set()
        with self._written:
            self._written.wait_for(lambda: self._done >= wanted, timeout_s)

    def close(self) -> None:
        """Write what is pending, for some seconds at most."""
        self._ending = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
            if self._thread.is_alive():
                self._say(f"{len(self._queue)} records were not written to {self.path} in time")
                return
        self._close_readers()
        self._lock.release()

    # -- questions, from any thread -----------------------------------------------------------

    def query(self, query: HistoryQuery) -> HistoryPage:
        """Return one page of records.

        Raises:
            SourceError: it cannot be read, or not in reasonable time.
        """
        self.flush()
        return self._read(lambda database, end: fetch(database, query, self._dictionary, end))

    def get(self, identifier: str, uid: int | None, *, newest: bool = False) -> bytes | None:
        """Return the JSON of the record with this id; None where none is there for that uid.

        Args:
            newest: the id is of a socket's first connection, and the newest is wanted.
        Raises:
            SourceError: it cannot be read.
        """
        if not self._usable:
            return None
        self.flush()
        find = fetch_newest if newest else fetch_one
        return self._read(lambda database, _: find(database, identifier, uid, self._dictionary))

    def status(self) -> HistoryStatus:
        """Return how it does. Touches the file's name alone."""
        size = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                size += os.stat(f"{self.path}{suffix}").st_size
        # no question to the file: the daemon must not wait for someone's slow one
        oldest_us = self._oldest_us
        oldest = oldest_us * 1000 if oldest_us is not None else None
        error = self.error
        if error is None and not self._alive and not self._ending:
            error = "its thread has ended"
        return HistoryStatus(
            self._usable, self.path, self._count, size, oldest, self.dropped, error
        )

    @property
    def _usable(self) -> bool:
        return self._alive and self._database is not None

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _read(self, ask: Callable[[sqlite3.Connection, float], _Found]) -> _Found:
        first, second = self._readers
        if first.lock.acquire(blocking=False):
            try:
                return self._read_with(first, ask)
            finally:
                first.lock.release()
        with second.lock:
            try:
                return self._read_with(second, ask)
            finally:
                second.close()  # seldom used, and a megabyte

    def _read_with(
        self, reader: _Reader, ask: Callable[[sqlite3.Connection, float], _Found]
    ) -> _Found:
        end = time.monotonic() + _QUERY_S
        if self._database is None:  # what is there may not be ours, or only half made
            raise SourceError(f"cannot read the history {self.path}: {self.error or 'begun anew'}")
        try:
            if reader.database is None:
                reader.database = sqlite3.connect(
                    f"file:{_quoted(self.path)}?mode=ro", uri=True, check_same_thread=False
                )
                reader.database.execute("PRAGMA cache_size = -1024")
            reader.database.set_progress_handler(lambda: time.monotonic() > end, _QUERY_STEPS)
            return ask(reader.database, end)
        except ValueError as exc:
            raise SourceError("before must be what an earlier answer gave as next") from exc
        except sqlite3.Error as exc:
            reader.close()
            if _is_broken(exc) and not isinstance(exc, DamagedRecord):
                self._damage = str(exc)
                self._wake.set()
            reason = f"took over {_QUERY_S:.0f} s" if "interrupted" in str(exc) else str(exc)
            raise SourceError(f"cannot read the history {self.path}: {reason}") from exc

    def _close_readers(self) -> None:
        for reader in self._readers:
            with reader.lock:
                reader.close()

    # -- the writer's thread ------------------------------------------------------------------

    def _write(self) -> None:
        self._count_records()
        ending = False
        while not ending:
            self._wake.wait(_SETTLING_S if self._settling else _BATCH_S)
            self._wake.clear()
            ending = self._ending
            try:
                self._work(ending)
            except Exception as exc:  # noqa: BLE001 - the thread lives, whatever it is
                self._retry_at = time.monotonic() + _RETRY_S
                self._fail(exc)
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()

    def _work(self, ending: bool) -> None:
        """Do what is due."""
        damage, self._damage = self._damage, None
        if damage is not None and self._database is not None:
            self._set_aside(damage)
        self._look_for_file()
        if self._database is None and time.monotonic() >= self._retry_at:
            self._try_open()
        if self._count is None:
            self._count_records()
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            try:
                self._write_batch(batch, last_try=ending)
            finally:
                with self._written:
                    self._done += len(batch)
                    self._written.notify_all()
            if not ending:
                self._tend()  # here too: under load the queue may never be empty
        if not ending:
            self._tend()

    def _try_open(self) -> None:
        try:
            self._lock.take()
            self._open()
        except (OSError, sqlite3.Error, SourceError) as exc:
            self._retry_at = time.monotonic() + _RETRY_S
            self._fail(exc)

    def _tend(self) -> None:
        """Make a block, or forget some, where it is time."""
        now = time.monotonic()
        if self._database is None:
            return
        try:
            due = now >= max(self._settle_at, self._retry_at)
            if due and len(self._queue) < _MAX_QUEUED / 2:
                self._settling = self._settle(self._database)
                # of an older file there is much: half of the time is the daemon's
                ended = time.monotonic()
                self._settle_at = 2 * ended - now if self._settling else 0.0
            if now >= self._retention_at:
                self._retention_at = now + (_RETENTION_S if not self._forget_some() else 0.0)
        except sqlite3.Error as exc:
            self._fail_with(exc)

    def _settle(self, database: sqlite3.Connection) -> bool:
        """Take one step towards blocks of all records; False: there is none to take."""
        if blocks.settle(database, self._following):
            return True
        if self._old_indexes:
            drop_index(database, self._old_indexes[0])
            self._old_indexes.pop(0)
            return True
        return False

    def _count_records(self) -> None:
        # Of an older file a million takes half a second: not while the daemon waits to be ready.
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._count = blocks.count_records(self._database)

    def _write_batch(self, batch: list[tuple[_Row, bytes]], *, last_try: bool) -> None:
        self._look_for_file()
        now = time.monotonic()
        if self.error is not None and now < self._retry_at and not last_try:
            self.dropped += len(batch)
            return
        if self._database is None:
            self._try_open()
        database = self._database
        if database is None:
            self.dropped += len(batch)
            return
        try:
            self._insert(database, batch)
        except sqlite3.Error as exc:
            self.dropped += len(batch)
            self._fail_with(exc)
            return
        except BaseException:
            self.dropped += len(batch)
            raise
        self._unsure += len(batch)
        if self._count is not None:
            self._count += len(batch)
        if self._oldest_us is None:
            self._oldest_us = batch[0][0][0]
        if self.error is not None:
            self.error = None
            self._say(f"the history {self.path} is written again; {self.dropped} records were not")

    def _insert(self, database: sqlite3.Connection, batch: list[tuple[_Row, bytes]]) -> None:
        rows = []
        bodies = []
        for number, (row, body) in enumerate(batch, start=self._following):
            packer = zlib.compressobj(4, zlib.DEFLATED, -15, zdict=self._dictionary)
            rows.append((number, *row))
            bodies.append((number, packer.compress(body) + packer.flush()))
        with database:
            database.executemany(
                f"INSERT INTO record VALUES ({', '.join('?' * len(rows[0]))})", rows
            )
            database.executemany("INSERT INTO body VALUES (?, ?)", bodies)
        self._following += len(batch)

    def _forget_some(self) -> bool:
        """Delete records that are too old or too many, a few at a time; True: more may be."""
        database = self._database
        assert database is not None
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        (free,) = database.execute("PRAGMA freelist_count").fetchone()
        (page,) = database.execute("PRAGMA page_size").fetchone()
        oldest_us = int((time.time() - self._max_age_s) * 1e6)
        doomed = blocks.doomed(database, oldest_us, self._following, _DELETE_AT_ONCE)
        if not doomed and (pages - free) * page > _FULL * self._max_bytes:
            doomed = database.execute(
                "SELECT seq FROM record ORDER BY seq LIMIT ?", (_DELETE_AT_ONCE,)
            ).fetchall()
        if not doomed:
            return self._tidy(database, pages, free)
        blocks.forget(database, doomed)
        self._oldest_us = _oldest_us(database)
        if self._count is not None:
            self._count -= len(doomed)
        return True

    def _tidy(self, database: sqlite3.Connection, pages: int, free: int) -> bool:
        """Give room that deleted records left back to the disk, a little; True: there is more."""
        if free < _FREE_PAGES or free < _FREE * pages:
            return False
        database.execute(f"PRAGMA incremental_vacuum({_TIDY_AT_ONCE})").fetchall()
        (left,) = database.execute("PRAGMA freelist_count").fetchone()
        return bool(left < free)  # a file of before has no such thing

    # -- the file -----------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._connect()
        except NewerFile as exc:
            self._set_aside(str(exc))
            self._connect()
        except sqlite3.DatabaseError as exc:
            if not _is_broken(exc):
                raise
            self._set_aside(str(exc))
            self._connect()

    def _connect(self) -> None:
        # made here, since SQLite would make it readable to all
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self.path, check_same_thread=False)
        try:
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of new files alone
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA cache_size = -1024")
            database.execute("PRAGMA journal_size_limit = 8388608")
            migrate(database)
            self._dictionary = read_dictionary(database)
            self._following = blocks.next_number(database)
            self._old_indexes = old_indexes(database)
            self._count = None
            self._oldest_us = _oldest_us(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        self._place.note()

    def _look_for_file(self) -> None:
        """Begin anew where the file is not what is written to any more."""
        if self._database is None:
            return
        trouble = self._place.trouble()
        if trouble is not None:
            self._begin_anew(trouble)
            return
        self._unsure = 0
        barred = self._place.barred()
        if barred is not None:
            try:
                self._set_aside(barred)
            except OSError as exc:
                self._retry_at = time.monotonic() + _RETRY_SOON_S
                self._fail(exc)

    def _begin_anew(self, trouble: str) -> None:
        gone, lost = self._count, self._unsure
        self._let_go()
        self.dropped += lost
        self._unsure = 0
        if not self._lock.in_place():
            self._lock.release()  # what is locked is not what others see
        self._retry_at = 0.0
        number = "its" if gone is None else f"{gone}"
        self._say(
            f"the history {self.path}: {trouble}, and {number} records with it, {lost} of them "
            "written last are counted as dropped; it is begun anew"
        )
        self._try_open()

    def _set_aside(self, reason: str) -> None:
        """Keep the file under another name; a new one is begun with the next batch.

        Raises:
            OSError: that cannot be done.
        """
        self._let_go()
        aside = f"{self.path}.broken-{int(time.time())}"
        # the file last: a new one must not find the old one's log
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
        forget_broken(self.path, _BROKEN_KEPT)
        self._retry_at = 0.0
        self._say(f"the history {self.path} cannot be used ({reason}); it is now {aside}")

    def _let_go(self) -> None:
        """Close the file, and forget what was known of it."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        self._close_readers()
        self._count = None
        self._oldest_us = None
        self._damage = None
        self._settling = False

    def _fail_with(self, exc: sqlite3.Error) -> None:
        """A write has failed: set a broken file aside, and try again later."""
        self._retry_at = time.monotonic() + _RETRY_S
        if not _is_broken(exc):
            self._fail(exc)
            return
        try:
            self._set_aside(str(exc))
        except OSError as failed:
            self._fail(failed)

    def _fail(self, exc: Exception) -> None:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        reason = reason or type(exc).__name__
        if self.error != reason:
            self.error = reason
            self._say(f"no history is kept in {self.path}: {reason}")


def _oldest_us(database: sqlite3.Connection) -> int | None:
    row = database.execute("SELECT ended_us FROM record ORDER BY seq LIMIT 1").fetchone()
    return row[0] if row is not None else None


def _is_broken(exc: BaseException) -> bool:
    return any(word in str(exc) for word in _BROKEN)


# SQLite takes text that is UTF-8 alone; lone surrogates stand for bytes that are not.
def _storable(text: str | None) -> str | None:
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))
