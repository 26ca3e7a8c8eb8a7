"""A tiny BPF program by the bare system call: it counts its runs in a map."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_BPF = 321 if platform.machine() == "x86_64" else 280
_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD = 0, 1, 5
_ARRAY, _KPROBE = 2, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: int, attr: bytes) -> int:
    buffer = ctypes.create_string_buffer(attr, max(len(attr), 128))
    got = _libc.syscall(ctypes.c_long(_BPF), command, buffer, ctypes.c_ulong(len(buffer)))
    if got < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"bpf command {command}: {os.strerror(errno)}")
    return got


def _insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, off, imm)


class Counter:
    """``prog_fd`` adds one to ``value`` each time it runs."""

    def __init__(self) -> None:
        self.map_fd = _bpf(_MAP_CREATE, struct.pack("=IIII", _ARRAY, 4, 8, 1))
        code = b"".join([
            _insn(0x62, dst=10, off=-4, imm=0),  # key 0 on the stack
            _insn(0xBF, dst=2, src=10),
            _insn(0x07, dst=2, imm=-4),
            _insn(0x18, dst=1, src=1, imm=self.map_fd), _insn(0),
            _insn(0x85, imm=1),  # bpf_map_lookup_elem
            _insn(0x15, dst=0, off=2),
            _insn(0xB7, dst=1, imm=1),
            _insn(0xDB, dst=0, src=1),  # atomic add
            _insn(0xB7, dst=0, imm=0),
            _insn(0x95),
        ])  # fmt: skip
        insns = ctypes.create_string_buffer(code, len(code))
        licence = ctypes.create_string_buffer(b"GPL")
        attr = struct.pack(
            "=IIQQ", _KPROBE, len(code) // 8, ctypes.addressof(insns), ctypes.addressof(licence)
        )
        self.prog_fd = _bpf(_PROG_LOAD, attr)

    @property
    def value(self) -> int:
        key, value = ctypes.c_uint32(0), ctypes.c_uint64(0)
        attr = struct.pack("=IxxxxQQ", self.map_fd, ctypes.addressof(key), ctypes.addressof(value))
        _bpf(_MAP_LOOKUP, attr)
        return value.value

    def close(self) -> None:
        os.close(self.prog_fd)
        os.close(self.map_fd)
