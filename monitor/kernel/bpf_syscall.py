"""The bpf(2) system call, for what the daemon itself does with descriptors it was handed.

Loading is BCC's work, in a child; here are only attachment and the reading of maps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from monitor.errors import SourceError
from monitor.kernel.programs import UPROBES

__all__ = [
    "ElementRead",
    "MapBatch",
    "ProgramRun",
    "RefusedError",
    "bpf",
    "create_map",
    "delete_element",
    "enable_stats",
    "keys",
    "link_cgroup",
    "link_uprobes",
    "load_program",
    "lookup_element",
    "map_layout",
    "missed_runs",
    "open_raw_tracepoint",
    "program_cost",
]

_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)

# enum bpf_cmd, include/uapi/linux/bpf.h
_MAP_CREATE: Final = 0
_MAP_LOOKUP_ELEM: Final = 1
_MAP_UPDATE_ELEM: Final = 2
_MAP_DELETE_ELEM: Final = 3
_MAP_GET_NEXT_KEY: Final = 4
_PROG_LOAD: Final = 5
_PROG_TEST_RUN: Final = 10
_RAW_TRACEPOINT_OPEN: Final = 17
_OBJ_GET_INFO_BY_FD: Final = 15
_MAP_LOOKUP_BATCH: Final = 24
_LINK_CREATE: Final = 28
_ENABLE_STATS: Final = 32

_SHORT: Final = (_MAP_LOOKUP_ELEM, _MAP_DELETE_ELEM, _MAP_LOOKUP_BATCH)

_VERIFIER_LOG: Final = 1 << 16
_LOG_STATS: Final = 4  # without each instruction, which takes many times as long (5.2)
_STATS_BEGIN: Final = "verification time"
_ENOTSUPP: Final = 524  # the kernel's own: the program uses what this build does not have
_VERDICTS: Final = frozenset((errno.E2BIG, errno.EACCES, errno.EINVAL, _ENOTSUPP))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# Keeps the interpreter's lock, which takes up to 5 ms to get back, in calls of some microseconds.
_libc_held = ctypes.PyDLL(None, use_errno=True)
_libc_held.syscall.restype = ctypes.c_long


class RefusedError(SourceError):
    """The kernel does not take a program."""

    def __init__(self, words: str, *, verdict: bool) -> None:
        super().__init__(words)
        self.verdict = verdict
        """The verifier judged it, and would again; else something was short or not allowed."""


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """Call bpf(2).

    Args:
        command: enum bpf_cmd.
        attributes: the bytes of union bpf_attr for that command; results are written to it.
    Returns:
        What the call returned: a descriptor or 0.
    Raises:
        OSError: with the kernel's errno.
    """
    libc = _libc_held if command in _SHORT else _libc
    result: int = libc.syscall(
        ctypes.c_long(_SYS_BPF),
        ctypes.c_int(command),
        ctypes.byref(attributes),
        ctypes.c_uint(len(attributes)),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _attributes(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    packed = struct.pack(layout, *values)
    return ctypes.create_string_buffer(packed, len(packed))


def create_map(
    name: str, kind: int, *, key_size: int, value_size: int, max_entries: int, flags: int
) -> int:
    """Create a map and return its descriptor.

    Raises:
        SourceError: the kernel refuses.
    """
    shown = name.encode()[:15].ljust(16, b"\0")
    fields = struct.pack("=IIIIIII", kind, key_size, value_size, max_entries, flags, 0, 0)
    attributes = fields + shown
    try:
        return bpf(_MAP_CREATE, ctypes.create_string_buffer(attributes, len(attributes)))
    except OSError as exc:
        raise SourceError(f"cannot create the map {name}: {exc.strerror}") from exc


def map_layout(fd: int) -> tuple[int, int, int, int, int]:
    """Return type, key size, value size, most entries and flags of a map."""
    info = ctypes.create_string_buffer(40)
    bpf(_OBJ_GET_INFO_BY_FD, _attributes("=IIQ", fd, len(info), ctypes.addressof(info)))
    kind, _, key_size, value_size, max_entries, flags = struct.unpack_from("=IIIIII", info)
    return kind, key_size, value_size, max_entries, flags


def load_program(
    name: str,
    kind: int,
    code: bytes,
    *,
    license: str,
    attach_type: int,
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> int:
    """Have the kernel check and take in a program; return its descriptor.

    Args:
        kind: enum bpf_prog_type.
        attach_type: enum bpf_attach_type where the type has one, else -1.
        log: gets what the verifier counted.
    Raises:
        RefusedError: with the verifier's last word.
    """
    try:
        return _load_program(name, kind, code, license, attach_type, log)
    except OSError as exc:
        log = log or ctypes.create_string_buffer(_VERIFIER_LOG)
        try:
            return _load_program(name, kind, code, license, attach_type, log)
        except OSError:
            log_text = log.value.decode(errors="replace")
            said = log_text.partition(_STATS_BEGIN)[0].strip().splitlines()
            why = said[-1] if said else exc.strerror
            raise RefusedError(
                f"the kernel refuses the program {name}: {why}",
                verdict=bool(said) and exc.errno in _VERDICTS,
            ) from exc


def _load_program(
    name: str,
    kind: int,
    code: bytes,
    license: str,
    attach_type: int,
    log: ctypes.Array[ctypes.c_char] | None,
) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    terms = ctypes.create_string_buffer(license.encode())
    shown = name.encode()[:15].ljust(16, b"\0")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(terms),
        _LOG_STATS if log is not None else 0,
        len(log) if log is not None else 0,
        ctypes.addressof(log) if log is not None else 0,
        0,
        0,
        shown,
        0,
        max(attach_type, 0),
    )
    return bpf(_PROG_LOAD, ctypes.create_string_buffer(attributes, len(attributes)))


def open_raw_tracepoint(name: str, program: int) -> int:
    """Attach a program to a raw tracepoint; closing the descriptor detaches it.

    Raises:
        SourceError: this kernel has no such tracepoint, or refuses.
    """
    text = ctypes.create_string_buffer(name.encode())
    try:
        return bpf(_RAW_TRACEPOINT_OPEN, _attributes("=QII", ctypes.addressof(text), program, 0))
    except OSError as exc:
        raise SourceError(f"cannot attach to tracepoint {name}: {exc.strerror}") from exc


def link_cgroup(program: int, cgroup: int, attach_type: int) -> int:
    """Attach a program to a cgroup by a link; closing the descriptor detaches it.

    Raises:
        SourceError: the kernel has no cgroup links (before 5.7), or refuses.
    """
    try:
        return bpf(_LINK_CREATE, _attributes("=IIIIQQQQ", program, cgroup, attach_type, *[0] * 5))
    except OSError as exc:
        raise SourceError(f"cannot attach to the cgroup: {exc.strerror}") from exc


# The arguments of a call that is made again and again: a thousand are one answer.
def link_uprobes(program: int, path: str, offsets: Sequence[int]) -> int:
    """Run a program at many places of a file, in every process; closing the descriptor ends it.

    Taking it out waits for every CPU once, not once for each place, and holds up nobody else.

    Raises:
        OSError: as the kernel says; EINVAL before 6.6 (commit 89ae89f53d20).
    """
    where = ctypes.create_string_buffer(os.fsencode(path))
    places = (ctypes.c_uint64 * len(offsets))(*offsets)
    return bpf(
        _LINK_CREATE,
        _attributes(
            "=IIIIQQQQIIIxxxx",
            program,
            0,
            UPROBES,
            0,
            ctypes.addressof(where),
            ctypes.addressof(places),
            0,
            0,
            len(offsets),
            0,
            0,
        ),
    )


def _repeated(command: int, attributes: ctypes.Array[ctypes.c_char]) -> tuple[Any, ...]:
    return (
        ctypes.c_long(_SYS_BPF),
        ctypes.c_int(command),
        ctypes.byref(attributes),
        ctypes.c_uint(len(attributes)),
    )


class ProgramRun:
    """Runs a raw tracepoint program, here and now, as often as it is called (5.10).

    Args:
        context: what the program sees as its arguments, 64 bits each, at the time of each call.
    """

    def __init__(self, program: int, context: ctypes.Array[ctypes.c_char]) -> None:
        self._context = context
        self._attributes = _attributes(
            "=IIIIQQIIIIQQIII4x",
            *(program, 0, 0, 0, 0, 0, 0, 0),
            *(len(context), 0, ctypes.addressof(context), 0, 0, 0, 0),
        )
        self._arguments = _repeated(_PROG_TEST_RUN, self._attributes)

    @property
    def returned(self) -> int:
        """What the program returned when it was run last."""
        result: int = struct.unpack_from("=I", self._attributes, 4)[0]
        return result

    def __call__(self) -> None:
        """Run it once.

        Raises:
            OSError: with the kernel's errno.
        """
        if _libc_held.syscall(*self._arguments) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


class ElementRead:
    """Reads elements of one map, again and again, for one caller at a time.

    Args:
        map_fd: the map.
        key_size, value_size: bytes, as the map was created.
    """

    def __init__(self, map_fd: int, key_size: int, value_size: int) -> None:
        self._key = ctypes.create_string_buffer(key_size)
        self._value = ctypes.create_string_buffer(value_size)
        self._arguments = _repeated(
            _MAP_LOOKUP_ELEM,
            _attributes(
                "=IIQQQ",
                *(map_fd, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), 0),
            ),
        )

    def __call__(self, key: bytes) -> bytes | None:
        """Read one; None where there is none.

        Raises:
            OSError: with the kernel's errno.
        """
        self._key.raw = key
        if _libc_held.syscall(*self._arguments) < 0:
            code = ctypes.get_errno()
            if code == errno.ENOENT:
                return None
            raise OSError(code, os.strerror(code))
        return self._value.raw


def lookup_element(map_fd: int, key: bytes, value_size: int) -> bytes | None:
    """Read one element; None where there is none. For many of a map :class:`ElementRead` takes a
    third of the time."""
    return ElementRead(map_fd, len(key), value_size)(key)


def update_element(map_fd: int, key: bytes, value: bytes) -> None:
    """Write one element, new or old."""
    k = ctypes.create_string_buffer(key, len(key))
    v = ctypes.create_string_buffer(value, len(value))
    bpf(
        _MAP_UPDATE_ELEM,
        _attributes("=IIQQQ", map_fd, 0, ctypes.addressof(k), ctypes.addressof(v), 0),
    )


def keys(map_fd: int, key_size: int, most: int) -> list[bytes]:
    """The keys of a hash map, up to so many. What is deleted meanwhile may begin it anew."""
    found: list[bytes] = []
    key = ctypes.create_string_buffer(key_size)
    following = ctypes.create_string_buffer(key_size)
    before = 0  # no key: the first is asked for
    while len(found) < most:
        try:
            bpf(
                _MAP_GET_NEXT_KEY,
                _attributes("=IxxxxQQ", map_fd, before, ctypes.addressof(following)),
            )
        except OSError:
            break
        found.append(following.raw)
        key.raw = following.raw
        before = ctypes.addressof(key)
    return found


def delete_element(map_fd: int, key: bytes) -> bool:
    """Delete one element; False where there was none."""
    k = ctypes.create_string_buffer(key, len(key))
    try:
        bpf(_MAP_DELETE_ELEM, _attributes("=IIQQQ", map_fd, 0, ctypes.addressof(k), 0, 0))
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return False
        raise
    return True


class MapBatch:
    """Reads a whole hash map in batches, into buffers that are kept between readings.

    Args:
        map_fd: a hash map.
        key_size, value_size: bytes, as the map was created.
        batch: elements asked for at a time.
    """

    def __init__(self, map_fd: int, key_size: int, value_size: int, *, batch: int = 256) -> None:
        self._fd = map_fd
        self._batch = batch
        self._key_size = key_size
        self._value_size = value_size
        self._keys: Any = None
        self._values: Any = None

    def read(self) -> Iterator[memoryview]:
        """Yield the value of each element. An element that comes or goes meanwhile may be
        missing; none comes twice unless the table is resized meanwhile. A value's memory is used
        again for the next batch: decode it, do not keep it.

        Raises:
            SourceError: the map cannot be read.
        """
        size = self._value_size
        for view in self.read_batches():
            for at in range(0, len(view), size):
                yield view[at : at + size]

    def read_batches(self) -> Iterator[memoryview]:
        """As :meth:`read`, but yield as many values at a time as the kernel gave, side by side."""
        for count in self._batches():
            yield memoryview(self._values).cast("B")[: count * self._value_size]

    def count(self) -> int:
        """Return how many elements there are.

        Raises:
            SourceError: the map cannot be read.
        """
        return sum(self._batches())

    def _batches(self) -> Iterator[int]:
        if self._keys is None:
            self._allocate()
        position = ctypes.create_string_buffer(max(8, self._key_size))
        first = True
        done = False
        while not done:
            attributes = _attributes(
                "=QQQQIIQQ",
                0 if first else ctypes.addressof(position),
                ctypes.addressof(position),
                ctypes.addressof(self._keys),
                ctypes.addressof(self._values),
                self._batch,
                self._fd,
                0,
                0,
            )
            try:
                bpf(_MAP_LOOKUP_BATCH, attributes)
            except OSError as exc:
                if exc.errno == errno.ENOSPC:  # one bucket holds more than a batch
                    self._batch *= 2
                    self._allocate()
                    continue
                if exc.errno != errno.ENOENT:
                    raise SourceError(f"cannot read a map: {exc.strerror}") from exc
                done = True
            first = False
            (count,) = struct.unpack_from("=I", attributes, 32)
            yield count

    def _allocate(self) -> None:
        self._keys = ctypes.create_string_buffer(self._batch * self._key_size)
        self._values = ctypes.create_string_buffer(self._batch * self._value_size)


def enable_stats() -> int:
    """Have the kernel time every BPF program until the descriptor is closed (5.8)."""
    return bpf(_ENABLE_STATS, _attributes("=I", 0))


def program_cost(program: int) -> tuple[int, int]:
    """Return (nanoseconds, runs) of a program since stats were enabled.

    Source: struct bpf_prog_info, run_time_ns and run_cnt.
    """
    nanoseconds, runs = struct.unpack_from("=QQ", _program_info(program), 192)
    return nanoseconds, runs


def missed_runs(program: int) -> int:
    """Return how often the kernel skipped a program, because it was already running on that CPU;
    0 where the kernel does not tell (before 5.12).

    Source: struct bpf_prog_info, recursion_misses.
    """
    missed: int = struct.unpack_from("=Q", _program_info(program), 208)[0]
    return missed


def _program_info(program: int) -> ctypes.Array[ctypes.c_char]:
    info = ctypes.create_string_buffer(232)
    bpf(_OBJ_GET_INFO_BY_FD, _attributes("=IIQ", program, len(info), ctypes.addressof(info)))
    return info
