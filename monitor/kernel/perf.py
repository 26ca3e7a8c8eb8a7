"""The perf_event_open system call, which uprobes and the watch over mappings share."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass
from typing import Final

__all__ = ["IOC_ENABLE", "IOC_SET_BPF", "PerfAttr", "perf_event_open"]

IOC_ENABLE: Final = 0x2400
IOC_SET_BPF: Final = 0x40042408

# x86-64 has a table of its own; aarch64, riscv64 and later ones share the generic one.
_SYSCALL: Final = 298 if platform.machine() == "x86_64" else 241
_FLAG_FD_CLOEXEC: Final = 8

# type size config period sample_type read_format flags wakeup bp_type config1 config2
# branch_sample_type regs_user stack_user clockid regs_intr aux_watermark max_stack reserved
_ATTR: Final = struct.Struct("=IIQQQQQIIQQQQIiQIHH")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfAttr:
    """The fields of ``struct perf_event_attr`` that we set; ``flags`` are its bitfields."""

    type: int
    config: int = 0
    sample_type: int = 0
    flags: int = 0
    wakeup: int = 0
    config1: int = 0
    config2: int = 0
    clockid: int = 0

    def pack(self) -> bytes:
        return _ATTR.pack(
            self.type, _ATTR.size, self.config, 0, self.sample_type, 0, self.flags, self.wakeup,
            0, self.config1, self.config2, 0, 0, 0, self.clockid, 0, 0, 0, 0,
        )  # fmt: skip


def perf_event_open(attr: PerfAttr, *, pid: int, cpu: int) -> int:
    """Open a perf event.

    Returns:
        A descriptor, closed on exec.
    Raises:
        OSError: as the kernel says.
    Source: perf_event_open(2).
    """
    buffer = ctypes.create_string_buffer(attr.pack(), _ATTR.size)
    fd: int = _libc.syscall(
        ctypes.c_long(_SYSCALL), buffer, ctypes.c_int(pid), ctypes.c_int(cpu), ctypes.c_int(-1),
        ctypes.c_ulong(_FLAG_FD_CLOEXEC),
    )  # fmt: skip
    if fd < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return fd
