"""The instructions by which a function returns, found by reading its machine code.

A probe on a returning instruction sees the call's result without touching the stack of whoever
calls, which a return probe rewrites. It is worth something only where every way out of the function
is such an instruction. So the whole of its code is read, with what it jumps to: cold parts that the
compiler moved away and functions that it ends in (tail calls), as long as those lie in the same
file. A jump that could lead anywhere makes the answer "none", with the reason.

The entry is probed behind the first push, where there is one: a debugger's breakpoint stands on the
first instruction, and of two traps in one place the kernel would take both for its own.

Whatever is read is a claim of strangers, so it must be consistent: the code must decode without a
gap, from the begin of a function to its end, and jumps must meet instructions.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from monitor.errors import SourceError
from monitor.kernel.elf import ElfError, ElfFile
from monitor.kernel.unwind import Extent, Extents

__all__ = ["CodeError", "Decode", "Instruction", "Place", "Returns", "decoder", "find_returns"]

_MAX_CODE: Final = 256 << 10  # bytes of one function with all that it jumps to; usual is 1 to 12 KB
_MAX_PARTS: Final = 16
_MAX_RETURNS: Final = 64
_TABLE_REACH: Final = 12  # instructions from a jump table's bound or load to its jump
_PT_LOAD: Final = 1
_PF_X: Final = 1
_DT_STRTAB, _DT_SYMTAB, _DT_JMPREL, _DT_PLTRELSZ = 5, 6, 23, 2
_RELA: Final = struct.Struct("<QQq")
_SYM: Final = struct.Struct("<IBBHQQ")
_JUMP_SLOT: Final = 7
_MAX_SLOTS: Final = 65_536
_PLT_STEPS: Final = 3  # endbr64, an optional prefix, jmp *slot(%rip)


class CodeError(SourceError):
    """The code is not what its symbol says it is; nothing of it may be probed."""


class Instruction(NamedTuple):
    """One decoded instruction."""

    address: int
    size: int
    name: str
    operands: str


Decode = Callable[[bytes, int], Iterator[Instruction]]
"""Decodes code that begins at an address, until a byte that begins no instruction."""


class Place(NamedTuple):
    """Where an instruction stands, and what it is."""

    offset: int
    """In bytes from the start of the file."""
    code: bytes
    """Its first bytes."""


@dataclass(frozen=True, slots=True)
class Returns:
    """What is known of one function."""

    entry: Place
    """Where an entry is seen: what is handed over is still where it was."""
    places: tuple[Place, ...] = ()
    """Every instruction by which it returns; empty where ``reason`` says why not."""
    reason: str | None = None
    parts: tuple[tuple[int, int], ...] = ()
    """The code that was read: offset in the file and bytes, of each piece."""


def find_returns(
    file: ElfFile, fd: int, machine: str, offset: int, size: int, decode: Decode
) -> Returns:
    """Read one function.

    Args:
        file: inspected.
        fd: the same file.
        machine: as `elf.ElfInfo` names it.
        offset: of the function's first instruction in the file.
        size: bytes of its code as its symbol says; 0 where it does not.
        decode: for the file's machine: `decoder`.
    Raises:
        CodeError: it is no function.
        ElfError: the file is damaged.
    """
    return _Reader(file, fd, machine, decode).read(offset, size)


class _Unresolved(Exception):
    """There is a way out that is no returning instruction."""


class _Reader:
    def __init__(self, file: ElfFile, fd: int, machine: str, decode: Decode) -> None:
        self._file, self._fd, self._machine, self._decode = file, fd, machine, decode
        self._extents = Extents(file)
        self._bytes_read = 0
        self._slots: dict[int, int] | None = None

    def read(self, offset: int, size: int) -> Returns:
        start = self._address_of(offset)
        first = self._extent_at(start, size)
        parts: dict[Extent, list[Instruction]] = {}
        waiting = [first]
        places = []
        reason = None
        try:
            while waiting:
                part = waiting.pop()
                if part in parts:
                    continue
                if len(parts) >= _MAX_PARTS:
                    raise _Unresolved(f"it jumps to more than {_MAX_PARTS} other pieces of code")
                parts[part] = code = self._instructions(part)
                waiting += self._leads_to(part, code)
            self._check_jumps(parts)
            for part in sorted(parts):
                for each in parts[part]:
                    if _is_return(each):
                        places.append(self._place(each))
            if not places:
                raise _Unresolved("it does not return")
            if len(places) > _MAX_RETURNS:
                raise _Unresolved(f"it returns in {len(places)} places")
        except _Unresolved as exc:
            if first not in parts:  # not even its own code could be read
                raise CodeError(str(exc)) from exc
            places, reason = [], str(exc)
        read = tuple((self._offset(part.start), part.end - part.start) for part in sorted(parts))
        return Returns(self._place(self._entry(parts, first)), tuple(places), reason, read)

    # bpf/kernel_fields.h tells by the byte before whether a push went before.
    def _entry(self, parts: dict[Extent, list[Instruction]], first: Extent) -> Instruction:
        code = parts[first]
        if self._machine != "x86_64":
            return code[0]
        targets = {_target(each) for part in parts.values() for each in part if _is_jump(each)}
        start = 1 if code[0].name == "endbr64" else 0
        for number in (start + 1, start, 0):
            if number >= len(code) or (number and code[number].address in targets):
                continue
            pushed = number == start + 1
            if pushed and code[start].name != "push":
                continue
            looks_pushed = self._byte_before(code[number].address) & 0xF8 == 0x50
            if looks_pushed == pushed:
                return code[number]
        raise CodeError("what stands before it looks like its beginning")

    def _byte_before(self, address: int) -> int:
        try:
            return self._file.read_at(address - 1, 1)[0]
        except ElfError:
            return 0

    def _address_of(self, offset: int) -> int:
        for segment in self._file.segments:
            inside = segment.offset <= offset < segment.offset + segment.size
            if inside and segment.kind == _PT_LOAD and segment.flags & _PF_X:
                return offset - segment.offset + segment.vaddr
        raise CodeError("it lies outside the code")

    # Where a function begins, both claims must agree.
    def _extent_at(self, start: int, size: int) -> Extent:
        found = self._extents.find(start)
        if found is not None and found.start != start:
            raise CodeError("it begins in the middle of another function")
        if found is not None:
            return found
        if not size:
            raise CodeError("neither its symbol nor an unwind table says where it ends")
        if start % 16 and not self._follows_an_end(start):
            raise CodeError("it begins in the middle of code")
        return Extent(start, start + size)

    # Without an unwind table: what stands before must be a return, a jump, a trap or padding.
    def _follows_an_end(self, start: int) -> bool:
        try:
            before = self._file.read_at(start - 5, 5)
        except ElfError:
            return False
        if before[4] in (0xC3, 0xCC, 0x90, 0xF4, 0x00) or before[3:] == b"\x0f\x0b":
            return True
        return before[0] in (0xE9, 0xE8) or before[3] == 0xEB or before[3:4] == b"\xc2"

    def _instructions(self, part: Extent) -> list[Instruction]:
        size = part.end - part.start
        self._bytes_read += size
        if size > _MAX_CODE or self._bytes_read > _MAX_CODE:
            raise _Unresolved(f"its code is longer than {_MAX_CODE >> 10} KB")
        offset = self._offset(part.start)
        if self._offset(part.end - 1) != offset + size - 1:
            raise CodeError("its code lies in two places")
        code = list(self._decode(os.pread(self._fd, size, offset), part.start))
        end = code[-1].address + code[-1].size if code else part.start
        if end != part.end:
            raise CodeError(f"its code cannot be read beyond {end - part.start} bytes")
        return code

    # The other pieces of code that this one jumps to.
    def _leads_to(self, part: Extent, code: list[Instruction]) -> list[Extent]:
        found = []
        for number, each in enumerate(code):
            if not _is_jump(each):
                continue
            target = _target(each)
            if target is None:
                if not _is_table(code, number):
                    raise _Unresolved("it can leave by a jump that may lead anywhere")
            elif not part.start <= target < part.end:
                found.append(self._other(target))
        last = code[-1]
        if not _ends(last) and not last.name.startswith(
            ("call", "bl", "nop", "hlt", "ud2", "int3")
        ):
            raise _Unresolved("it runs on beyond its end")
        return found

    def _other(self, target: int) -> Extent:
        slot = self._slot_of(target)
        if slot is not None:
            own = self._own_function(slot)
            if own is None:
                raise _Unresolved("it can end in a function of another file")
            target = own
        found = self._extents.find(target)
        if found is None:
            raise _Unresolved("it jumps to code whose end is not known")
        return found

    # A stub of the procedure linkage table jumps to where a slot points: the slot's address.
    def _slot_of(self, stub: int) -> int | None:
        offset = self._file.offset_of(stub, flags=_PF_X)
        if offset is None:
            return None
        for step, each in enumerate(self._decode(os.pread(self._fd, 24, offset), stub)):
            if step >= _PLT_STEPS:
                break
            if each.name in ("jmp", "bnd jmp", "notrack jmp"):
                through = re.fullmatch(r"qword ptr \[rip ([+-]) (0x[0-9a-f]+|\d+)\]", each.operands)
                if through is None:
                    return None
                distance = int(through[2], 0) * (1 if through[1] == "+" else -1)
                return each.address + each.size + distance
            if each.name not in ("endbr64", "nop"):
                return None
        return None

    # The slot's symbol, where this file itself defines it.
    def _own_function(self, slot: int) -> int | None:
        if self._slots is None:
            self._slots = self._read_slots()
        index = self._slots.get(slot)
        table = self._file.dynamic_tags().get(_DT_SYMTAB)
        if index is None or table is None:
            return None
        _, _, _, section, value, _ = _SYM.unpack(
            self._file.read_at(table + index * _SYM.size, _SYM.size)
        )
        return value if section and value else None

    def _read_slots(self) -> dict[int, int]:
        tags = self._file.dynamic_tags()
        if _DT_JMPREL not in tags or not tags.get(_DT_PLTRELSZ):
            return {}
        size = min(tags[_DT_PLTRELSZ], _MAX_SLOTS * _RELA.size)
        entries = self._file.read_at(tags[_DT_JMPREL], size - size % _RELA.size)
        return {
            where: info >> 32
            for where, info, _ in _RELA.iter_unpack(entries)
            if info & 0xFFFFFFFF == _JUMP_SLOT
        }

    def _check_jumps(self, parts: dict[Extent, list[Instruction]]) -> None:
        begins = {each.address for code in parts.values() for each in code}
        for part, code in parts.items():
            for each in code:
                target = _target(each) if _is_jump(each) else None
                if target is None or target in begins:
                    continue
                if any(other.start <= target < other.end for other in parts):
                    raise CodeError("a jump leads into the middle of an instruction")
                if part.start <= target < part.end:
                    raise CodeError("a jump leads into the middle of an instruction")

    def _offset(self, address: int) -> int:
        offset = self._file.offset_of(address, flags=_PF_X)
        if offset is None:
            raise CodeError("it lies outside the code")
        return offset

    def _place(self, each: Instruction) -> Place:
        offset = self._offset(each.address)
        return Place(offset, os.pread(self._fd, each.size, offset))


_ARM_JUMPS: Final = ("b", "br", "braa", "brab", "cbz", "cbnz", "tbz", "tbnz")

# What x86-64 and AArch64 call things. A prefix (repz, bnd, notrack) stands before the name.


def _is_return(each: Instruction) -> bool:
    return each.name.rsplit(" ", 1)[-1] in ("ret", "retf", "retaa", "retab")


def _is_jump(each: Instruction) -> bool:
    name = each.name.rsplit(" ", 1)[-1]
    if name.startswith(("j", "loop")):
        return True
    return name in ("b", "br", "braa", "brab", "cbz", "cbnz", "tbz", "tbnz") or name.startswith(
        "b."
    )


def _ends(each: Instruction) -> bool:
    name = each.name.rsplit(" ", 1)[-1]
    return _is_return(each) or name in ("jmp", "b", "br", "ud2", "hlt", "int3", "udf", "brk")


# Of a jump to a fixed place.
def _target(each: Instruction) -> int | None:
    last = each.operands.rsplit(",", 1)[-1].strip().removeprefix("#")
    return int(last, 16) if re.fullmatch(r"0x[0-9a-f]+", last) else None


# A jump through a table of a switch: compilers bound the index, load the distance and add where
# the table stands. What ends a function restores the stack right before, with nothing of that.
def _is_table(code: list[Instruction], number: int) -> bool:
    jump = code[number]
    if jump.name.startswith("notrack"):
        return True  # said so that hardware need not expect a landing place: switches alone
    before = code[max(0, number - _TABLE_REACH) : number]
    if re.fullmatch(r"qword ptr \[(\w+ \+ )?\w+\*8( [+-] 0x[0-9a-f]+)?\]", jump.operands):
        return any(each.name in ("ja", "jae", "jbe", "jb") for each in before)
    register = jump.operands
    added = loaded = False
    for each in reversed(before):
        if _ends(each):
            break
        if each.name == "add" and each.operands.startswith(f"{register},"):
            added = True
        if each.name in ("movsxd", "ldrsw", "ldrh", "ldrb") and "[" in each.operands:
            loaded = True
    return added and loaded


def decoder(machine: str) -> Decode:
    """The disassembler for a machine, as `elf.ElfInfo.machine` names it.

    Raises:
        CodeError: there is none.
    """
    import capstone  # 10 MB: it is imported by a short-lived process alone

    kinds: dict[str, tuple[Any, Any]] = {
        "x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64),
        "aarch64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM),
    }
    if machine not in kinds:
        raise CodeError(f"no disassembler for {machine}")
    engine = capstone.Cs(*kinds[machine])

    def decode(code: bytes, address: int) -> Iterator[Instruction]:
        for at, size, name, operands in engine.disasm_lite(code, address):
            yield Instruction(at, size, name, operands)

    return decode
