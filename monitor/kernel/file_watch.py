"""Tells when a file that is probed is written to (inotify)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

__all__ = ["FileWatch"]

_IN_MODIFY, _IN_CLOSE_WRITE = 0x2, 0x8
_EVENT: Final = struct.Struct("=iIII")  # watch, mask, cookie, length of the name
_MAX_BYTES: Final = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Files under watch, each by a number. A watch holds neither the file nor its mount."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int | None:
        """Readable when something was written; None where the kernel gives no watches."""
        return self._fd if self._fd >= 0 else None

    def add(self, fd: int) -> int | None:
        """Watch the file of a descriptor; None where that is not possible.

        Two descriptors of one file have the same number.
        """
        if self._fd < 0:
            return None
        number: int = _libc.inotify_add_watch(
            self._fd, b"/proc/self/fd/%d" % fd, _IN_MODIFY | _IN_CLOSE_WRITE
        )
        return number if number >= 0 else None

    def remove(self, number: int) -> None:
        """Watch a file no longer."""
        if self._fd >= 0:
            _libc.inotify_rm_watch(self._fd, number)

    def written(self) -> set[int]:
        """The numbers of the files that were written to since the last call."""
        found: set[int] = set()
        while self._fd >= 0:
            try:
                data = os.read(self._fd, _MAX_BYTES)
            except BlockingIOError:
                break
            at = 0
            while at + _EVENT.size <= len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                if mask & (_IN_MODIFY | _IN_CLOSE_WRITE):
                    found.add(number)
        return found

    def close(self) -> None:
        """Watch nothing any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
