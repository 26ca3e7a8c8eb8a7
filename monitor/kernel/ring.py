"""Reads the BPF ring buffer through mmap, in batches, without a library.

Layout (kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst): page 0 holds the consumer's
position, page 1 the producer's, then the data, mapped twice in a row so that no record wraps.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Final

from monitor.errors import SourceError

__all__ = ["Ring"]

STUCK_NS: Final = 5_000_000_000
_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_HEADER: Final = 8
# The position is handed back to the kernel at least this often while a batch is read.
_RELEASE_BYTES: Final = 128 << 10


class Ring:
    """The consumer's end of one ring buffer.

    Args:
        fd: descriptor of a BPF_MAP_TYPE_RINGBUF map.
        size: bytes of its data area, a power of two.
    Raises:
        SourceError: it cannot be mapped.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        self.fd = fd
        self.size = size
        self.fullest = 0
        """Most bytes ever found waiting."""
        self._stuck_at = -1
        self._stuck_since_ns = 0
        try:
            self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED)
            self._data_map = mmap.mmap(
                fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        except OSError as exc:
            raise SourceError(f"cannot map the ring buffer: {exc.strerror}") from exc
        self._consumer = memoryview(self._consumer_map).cast("Q")
        self._view = memoryview(self._data_map)
        self._producer = self._view[:8].cast("Q")
        self._data = self._view[page:]
        self._words = self._data.cast("I")

    @property
    def waiting(self) -> int:
        """Bytes not yet read."""
        return int(self._producer[0] - self._consumer[0])

    def read(self) -> Iterator[memoryview]:
        """Yield each record that was complete when reading began, oldest first.

        A record's memory is the kernel's again once the next one is asked for: decode it, do not
        keep it. A record still being written ends the reading.
        """
        position = released = self._consumer[0]
        end = self._producer[0]
        if end - position > self.fullest:
            self.fullest = end - position
        mask = self.size - 1
        data = self._data
        words = self._words
        try:
            while position < end:
                at = position & mask
                length = words[at >> 2]
                if length & _BUSY:
                    break
                if not length & _DISCARD:
                    start = at + _HEADER
                    yield data[start : start + length]
                position += ((length & ~_DISCARD) + _HEADER + 7) & ~7
                if position - released >= _RELEASE_BYTES:
                    self._consumer[0] = released = position
        finally:
            self._consumer[0] = position

    def stuck(self, now_ns: int) -> bool:
        """Whether records have waited for long although the ring was read; ask after reading.

        The kernel marks a record busy while it is written, which takes microseconds; one that
        stays so would keep all later ones from ever being read.
        """
        position = self._consumer[0]
        if position == self._producer[0] or position != self._stuck_at:
            self._stuck_at = position
            self._stuck_since_ns = now_ns
        return now_ns - self._stuck_since_ns > STUCK_NS

    def close(self) -> None:
        """Unmap. The descriptor stays the owner's."""
        for view in (self._words, self._data, self._producer, self._view, self._consumer):
            view.release()
        self._data_map.close()
        self._consumer_map.close()
