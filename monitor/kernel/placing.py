"""Places the probes of one file: on what it defines, where its code is what it should be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from monitor.errors import SourceError
from monitor.kernel.disassembler import Function
from monitor.kernel.elf import ElfInfo
from monitor.kernel.returns import Returns

__all__ = ["Attach", "FindReturns", "Placed", "Placing", "ProbePrograms"]

_NOP5: Final = bytes.fromhex("0f1f440000")


class Attach(Protocol):
    """As `uprobe.attach_all`."""

    def __call__(self, prog_fd: int, path: str, offsets: Sequence[int]) -> list[int]: ...


class FindReturns(Protocol):
    """As `disassembler.Disassembler.find`."""

    def __call__(
        self, fd: int, machine: str, build_id: str | None, functions: Mapping[str, Function]
    ) -> dict[str, Returns | str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePrograms:
    """Descriptors of the programs for one function; None leaves that side unprobed."""

    entry: int | None
    ret: int | None
    in_pairs: bool = True
    """An entry says nothing without its return: where returns cannot be probed, neither is."""


@dataclass(slots=True)
class Placed:
    """What came of one file."""

    fds: list[int] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    """Functions with every probe in place."""
    error: str | None = None
    """Why the last of the others has none."""
    unsound: int = 0
    """Functions that are not what their symbols say."""


class Placing:
    """Places probes.

    Args:
        attach: as `uprobe.attach_all`.
        programs: function -> its programs.
        find_returns: as `disassembler.Disassembler.find`.
        release: as `uprobe.release`.
    """

    def __init__(
        self,
        attach: Attach,
        programs: Mapping[str, ProbePrograms],
        find_returns: FindReturns,
        release: Callable[[Sequence[int]], None],
    ) -> None:
        self._attach, self._programs = attach, programs
        self._find_returns, self._release = find_returns, release

    def place(self, fd: int, info: ElfInfo) -> Placed:
        """Probe what a file defines."""
        placed = Placed()
        functions = {name: (at, info.sizes.get(name, 0)) for name, at in info.symbols.items()}
        found = self._find_returns(fd, info.machine, info.build_id, functions)
        for name in functions:
            said = found.get(name, "its code was not read")
            if isinstance(said, str):
                placed.unsound += 1
                placed.error = f"{name}: {said}"
            else:
                self._place(placed, fd, name, said)
        return placed

    # The returns first: a call that begins between the two is then a return without an entry,
    # which is ignored, and not an entry that waits for its return for ever.
    def _place(self, placed: Placed, fd: int, name: str, found: Returns) -> None:
        programs = self._programs[name]
        if programs.in_pairs and not found.places:
            placed.error = f"{name}: {found.reason}"
            return
        if found.entry.code == _NOP5:
            # Linux makes a system call of a probe there, which a sandbox need not let pass.
            placed.error = f"{name}: it begins with an instruction that is left to tracers"
            return
        path = f"/proc/self/fd/{fd}"
        fds: list[int] = []
        try:
            for prog_fd, places in ((programs.ret, found.places), (programs.entry, (found.entry,))):
                if prog_fd is not None and places:
                    fds += self._attach(prog_fd, path, [place.offset for place in places])
            for place in (*found.places, found.entry):
                if os.pread(fd, len(place.code), place.offset) != place.code:
                    raise SourceError("it was written to while it was looked at")
        except (SourceError, OSError) as exc:
            placed.error = f"{name}: {exc}"
            self._release(fds)
        else:
            placed.fds += fds
            if fds:
                placed.attached.append(name)
