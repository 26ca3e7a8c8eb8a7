"""Reads the BPF ring buffer through mmap, in batches, without a library.

Layout (kernel/bpf/ringbuf.c, Documentation/bpf/ringbuf.rst): page 0 holds the consumer's
position, page 1 the producer's, then the data, mapped twice in a row so that no record wraps.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import Final

from monitor.errors import SourceError

__all__ = ["Ring", "Shares"]

STUCK_NS: Final = 5_000_000_000
_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_HEADER: Final = 8
# The position is handed back to the kernel at least this often while a batch is read.
_RELEASE_BYTES: Final = 128 << 10
# Mapped pages count as this process's memory, touched or not: so not the whole ring is mapped, but
# what is being read of it. Mapping so much takes 30 us.
_WINDOW: Final = 512 << 10
_SHARE: Final = struct.Struct("=QQ")  # struct ring_share, bpf/event.h: produced consumed


class Shares:
    """What each kind of event has of the ring: the map ``ring_shares``.

    The kernel side adds up what it puts in, and puts in no more than a share allows beyond what
    is written here: the sum as it stood before the ring was read to its end.

    Args:
        fd: descriptor of the map.
        count: its elements.
    Raises:
        SourceError: it cannot be mapped.
    """

    def __init__(self, fd: int, count: int) -> None:
        try:
            self._memory = mmap.mmap(fd, os.sysconf("SC_PAGE_SIZE"), mmap.MAP_SHARED)
        except OSError as exc:
            raise SourceError(f"cannot map the shares of the ring: {exc.strerror}") from exc
        self._words = memoryview(self._memory).cast("Q")[: 2 * count]

    def produced(self) -> memoryview:
        """Return a copy of the sums, for :meth:`publish` once all that they count was read."""
        return memoryview(bytes(self._words)).cast("Q")[::2]

    def publish(self, consumed: memoryview) -> None:
        """Say how much of each was read."""
        self._words[1::2] = consumed

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._memory.close()


class Ring:
    """The consumer's end of one ring buffer.

    Args:
        fd: descriptor of a BPF_MAP_TYPE_RINGBUF map.
        size: bytes of its data area, a power of two.
        shares: what kinds of events have of it.
    Raises:
        SourceError: it cannot be mapped.
    """

    def __init__(self, fd: int, size: int, shares: Shares | None = None) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        self._page = page
        self._shares = shares
        self.fd = fd
        self.size = size
        self.fullest = 0
        """Most bytes ever found waiting."""
        self._stuck_at = -1
        self._stuck_since_ns = 0
        try:
            self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED)
            self._producer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except OSError as exc:
            raise SourceError(f"cannot map the ring buffer: {exc.strerror}") from exc
        self._consumer = memoryview(self._consumer_map).cast("Q")
        self._producer = memoryview(self._producer_map).cast("Q")
        self._window = self._map(0)

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
        produced = self._shares.produced() if self._shares is not None else None
        end = self._producer[0]
        if end - position > self.fullest:
            self.fullest = end - position
        mask = self.size - 1
        base, data, words = self._window
        try:
            while position < end:
                at = (position & mask) - base
                if not 0 <= at <= len(data) - _HEADER:
                    base, data, words = self._window = self._map(position & mask)
                    at = (position & mask) - base
                length = words[at >> 2]
                if length & _BUSY:
                    break
                if not length & _DISCARD:
                    start = at + _HEADER
                    if start + length > len(data):
                        base, data, words = self._window = self._map(position & mask)
                        start = (position & mask) - base + _HEADER
                    yield data[start : start + length]
                position += ((length & ~_DISCARD) + _HEADER + 7) & ~7
                if position - released >= _RELEASE_BYTES:
                    self._consumer[0] = released = position
        finally:
            self._consumer[0] = position
            if position >= end and produced is not None and self._shares is not None:
                self._shares.publish(produced)

    # Where it begins in the data, bytes and words. The window before it is unmapped once nothing
    # of it is held any more.
    def _map(self, at: int) -> tuple[int, memoryview, memoryview]:
        base = at & -self._page
        size = min(_WINDOW, 2 * self.size - base)
        try:
            memory = mmap.mmap(
                self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=2 * self._page + base
            )
        except OSError as exc:
            raise SourceError(f"cannot map the ring buffer: {exc.strerror}") from exc
        data = memoryview(memory)
        return base, data, data.cast("I")

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
        for view in (*self._window[:0:-1], self._producer, self._consumer):
            view.release()
        self._producer_map.close()
        self._consumer_map.close()
        if self._shares is not None:
            self._shares.close()
