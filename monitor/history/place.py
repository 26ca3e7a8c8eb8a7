"""Where the history's files lie: whose they are, and whether they still lie there.

Others may delete a file, replace it or make it read-only while it is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from monitor.errors import SourceError

__all__ = ["Lock", "Place", "forget_broken"]

_BESIDE: Final = ("", "-wal")  # what is written to


class Place:
    """The database at a path, as it was when :meth:`note` was called last.

    Args:
        path: of the file; SQLite's log lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted: dict[str, tuple[int, int] | None] = {}

    def note(self) -> None:
        """Remember which files are there; the database is open."""
        self._noted = {suffix: _identity(f"{self._path}{suffix}") for suffix in _BESIDE}

    def trouble(self) -> str | None:
        """Say what has happened to it since; None: nothing."""
        for suffix, noted in self._noted.items():
            found = _identity(f"{self._path}{suffix}")
            if noted is None:
                self._noted[suffix] = found  # it comes with the first write
            elif found != noted:
                what = "it" if not suffix else "its log"
                return f"{what} was {'deleted' if found is None else 'replaced'}"
        return None

    def barred(self) -> str | None:
        """Say why it cannot be written any more; None: it can."""
        if not self._noted or os.access(self._path, os.W_OK):
            return None
        return "it is read-only"


class Lock:
    """Keeps other daemons from writing the same history.

    Args:
        path: of a file beside it; its folder is made, for its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def take(self) -> None:
        """Lock, unless that is done.

        Raises:
            OSError: the file cannot be made.
            SourceError: another has it.
        """
        if self._fd >= 0:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(descriptor)
            if isinstance(exc, BlockingIOError):
                raise SourceError(
                    "another conmond writes it; --state-dir names another folder"
                ) from exc
            raise
        self._fd = descriptor

    def in_place(self) -> bool:
        """Whether what is locked is what others would lock."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        return False

    def release(self) -> None:
        """Let others have it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def forget_broken(path: Path, kept: int) -> None:
    """Keep the newest few of the files that were set aside."""
    found = sorted(
        (
            each
            for each in path.parent.glob(f"{path.name}.broken-*")
            if not each.name.endswith(("-wal", "-shm"))
        ),
        key=lambda each: each.stat().st_mtime,
    )
    for each in found[:-kept]:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(f"{each}{suffix}")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
