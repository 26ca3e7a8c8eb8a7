"""Where named functions stand in an ELF file that nobody vouches for.

The file is whatever some process mapped, so every number in it is a claim. It is read by pread in
bounded pieces, never mapped (a mapped file that shrinks kills its reader), and every loop has a
limit; whatever it holds, the answer is an ElfInfo or an ElfError.

Names are looked up where the dynamic linker would, by hash, which costs a few reads. Only a name
that is not exported is then sought in .symtab: not by walking its hundred thousand entries but by
searching bytes, first the name among the names, then the number of that name among the entries.
docs/design/010 says why this is not pyelftools.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from monitor.errors import SourceError

__all__ = ["ElfError", "ElfFile", "ElfInfo", "Segment", "inspect"]

_MACHINES: Final = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}

_MAX_SEGMENTS: Final = 128  # ld makes about 15
_MAX_SECTIONS: Final = 4096  # a linked file has about 40; object files are not mapped
_MAX_NAMES_BYTES: Final = 64 << 10  # of section names
_MAX_DYNAMIC_BYTES: Final = 64 << 10
_MAX_NOTE_BYTES: Final = 4096
_MAX_CHAIN: Final = 512  # symbols in one hash bucket; linkers aim at less than 4
_MAX_SYMTAB_BYTES: Final = 16 << 20  # 700,000 symbols; node has 110,000
_MAX_STRTAB_BYTES: Final = 32 << 20  # node: 7.5 MB
_MAX_SECONDS: Final = 0.5  # of CPU; node, with 110,000 symbols, takes 0.05
_MAX_HITS: Final = 256  # places where a name or its number may stand by chance
_CHUNK: Final = 256 << 10

_EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_SHDR: Final = struct.Struct("<IIQQQQIIQQ")
_SYM: Final = struct.Struct("<IBBHQQ")
_DYN: Final = struct.Struct("<QQ")
_NOTE: Final = struct.Struct("<III")

_PT_LOAD, _PT_DYNAMIC, _PT_NOTE = 1, 2, 4
_PF_X, _PF_W = 1, 2
_ET_EXEC, _ET_DYN = 2, 3
_DT_DEBUG, _DT_FLAGS_1, _DF_1_PIE = 21, 0x6FFFFFFB, 0x08000000
_SHT_SYMTAB: Final = 2
_STT_FUNC: Final = 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ = 4, 5, 6, 10
_DT_GNU_HASH, _DT_VERSYM = 0x6FFFFEF5, 0x6FFFFFF0
_VERSYM_HIDDEN: Final = 0x8000  # not the default version of the name
_NT_GNU_BUILD_ID: Final = 3
_NT_GO_BUILD_ID: Final = 4
_GO_SECTIONS: Final = (b".go.buildinfo\0", b".gopclntab\0", b".note.go.buildid\0")
_GO_BUILDINFO_MAGIC: Final = b"\xff Go buildinf:"


_Place = tuple[int, int]  # offset in the file, bytes of code


class ElfError(SourceError):
    """Not an ELF program or library, or a damaged one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ElfInfo:
    """What one ELF file is, and where the wanted functions stand in it."""

    machine: str
    """As uname says it ("x86_64"), or "machine N"."""
    bits: int
    """32 or 64."""
    is_go: bool
    """Made by the Go compiler."""
    is_program: bool = False
    """What a process is started from, and no library."""
    build_id: str | None
    """GNU build id in hex."""
    symbols: dict[str, int] = field(default_factory=dict)
    """Wanted function -> offset in the file, for those that the file defines."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Wanted function -> bytes of its code, as its symbol says; 0 where it does not."""
    unsupported: str | None = None
    """Why symbols were not looked for; None where they were."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    size: int
    """In the file."""


def inspect(fd: int, names: Collection[str]) -> ElfInfo:
    """Look for functions in an ELF program or shared library.

    Args:
        fd: a regular file, open for reading; its position is neither used nor moved.
        names: plain symbol names. Where a library has several versions of one, the default counts.
    Returns:
        Only 64-bit little-endian files are searched; others come back with ``unsupported`` set.
    Raises:
        ElfError: not ELF, damaged, or unreadable.
    Source: the System V ABI, and the GNU hash table as glibc's and musl's linkers read it.
    """
    try:
        return ElfFile(fd).inspect(names)
    except OSError as exc:
        raise ElfError(f"cannot read an ELF file: {exc.strerror}") from exc
    except (OverflowError, struct.error) as exc:
        raise ElfError("the ELF file points outside itself") from exc


class ElfFile:
    """One ELF file, read piece by piece. Every method may raise ElfError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begun = time.thread_time()
        self.segments: list[Segment] = []

    def inspect(self, names: Collection[str]) -> ElfInfo:
        """As the function of this name; it also fills in ``segments``."""
        ident = os.pread(self._fd, _EHDR.size, 0)
        if ident[:4] != b"\x7fELF":
            raise ElfError("not an ELF file")
        if len(ident) < _EHDR.size:
            raise ElfError("the ELF file ends within its header")
        bits = {1: 32, 2: 64}.get(ident[4])
        order = {1: "little", 2: "big"}.get(ident[5])
        if bits is None or order is None:
            raise ElfError("the ELF header is damaged")
        machine_no = int.from_bytes(ident[18:20], "little" if order == "little" else "big")
        machine = _MACHINES.get(machine_no, f"machine {machine_no}")
        if (bits, order) != (64, "little"):
            return ElfInfo(
                machine=machine,
                bits=bits,
                is_go=False,
                build_id=None,
                unsupported=f"{bits}-bit {order}-endian programs are not supported",
            )
        (_, kind, _, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx) = (
            _EHDR.unpack(ident)
        )
        if kind not in (_ET_EXEC, _ET_DYN):
            raise ElfError("the ELF file is neither a program nor a shared library")
        self._read_segments(phoff, phentsize, phnum)
        build_id, is_go = self._read_notes()
        sections = self._read_sections(shoff, shentsize, shnum)
        is_go = is_go or self._has_go_section(sections, shstrndx)
        is_go = is_go or (not sections and self._has_go_buildinfo())

        found = self._dynamic_symbols(names)
        missing = [name for name in names if name not in found]
        if missing:
            found |= self._static_symbols(sections, missing)
        return ElfInfo(
            machine=machine,
            bits=bits,
            is_go=is_go,
            is_program=kind == _ET_EXEC or self._says_program(),
            build_id=build_id,
            symbols={name: offset for name, (offset, _) in found.items()},
            sizes={name: size for name, (_, size) in found.items()},
        )

    # A file of holes costs its maker nothing and its reader whatever the limits on sizes allow.
    def _check_time(self) -> None:
        if time.thread_time() - self._begun > _MAX_SECONDS:
            raise ElfError(f"the ELF file takes more than {_MAX_SECONDS:g} s to search")

    # Exactly `size` bytes; short reads mean a damaged file.
    def _read(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > 1 << 62:
            raise ElfError("the ELF file points outside itself")
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise ElfError("the ELF file points outside itself")
        return data

    def _chunks(self, offset: int, size: int, overlap: int) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < size:
            yield at, self._read(offset + at, min(_CHUNK, size - at))
            at += _CHUNK - overlap

    # Segments, and addresses within them

    def _read_segments(self, offset: int, entry_size: int, count: int) -> None:
        if not count:
            return
        if entry_size != _PHDR.size or count > _MAX_SEGMENTS:
            raise ElfError("the ELF program headers are damaged")
        for entry in _PHDR.iter_unpack(self._read(offset, count * _PHDR.size)):
            kind, flags, at, vaddr, _, size, _, _ = entry
            self.segments.append(Segment(kind, flags, at, vaddr, size))

    def offset_of(self, vaddr: int, *, flags: int = 0) -> int | None:
        """Where an address stands in the file; None where no loaded segment has it."""
        for seg in self.segments:
            inside = seg.vaddr <= vaddr < seg.vaddr + seg.size
            if seg.kind == _PT_LOAD and inside and seg.flags & flags == flags:
                return vaddr - seg.vaddr + seg.offset
        return None

    def read_at(self, vaddr: int, size: int) -> bytes:
        """Exactly so many bytes from an address on."""
        offset = self.offset_of(vaddr)
        if offset is None:
            raise ElfError("an ELF table lies outside every segment")
        return self._read(offset, size)

    # (build id, has a Go note)
    def _read_notes(self) -> tuple[str | None, bool]:
        build_id, is_go = None, False
        for seg in self.segments:
            if seg.kind != _PT_NOTE:
                continue
            data = self._read(seg.offset, min(seg.size, _MAX_NOTE_BYTES))
            at = 0
            while at + _NOTE.size <= len(data):
                name_size, desc_size, kind = _NOTE.unpack_from(data, at)
                name_at = at + _NOTE.size
                desc_at = name_at + (name_size + 3 & ~3)
                at = desc_at + (desc_size + 3 & ~3)
                if at > len(data):
                    break
                name = data[name_at : name_at + name_size]
                if name == b"GNU\0" and kind == _NT_GNU_BUILD_ID and desc_size <= 64:
                    build_id = data[desc_at : desc_at + desc_size].hex()
                is_go = is_go or (name == b"Go\0\0" and kind == _NT_GO_BUILD_ID)
        return build_id, is_go

    # Sections: a loadable file may have none, or lie about them

    def _read_sections(self, offset: int, entry_size: int, count: int) -> list[tuple[int, ...]]:
        if not offset or not count or entry_size != _SHDR.size or count > _MAX_SECTIONS:
            return []
        data = os.pread(self._fd, count * _SHDR.size, offset) if offset < 1 << 62 else b""
        return list(_SHDR.iter_unpack(data)) if len(data) == count * _SHDR.size else []

    def _has_go_section(self, sections: list[tuple[int, ...]], names_index: int) -> bool:
        if names_index >= len(sections):
            return False
        _, _, _, _, offset, size, *_ = sections[names_index]
        if offset > 1 << 62:
            return False
        names = os.pread(self._fd, min(size, _MAX_NAMES_BYTES), offset)
        return any(name in names for name in _GO_SECTIONS)

    # Without section headers: Go keeps its build info at the start of its data.
    def _has_go_buildinfo(self) -> bool:
        for seg in self.segments:
            if seg.kind == _PT_LOAD and seg.flags & _PF_W:
                return _GO_BUILDINFO_MAGIC in self._read(seg.offset, min(seg.size, 64 << 10))
        return False

    # Linkers flag position-independent programs, and leave room for debuggers in them alone.
    def _says_program(self) -> bool:
        tags = self.dynamic_tags()
        return _DT_DEBUG in tags or bool(tags.get(_DT_FLAGS_1, 0) & _DF_1_PIE)

    # Exported symbols, by hash

    def dynamic_tags(self) -> dict[int, int]:
        """Tag -> value, of the dynamic section; empty where there is none."""
        tags: dict[int, int] = {}
        for seg in self.segments:
            if seg.kind == _PT_DYNAMIC:
                size = min(seg.size, _MAX_DYNAMIC_BYTES) & ~(_DYN.size - 1)
                for tag, value in _DYN.iter_unpack(self._read(seg.offset, size)):
                    if not tag:
                        break
                    tags.setdefault(tag, value)
                break
        return tags

    def _dynamic_symbols(self, names: Collection[str]) -> dict[str, _Place]:
        tags = self.dynamic_tags()
        if _DT_SYMTAB not in tags or _DT_STRTAB not in tags:
            return {}
        candidates: Callable[[bytes], Iterator[int]]
        if _DT_GNU_HASH in tags:
            candidates = _GnuHash(self.read_at, tags[_DT_GNU_HASH]).candidates
        elif _DT_HASH in tags:
            candidates = _SysvHash(self.read_at, tags[_DT_HASH]).candidates
        else:
            return {}
        found = {}
        for name in names:
            encoded = name.encode()
            for index in candidates(encoded):
                entry = self.read_at(tags[_DT_SYMTAB] + index * _SYM.size, _SYM.size)
                place = self._function(entry)
                if place is None or not self._is_named(entry, encoded, tags):
                    continue
                found[name] = place
                if _DT_VERSYM not in tags:
                    break
                version = self.read_at(tags[_DT_VERSYM] + index * 2, 2)
                if not int.from_bytes(version, "little") & _VERSYM_HIDDEN:
                    break
        return found

    def _is_named(self, entry: bytes, name: bytes, tags: dict[int, int]) -> bool:
        (name_off,) = struct.unpack_from("<I", entry)
        offset = self.offset_of(tags[_DT_STRTAB] + name_off)
        return offset is not None and os.pread(self._fd, len(name) + 1, offset) == name + b"\0"

    # A symbol that is a function defined here: its offset in the file, and its size.
    def _function(self, entry: bytes) -> _Place | None:
        _, info, _, section, value, size = _SYM.unpack(entry)
        if info & 0xF != _STT_FUNC or not section or not value:
            return None
        offset = self.offset_of(value, flags=_PF_X)
        return None if offset is None else (offset, size)

    # Symbols that only .symtab knows, by searching bytes

    def _static_symbols(
        self, sections: list[tuple[int, ...]], names: Collection[str]
    ) -> dict[str, _Place]:
        for section in sections:
            _, kind, _, _, offset, size, link, _, _, entry_size = section
            if kind != _SHT_SYMTAB or entry_size != _SYM.size or link >= len(sections):
                continue
            strings_at, strings_size = sections[link][4:6]
            if size > _MAX_SYMTAB_BYTES or strings_size > _MAX_STRTAB_BYTES:
                continue
            wanted = self._find_names(strings_at, strings_size, names)
            return self._find_entries(offset, size - size % _SYM.size, wanted) if wanted else {}
        return {}

    # Name offset, as an entry would hold it -> name. Linkers let a name share the end of a
    # longer one, so what stands before it does not matter.
    def _find_names(self, offset: int, size: int, names: Collection[str]) -> dict[bytes, str]:
        needles = {name: name.encode() + b"\0" for name in names}
        wanted: dict[bytes, str] = {}
        overlap = max(map(len, needles.values()))
        for base, chunk in self._chunks(offset, size, overlap):
            for name, needle in needles.items():
                self._check_time()
                at = chunk.find(needle)
                while at >= 0:
                    wanted[struct.pack("<I", base + at)] = name
                    if len(wanted) > _MAX_HITS:
                        raise ElfError("the ELF file repeats one symbol name too often")
                    at = chunk.find(needle, at + 1)
        return wanted

    def _find_entries(self, offset: int, size: int, wanted: dict[bytes, str]) -> dict[str, _Place]:
        found: dict[str, _Place] = {}
        hits = 0
        step = _CHUNK - _CHUNK % _SYM.size  # so that no entry is cut
        for base in range(0, size, step):
            chunk = self._read(offset + base, min(step, size - base))
            for number, name in wanted.items():
                self._check_time()
                at = chunk.find(number)
                while at >= 0:
                    hits += 1
                    if hits > _MAX_HITS * _MAX_HITS:
                        raise ElfError("the ELF symbol table is damaged")
                    if at % _SYM.size == 0:
                        place = self._function(chunk[at : at + _SYM.size])
                        if place is not None:
                            found.setdefault(name, place)
                    at = chunk.find(number, at + 1)
        return found


class _GnuHash:
    """DT_GNU_HASH: a Bloom filter, then buckets of symbols sorted by hash."""

    def __init__(self, read_at: Callable[[int, int], bytes], vaddr: int) -> None:
        self._read_at = read_at
        header = struct.unpack("<IIII", read_at(vaddr, 16))
        self._buckets, self._first, self._bloom_words, self._bloom_shift = header
        if not self._buckets or not self._bloom_words:
            raise ElfError("the ELF hash table is damaged")
        self._bloom_at = vaddr + 16
        self._buckets_at = self._bloom_at + 8 * self._bloom_words
        self._chains_at = self._buckets_at + 4 * self._buckets

    def candidates(self, name: bytes) -> Iterator[int]:
        value = 5381
        for byte in name:
            value = value * 33 + byte & 0xFFFFFFFF
        word_at = self._bloom_at + 8 * (value // 64 % self._bloom_words)
        word = int.from_bytes(self._read_at(word_at, 8), "little")
        if not word >> value % 64 & word >> (value >> self._bloom_shift) % 64 & 1:
            return
        bucket = self._read_at(self._buckets_at + 4 * (value % self._buckets), 4)
        index = int.from_bytes(bucket, "little")
        if index < self._first:
            return
        for step in range(index, index + _MAX_CHAIN):
            raw = self._read_at(self._chains_at + 4 * (step - self._first), 4)
            other = int.from_bytes(raw, "little")
            if other | 1 == value | 1:
                yield step
            if other & 1:
                return


class _SysvHash:
    """DT_HASH: buckets of linked lists."""

    def __init__(self, read_at: Callable[[int, int], bytes], vaddr: int) -> None:
        self._read_at = read_at
        self._buckets, self._symbols = struct.unpack("<II", read_at(vaddr, 8))
        if not self._buckets:
            raise ElfError("the ELF hash table is damaged")
        self._buckets_at = vaddr + 8
        self._chains_at = self._buckets_at + 4 * self._buckets

    def candidates(self, name: bytes) -> Iterator[int]:
        value = 0
        for byte in name:
            value = (value << 4) + byte
            value = (value ^ value >> 24 & 0xF0) & 0x0FFFFFFF
        at = self._buckets_at + 4 * (value % self._buckets)
        for _ in range(_MAX_CHAIN):
            index = int.from_bytes(self._read_at(at, 4), "little")
            if not 0 < index < self._symbols:
                return
            yield index
            at = self._chains_at + 4 * index
