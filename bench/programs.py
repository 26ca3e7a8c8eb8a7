"""What each BPF program costs, by the kernel's own statistics (BPF_ENABLE_STATS)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from bench.processes import BenchError
from monitor.kernel.bpf_syscall import bpf, enable_stats, program_cost
from monitor.kernel.programs import PROGRAMS

__all__ = ["Cost", "Costs", "stats_enabled"]

# enum bpf_cmd, include/uapi/linux/bpf.h
_PROG_GET_FD_BY_ID: Final = 13
_OBJ_GET_INFO_BY_FD: Final = 15
_NAME_AT: Final = 64  # struct bpf_prog_info
_NAME_LEN: Final = 16
_SHORT_NAMES: Final = {program.name[: _NAME_LEN - 1]: program.name for program in PROGRAMS}


class Cost(NamedTuple):
    """Time in a program, and how often it ran."""

    ns: int
    runs: int


@contextmanager
def stats_enabled() -> Iterator[None]:
    """Have the kernel time every BPF program during the block.

    Raises:
        BenchError: the kernel cannot (before 5.8).
    """
    try:
        held = enable_stats()
    except OSError as exc:
        raise BenchError(f"the kernel keeps no BPF statistics: {exc.strerror}") from exc
    try:
        yield
    finally:
        os.close(held)


class Costs:
    """Reads what programs have cost so far.

    Args:
        ids: of the programs, as the kernel numbers them.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self._descriptors: dict[str, int] = {}
        for number in ids:
            descriptor = _open(number)
            name = _SHORT_NAMES.get(_name(descriptor))
            if name is None or name in self._descriptors:
                os.close(descriptor)
            else:
                self._descriptors[name] = descriptor

    def read(self) -> dict[str, Cost]:
        """Program name -> cost so far."""
        return {name: Cost(*program_cost(fd)) for name, fd in self._descriptors.items()}

    def close(self) -> None:
        """Let the programs go."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _open(number: int) -> int:
    packed = struct.pack("=III", number, 0, 0)
    return bpf(_PROG_GET_FD_BY_ID, ctypes.create_string_buffer(packed, len(packed)))


def _name(descriptor: int) -> str:
    info = ctypes.create_string_buffer(232)
    packed = struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info))
    bpf(_OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(packed, len(packed)))
    return info.raw[_NAME_AT : _NAME_AT + _NAME_LEN].split(b"\0", 1)[0].decode(errors="replace")
