"""Where each function of an ELF file begins and ends, by its unwind table.

A symbol is a claim. The unwind table (.eh_frame_hdr) is a second one, made by the compiler for
every function, local ones and split-off cold parts as well, and sorted, so that one function is
found in a few reads. Sources: the Linux Standard Base's chapter on exception frames, DWARF 5.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from monitor.kernel.elf import ElfError, ElfFile

__all__ = ["Extent", "Extents"]

_PT_GNU_EH_FRAME: Final = 0x6474E550
_PCREL_SDATA4: Final = 0x1B  # how every linker encodes the pointer to .eh_frame, and gcc a begin
_DATAREL_SDATA4: Final = 0x3B  # ... and the table
_UDATA4: Final = 0x03
_MAX_FUNCTIONS: Final = 4 << 20  # Chromium has a million


class Extent(NamedTuple):
    """Addresses of one piece of code: from ``start`` to before ``end``."""

    start: int
    end: int


class Extents:
    """The unwind table of a file.

    Args:
        file: already inspected.
    Raises:
        ElfError: the table is damaged.
    """

    def __init__(self, file: ElfFile) -> None:
        self._file = file
        self._count = self._at = self._base = 0
        for segment in file.segments:
            if segment.kind == _PT_GNU_EH_FRAME:
                self._read_header(segment.vaddr)
                break

    @property
    def known(self) -> bool:
        """There is a table to ask."""
        return self._count > 0

    def _read_header(self, vaddr: int) -> None:
        version, frame, count, table, _, entries = struct.unpack(
            "<BBBBiI", self._file.read_at(vaddr, 12)
        )
        if (version, frame, count, table) != (1, _PCREL_SDATA4, _UDATA4, _DATAREL_SDATA4):
            return  # encoded as no linker does: as if there were none
        if entries > _MAX_FUNCTIONS:
            raise ElfError("the unwind table is too long")
        self._count, self._at, self._base = entries, vaddr + 12, vaddr

    def find(self, address: int) -> Extent | None:
        """The piece of code that an address lies in; None where the table has none."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[0] <= address:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        start, frame = self._entry(low - 1)
        extent = self._extent(start, frame)
        return extent if extent is not None and extent.start <= address < extent.end else None

    def _entry(self, number: int) -> tuple[int, int]:
        start, frame = struct.unpack("<ii", self._file.read_at(self._at + 8 * number, 8))
        return self._base + start, self._base + frame

    # The frame description says how long its code is. Its begin, if it is encoded as usual, must
    # be the table's; else its length cannot be read either.
    def _extent(self, start: int, frame: int) -> Extent | None:
        length, cie, begin, size = struct.unpack("<IIiI", self._file.read_at(frame, 16))
        if length in (0, 0xFFFFFFFF) or not cie or frame + 8 + begin != start or not size:
            return None
        return Extent(start, start + size)
