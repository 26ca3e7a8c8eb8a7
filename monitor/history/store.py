"""The history file: one thread writes in batches, any thread reads, nothing stops the daemon.

Whatever goes wrong with the file is said once, and records are dropped and counted meanwhile: a
full disk is tried again, a broken file set aside for a new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from conmon.record import Record
from monitor.api.parameters import slowest_us
from monitor.errors import SourceError
from monitor.history.query import HistoryPage, HistoryQuery, fetch, fetch_one
from monitor.history.schema import NewerFile, migrate, read_dictionary

__all__ = ["History", "HistoryStatus"]

_MAX_QUEUED: Final = 8_000  # rows, some 13 MB at worst; a disk that is slower loses some
_BATCH: Final = 256  # so that what waits takes little memory; a commit costs no sync
_BATCH_S: Final = 1.0
_FLUSH_S: Final = 0.5
_CLOSE_S: Final = 5.0
_RETRY_S: Final = 30.0  # after a write that failed
_RETENTION_S: Final = 10.0
_DELETE_AT_ONCE: Final = 5_000
_QUERY_S: Final = 5.0
_QUERY_STEPS: Final = 20_000  # of SQLite's machine, between looks at the clock
_BROKEN_KEPT: Final = 3
_FREE_PAGES: Final = 64
_FREE: Final = 0.25  # of the file, unused, from where on it is made smaller
_TIDY_AT_ONCE: Final = 500  # pages
_FULL: Final = 0.95  # of the size allowed, where the oldest begin to go
_Found = TypeVar("_Found")
_Row = tuple[
    int, str | None, int | None, int | None, str | None, str | None, str | None, str | None,
    bool, int,
]  # fmt: skip
"""A row of the table ``record``, without its number."""
_BROKEN: Final = (
    "malformed", "not a database", "file is encrypted", "no such", "already exists",
)  # fmt: skip


class HistoryStatus(NamedTuple):
    """How the history does. ``bytes`` is the size of its files; ``records`` None: being counted."""

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
        self._lock_fd = -1
        self._database: sqlite3.Connection | None = None
        self._readers = (_Reader(), _Reader())  # root's question waits for nobody else's
        self._dictionary = b""
        self._count: int | None = None
        self._oldest_us: int | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, max_age_s: float, max_bytes: int, say: Callable[[str], None]
    ) -> History:
        """Open or begin a history. Where that cannot be done it says why and keeps nothing.

        Args:
            path: of the file; its folder is made, for its owner alone.
            max_age_s, max_bytes: older records go, and the oldest where it grows larger.
            say: tells a person.
        """
        history = cls(Path(path), max_age_s=max_age_s, max_bytes=max_bytes, say=say)
        try:
            history._lock()
            history._open()
        except (OSError, sqlite3.Error, SourceError) as exc:
            history._fail(exc)
            history._unlock()
            return history
        history._thread = threading.Thread(target=history._write, name="history", daemon=True)
        history._thread.start()
        return history

    # -- from the daemon ----------------------------------------------------------------------

    def add(self, record: Record, body: bytes) -> None:
        """Keep a record.

        Args:
            body: its line of JSON.
        """
        if self._thread is None or len(self._queue) >= _MAX_QUEUED:
            self.dropped += 1
            return
        row = (
            time.time_ns() // 1000, record.id, record.pid, record.uid, _storable(record.comm),
            _storable(record.unit), record.container, _storable(record.host),
            record.state == "failed", slowest_us(record),
        )  # fmt: skip
        self._queue.append((row, body))
        self._added += 1
        if len(self._queue) == _BATCH:
            self._wake.set()

    def flush(self, timeout_s: float = _FLUSH_S) -> None:
        """Wait until what was added up to now can be read back, or for so long."""
        if self._thread is None:
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
        self._unlock()

    # -- questions, from any thread -----------------------------------------------------------

    def query(self, query: HistoryQuery) -> HistoryPage:
        """Return one page of records.

        Raises:
            SourceError: it cannot be read, or not in reasonable time.
        """
        self.flush()
        return self._read(lambda database: fetch(database, query, self._dictionary))

    def get(self, identifier: str, uid: int | None) -> bytes | None:
        """Return the JSON of the record with this id; None where none is there for that uid.

        Raises:
            SourceError: it cannot be read.
        """
        if self._thread is None:
            return None
        self.flush()
        return self._read(lambda database: fetch_one(database, identifier, uid, self._dictionary))

    def status(self) -> HistoryStatus:
        """Return how it does. Touches the file's name alone."""
        size = 0
        for suffix in ("", "-wal"):
            with contextlib.suppress(OSError):
                size += os.stat(f"{self.path}{suffix}").st_size
        # no question to the file: the daemon must not wait for someone's slow one
        oldest_us = self._oldest_us
        oldest = oldest_us * 1000 if oldest_us is not None else None
        return HistoryStatus(
            self._thread is not None, self.path, self._count, size, oldest, self.dropped, self.error
        )

    def _read(self, ask: Callable[[sqlite3.Connection], _Found]) -> _Found:
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

    def _read_with(self, reader: _Reader, ask: Callable[[sqlite3.Connection], _Found]) -> _Found:
        end = time.monotonic() + _QUERY_S
        try:
            if reader.database is None:
                reader.database = sqlite3.connect(
                    f"file:{_quoted(self.path)}?mode=ro", uri=True, check_same_thread=False
                )
                reader.database.execute("PRAGMA cache_size = -1024")
            reader.database.set_progress_handler(lambda: time.monotonic() > end, _QUERY_STEPS)
            return ask(reader.database)
        except ValueError as exc:
            raise SourceError("before must be what an earlier answer gave as next") from exc
        except sqlite3.Error as exc:
            reader.close()
            reason = f"took over {_QUERY_S:.0f} s" if "interrupted" in str(exc) else str(exc)
            raise SourceError(f"cannot read the history {self.path}: {reason}") from exc

    def _close_readers(self) -> None:
        for reader in self._readers:
            with reader.lock:
                reader.close()

    # -- the writer's thread ------------------------------------------------------------------

    def _write(self) -> None:
        self._count_records()
        while True:
            self._wake.wait(_BATCH_S)
            self._wake.clear()
            ending = self._ending
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                self._write_batch(batch, last_try=ending)
                with self._written:
                    self._done += len(batch)
                    self._written.notify_all()
                if not ending:
                    self._retain()  # here too: under load the queue may never be empty
            if ending:
                break
            self._retain()
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()

    def _count_records(self) -> None:
        # A million takes half a second: not while the daemon waits to be ready.
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                (self._count,) = self._database.execute("SELECT count(*) FROM record").fetchone()

    def _retain(self) -> None:
        now = time.monotonic()
        if now >= self._retention_at and self._database is not None:
            self._retention_at = now + (_RETENTION_S if not self._forget_some() else 0.0)

    def _write_batch(self, batch: list[tuple[_Row, bytes]], *, last_try: bool) -> None:
        now = time.monotonic()
        if self.error is not None and now < self._retry_at and not last_try:
            self.dropped += len(batch)
            return
        try:
            if self._database is None:
                self._open()
                self._count_records()
            database = self._database
            assert database is not None
            with database:
                for row, body in batch:
                    self._insert(database, row, body)
        except (sqlite3.Error, OSError, SourceError) as exc:
            self.dropped += len(batch)
            self._retry_at = now + _RETRY_S
            if isinstance(exc, sqlite3.DatabaseError) and _is_broken(exc):
                self._set_aside(str(exc))
                return
            self._fail(exc)
            return
        if self._count is not None:
            self._count += len(batch)
        if self._oldest_us is None:
            self._oldest_us = batch[0][0][0]
        if self.error is not None:
            self.error = None
            self._say(f"the history {self.path} is written again; {self.dropped} records were not")

    def _insert(self, database: sqlite3.Connection, row: _Row, body: bytes) -> None:
        cursor = database.execute(
            "INSERT INTO record VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row
        )
        packer = zlib.compressobj(4, zlib.DEFLATED, -15, zdict=self._dictionary)
        database.execute(
            "INSERT INTO body VALUES (?, ?)",
            (cursor.lastrowid, packer.compress(body) + packer.flush()),
        )

    def _forget_some(self) -> bool:
        """Delete records that are too old or too many, a few at a time; True: more may be."""
        database = self._database
        assert database is not None
        try:
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            (free,) = database.execute("PRAGMA freelist_count").fetchone()
            (page,) = database.execute("PRAGMA page_size").fetchone()
            oldest_us = int((time.time() - self._max_age_s) * 1e6)
            # Each by its own number: after a step of the clock, times do not follow numbers.
            doomed = database.execute(
                "SELECT seq FROM record INDEXED BY record_ended "
                "WHERE ended_us < ? ORDER BY ended_us LIMIT ?",
                (oldest_us, _DELETE_AT_ONCE),
            ).fetchall()
            if not doomed and (pages - free) * page > _FULL * self._max_bytes:
                doomed = database.execute(
                    "SELECT seq FROM record ORDER BY seq LIMIT ?", (_DELETE_AT_ONCE,)
                ).fetchall()
            if not doomed:
                return self._tidy(database, pages, free)
            with database:
                database.executemany("DELETE FROM record WHERE seq = ?", doomed)
                database.executemany("DELETE FROM body WHERE seq = ?", doomed)
            self._oldest_us = _oldest_us(database)
        except sqlite3.Error as exc:
            self._retry_at = time.monotonic() + _RETRY_S
            if _is_broken(exc):
                self._set_aside(str(exc))
            else:
                self._fail(exc)
            return False
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

    def _lock(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.path.with_suffix(".lock")
        self._lock_fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise SourceError(
                "another conmond writes it; --state-dir names another folder"
            ) from exc

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

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
            self._count = None
            self._oldest_us = _oldest_us(database)
        except BaseException:
            database.close()
            raise
        self._database = database

    def _set_aside(self, reason: str) -> None:
        """Begin a new file, and keep the old one under another name."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        self._close_readers()
        aside = f"{self.path}.broken-{int(time.time())}"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")
        self._forget_broken()
        self._count = None
        self._oldest_us = None
        self._retry_at = 0.0
        self._say(f"the history {self.path} cannot be used ({reason}); it is now {aside}")

    def _forget_broken(self) -> None:
        """Keep the newest few of those set aside."""
        kept = sorted(
            (
                path
                for path in self.path.parent.glob(f"{self.path.name}.broken-*")
                if not path.name.endswith(("-wal", "-shm"))
            ),
            key=lambda path: path.stat().st_mtime,
        )
        for path in kept[:-_BROKEN_KEPT]:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{path}{suffix}")

    def _fail(self, exc: Exception) -> None:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
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
