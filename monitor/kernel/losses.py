"""What the kernel side counts of what it lost, read through mmap: without a system call, so that
it can be asked for every record.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

from monitor.decode import COUNTERS
from monitor.errors import SourceError

__all__ = ["Losses"]

_ENTRY: Final = struct.Struct("=QQ")  # struct loss, bpf/event.h: count last_ns


class Losses:
    """The map ``losses``.

    Args:
        fd: its descriptor.
    Raises:
        SourceError: it cannot be mapped.
    """

    def __init__(self, fd: int) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        self._size = len(COUNTERS) * _ENTRY.size
        size = (self._size + page - 1) // page * page
        try:
            self._memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        except OSError as exc:
            raise SourceError(f"cannot map the counters of what is lost: {exc.strerror}") from exc
        self._seen = bytes(self._size)

    def changed(self) -> bool:
        """Whether anything was counted since this was asked last."""
        now = self._memory[: self._size]
        if now == self._seen:
            return False
        self._seen = now
        return True

    def read(self) -> dict[str, tuple[int, int]]:
        """Return how often, and when last (CLOCK_MONOTONIC), by the names of enum counter."""
        rows = _ENTRY.iter_unpack(self._memory[: self._size])
        return dict(zip(COUNTERS, rows, strict=True))

    def close(self) -> None:
        """Unmap."""
        self._memory.close()
