"""Where the running kernel keeps the fields that our programs read, from its BTF.

BTF is the kernel's own description of its types: a header, a section of type records that are
numbered from 1 in the order they stand, and a section of NUL-terminated names. It is read here
with no library: one pass notes where each record starts, then the few wanted structs are walked
by member name. Nothing is trusted: whatever the file holds, the answer is offsets or a BtfError.
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from monitor.errors import SourceError

__all__ = ["VMLINUX", "Btf", "BtfError", "FieldOffset", "has_struct", "read_offsets"]

VMLINUX: Final = "/sys/kernel/btf/vmlinux"

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("=HBBIIIII")  # magic version flags hdr_len type_* str_*
_MAX_BYTES: Final = 64 << 20  # ten times today's largest distribution kernel
_MAX_DEPTH: Final = 32  # typedefs, qualifiers, arrays and nested structs in a row
_POINTER_BYTES: Final = struct.calcsize("P")

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_FLOAT, _ENUM64 = 16, 19
_ALIASES: Final = frozenset({8, 9, 10, 11, 18})  # typedef volatile const restrict type_tag
_SIZED: Final = frozenset({_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64})

# 32-bit words that a record of each kind takes: (fixed, for each of its vlen entries).
_WORDS: Final = {
    _INT: (4, 0),
    _PTR: (3, 0),
    _ARRAY: (6, 0),
    _STRUCT: (3, 3),
    _UNION: (3, 3),
    _ENUM: (3, 2),
    7: (3, 0),  # forward declaration
    8: (3, 0),  # typedef
    9: (3, 0),  # volatile
    10: (3, 0),  # const
    11: (3, 0),  # restrict
    12: (3, 0),  # function
    13: (3, 2),  # function prototype
    14: (4, 0),  # variable
    15: (3, 3),  # section of variables
    _FLOAT: (3, 0),
    17: (4, 0),  # declaration tag
    18: (3, 0),  # type tag
    _ENUM64: (3, 3),
}
_KNOWN_KINDS: Final = frozenset(_WORDS)
_KIND_FLAG: Final = 0x80  # of info >> 24: member offsets carry a bitfield size
# Indexed by info >> 24, so that the one hot loop does no masking. 0 = unknown kind.
_FIXED_WORDS: Final = tuple(_WORDS.get(top & ~_KIND_FLAG, (0, 0))[0] for top in range(256))
_ENTRY_WORDS: Final = tuple(_WORDS.get(top & ~_KIND_FLAG, (0, 0))[1] for top in range(256))
_VLEN: Final = 0xFFFFFF  # 16 bits are in use; the rest are reserved as zero


class BtfError(SourceError):
    """The BTF cannot be read, or is not well formed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldOffset:
    """Where a field stands in its struct."""

    offset: int
    """Bytes from the start of the struct to the first byte that holds part of the field."""
    size: int
    """Bytes of the field; for a bitfield, the bytes from ``offset`` on that hold part of it."""
    bit_offset: int = 0
    """Bitfields only: the first bit within those bytes, 0 to 7."""
    bit_size: int | None = None
    """Width in bits; None where the field is no bitfield."""


class Btf:
    """One BTF file, indexed.

    Args:
        data: the whole file.
        name: what an error message calls it.
    Raises:
        BtfError: not BTF of this machine's byte order, or damaged.
    Source: Documentation/bpf/btf.rst and include/uapi/linux/btf.h of the kernel.
    """

    def __init__(self, data: bytes, *, name: str = "BTF data") -> None:
        self._name = name
        self._data = data
        types, self._strings, self._strings_end = self._sections(data)
        self._words = types.cast("I")
        self._starts = array.array("I", [0])  # type id -> first word; id 0 is void
        self._by_name: dict[int, list[int]] = {}  # name offset -> ids of structs and unions
        self._index()

    @classmethod
    def load(cls, path: str | Path = VMLINUX) -> Btf:
        """Read and index a BTF file.

        Raises:
            BtfError: cannot be read, is larger than any kernel's, or is damaged.
        """
        # Read, not mapped: sysfs refuses mmap before 6.16, and a mapped file that shrinks
        # kills its reader. The copy lives only as long as this object.
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError as exc:
            raise BtfError(
                f"cannot read {path}: this kernel was built without CONFIG_DEBUG_INFO_BTF, "
                "which conmond needs"
            ) from exc
        except OSError as exc:
            raise BtfError(f"cannot read {path}: {exc.strerror}") from exc
        if len(data) > _MAX_BYTES:
            raise BtfError(f"cannot read {path}: larger than {_MAX_BYTES >> 20} MB")
        return cls(data, name=str(path))

    def has_struct(self, name: str) -> bool:
        """Whether a struct or union of that name is defined (a mere declaration is none)."""
        return any(True for _ in self._structs(name))

    def has_name(self, name: str) -> bool:
        """Whether anything that the kernel describes, a function too, has that name."""
        found = self._data.find(b"\0" + name.encode() + b"\0", self._strings, self._strings_end)
        return found >= 0

    def field(self, struct_name: str, path: str) -> FieldOffset | None:
        """Find one field.

        Args:
            path: member names joined by dots; anonymous members are entered without being named.
        Returns:
            None where the struct or the field does not exist.
        Raises:
            BtfError: the description of the struct is damaged.
        """
        for type_id in self._structs(struct_name):
            if (found := self._walk(type_id, path)) is not None:
                return found
        return None

    def offsets(self, wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, FieldOffset]]:
        """Find many fields: ``wanted`` is struct name -> field paths; see `read_offsets`."""
        result: dict[str, dict[str, FieldOffset]] = {}
        for struct_name, paths in wanted.items():
            # C allows two structs of one name in two source files: the one that has more of
            # what is wanted is meant, and fields of two of them are never mixed.
            best: dict[str, FieldOffset] = {}
            for type_id in self._structs(struct_name):
                found = {path: at for path in paths if (at := self._walk(type_id, path))}
                if len(found) > len(best):
                    best = found
                if len(best) == len(paths):
                    break
            result[struct_name] = best
        return result

    def _damaged(self, what: str) -> BtfError:
        return BtfError(f"{self._name} is not usable BTF: {what}")

    # The types, and where the names start and end.
    def _sections(self, data: bytes) -> tuple[memoryview, int, int]:
        if len(data) < _HEADER.size:
            raise self._damaged("shorter than its header")
        magic, version, _, header_len, type_off, type_len, str_off, str_len = _HEADER.unpack_from(
            data
        )
        if magic != _MAGIC:
            swapped = magic == int.from_bytes(_MAGIC.to_bytes(2, "little"), "big")
            raise self._damaged(
                f"not in {sys.byteorder}-endian order" if swapped else "wrong magic"
            )
        if version != 1:
            raise self._damaged(f"version {version} instead of 1")
        types, strings = header_len + type_off, header_len + str_off
        if header_len < _HEADER.size or max(types + type_len, strings + str_len) > len(data):
            raise self._damaged("a section ends behind the end of the file")
        if types % 4 or type_len % 4:
            raise self._damaged("the types are not aligned to 4 bytes")
        return memoryview(data)[types : types + type_len], strings, strings + str_len

    # The one pass over all types (100,000 and more): notes where each starts, and the structs.
    def _index(self) -> None:
        words, by_name = self._words, self._by_name
        fixed, entry, note = _FIXED_WORDS, _ENTRY_WORDS, self._starts.append
        at, end, type_id = 0, len(words), 1
        try:
            while at < end:
                note(at)
                info = words[at + 1]
                top = info >> 24
                if entry[top]:
                    if (top | 0x81) == 0x85:  # struct or union, with and without the kind flag
                        by_name.setdefault(words[at], []).append(type_id)
                    at += fixed[top] + entry[top] * (info & _VLEN)
                elif fixed[top]:
                    at += fixed[top]
                else:
                    raise self._damaged(f"type {type_id} is of unknown kind {top & ~_KIND_FLAG}")
                type_id += 1
        except IndexError:
            at = end + 1
        if at != end:
            raise self._damaged("the last type ends behind the end of its section")
        by_name.pop(0, None)  # anonymous ones are reached through their members

    # Ids of the structs and unions of that name.
    def _structs(self, name: str) -> Iterator[int]:
        if not name:
            return
        needle = b"\0" + name.encode() + b"\0"
        at = self._data.find(needle, self._strings, self._strings_end)
        while at >= 0:
            yield from self._by_name.get(at + 1 - self._strings, ())
            at = self._data.find(needle, at + 1, self._strings_end)

    def _record(self, type_id: int) -> tuple[int, int, int]:
        if not 0 < type_id < len(self._starts):
            raise self._damaged(f"a member refers to type {type_id}, which is not there")
        start = self._starts[type_id]
        info = self._words[start + 1]
        return start, info >> 24 & ~_KIND_FLAG, info

    # Through typedefs and qualifiers to the type itself.
    def _strip(self, type_id: int) -> tuple[int, int, int]:
        for _ in range(_MAX_DEPTH):
            start, kind, info = self._record(type_id)
            if kind not in _ALIASES:
                return start, kind, info
            type_id = self._words[start + 2]
        raise self._damaged("a chain of typedefs does not end")

    def _size(self, type_id: int) -> int:
        factor = 1
        for _ in range(_MAX_DEPTH):
            start, kind, _ = self._strip(type_id)
            if kind in _SIZED:
                return factor * self._words[start + 2]
            if kind == _PTR:
                return factor * _POINTER_BYTES
            if kind != _ARRAY:
                raise self._damaged(f"a member is of kind {kind}, which has no size")
            type_id = self._words[start + 3]
            factor *= self._words[start + 5]
        raise self._damaged("an array of arrays does not end")

    # (name offset, type id, bit offset, bitfield width or 0) of each member.
    def _members(self, start: int, info: int) -> Iterator[tuple[int, int, int, int]]:
        words = self._words
        flagged = info >> 31
        for at in range(start + 3, start + 3 + 3 * (info & _VLEN), 3):
            where = words[at + 2]
            if flagged:
                yield words[at], words[at + 1], where & 0xFFFFFF, where >> 24
            else:
                yield words[at], words[at + 1], where, 0

    # The member of that name: (type id, bit offset, bitfield width). Anonymous members are
    # entered, each type once (a name it lacked the first time it lacks the second time too), so
    # that a type which claims to contain itself ends as well.
    def _member(self, type_id: int, name: bytes, base: int) -> tuple[int, int, int] | None:
        entered: set[int] = set()
        pending = [(type_id, base)]
        while pending:
            type_id, base = pending.pop()
            start, kind, info = self._strip(type_id)
            if kind not in (_STRUCT, _UNION) or start in entered:
                continue
            entered.add(start)
            for name_off, member_type, bits, width in self._members(start, info):
                if not name_off:
                    pending.append((member_type, base + bits))
                elif self._data.startswith(name, self._strings + name_off, self._strings_end):
                    return member_type, base + bits, width
        return None

    def _walk(self, type_id: int, path: str) -> FieldOffset | None:
        bits = width = 0
        for name in path.split("."):
            found = self._member(type_id, name.encode() + b"\0", bits)
            if found is None:
                return None
            type_id, bits, width = found
        size = self._size(type_id)
        if not width:  # before the kind flag, the width of a bitfield stood in its integer type
            start, kind, _ = self._strip(type_id)
            if kind == _INT:
                encoding = self._words[start + 3]
                if (encoding & 0xFF) != 8 * size:
                    width = encoding & 0xFF
                    bits += encoding >> 16 & 0xFF
        offset, bit_offset = divmod(bits, 8)
        if not width and not bit_offset:
            return FieldOffset(offset=offset, size=size)
        width = width or 8 * size
        return FieldOffset(
            offset=offset,
            size=(bit_offset + width + 7) // 8,
            bit_offset=bit_offset,
            bit_size=width,
        )


def read_offsets(
    path: str | Path = VMLINUX, wanted: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, FieldOffset]]:
    """Find fields of kernel structs.

    Args:
        path: a BTF file.
        wanted: struct name -> field paths. A path is member names joined by dots
            (``"__sk_common.skc_daddr"``); anonymous members are entered without being named.
    Returns:
        Struct name -> field path -> place. Every wanted struct is a key; a field that the kernel
        does not have is left out.
    Raises:
        BtfError: the file cannot be read or is damaged.
    Source: /sys/kernel/btf/vmlinux, written by the kernel's build.
    """
    return Btf.load(path).offsets(wanted or {})


def has_struct(name: str, path: str | Path = VMLINUX) -> bool:
    """Whether the kernel has a struct of that name; for several questions, keep one `Btf`."""
    return Btf.load(path).has_struct(name)
