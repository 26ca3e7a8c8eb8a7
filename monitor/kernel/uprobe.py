"""Attach a BPF program to a function in a file: a uprobe, or on its return a uretprobe.

Through the perf PMU, so neither tracefs nor a name that could clash is needed, and the probe is
gone with its descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from monitor.errors import SourceError
from monitor.kernel.perf import IOC_ENABLE, IOC_SET_BPF, PerfAttr, perf_event_open

__all__ = ["UprobeError", "Warmer", "attach", "check_available", "place_of", "release"]

_WARM_NS: Final = 20_000_000  # how long a placed probe makes others quick
_QUIET_NS: Final = 3_000_000_000
_MAX_WARMING: Final = 64

_PMU: Final = Path("/sys/bus/event_source/devices/uprobe")


class UprobeError(SourceError):
    """A function cannot be probed."""


def attach(prog_fd: int | None, path: str, offset: int, *, retprobe: bool, pid: int = -1) -> int:
    """Run a BPF program whenever a function is entered, or returns.

    Args:
        prog_fd: a loaded program of type kprobe; None only counts: read 8 bytes of the descriptor.
        path: the file. The kernel follows it, so a file that was checked is given as
            ``/proc/self/fd/N`` of the checked descriptor.
        offset: of the function's first instruction, in bytes from the start of the file.
        pid: probe this process alone; -1 for all.
    Returns:
        A descriptor, closed on exec, that holds the probe, the file's inode and its mount: the
        probe ends when it is closed.
    Raises:
        UprobeError: the kernel has no uprobes, forbids them, or cannot place one there.
    Source: Documentation/ABI/testing/sysfs-bus-event_source-devices and perf_event_open(2).
    """
    pmu_type, retprobe_bit = _pmu()
    where = ctypes.create_string_buffer(os.fsencode(path))
    attr = PerfAttr(
        type=pmu_type,
        config=retprobe << retprobe_bit,
        config1=ctypes.addressof(where),
        config2=offset,
    )
    try:
        # On CPU 0 by name only: the program runs wherever the function does.
        fd = perf_event_open(attr, pid=pid, cpu=0 if pid == -1 else -1)
        try:
            if prog_fd is not None:
                fcntl.ioctl(fd, IOC_SET_BPF, prog_fd)
            fcntl.ioctl(fd, IOC_ENABLE, 0)
        except BaseException:
            os.close(fd)
            raise
    except OSError as exc:
        raise UprobeError(f"cannot probe {path}+{offset:#x}: {_reason(exc)}") from exc
    return fd


def release(fds: Sequence[int]) -> None:
    """Close probes without waiting for them.

    Taking a probe out waits for every CPU to leave it, 70 ms each where that was measured, so an
    event loop leaves it to a thread that does nothing else. The descriptors are no longer the
    caller's.
    """
    if fds:
        threading.Thread(target=_close_all, args=(tuple(fds),), daemon=True).start()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def check_available() -> None:
    """Raise UprobeError if this kernel has no uprobes at all."""
    _pmu()


def place_of(address: int) -> tuple[str, int]:
    """Return the file that is mapped at an address of this process, and the offset in it.

    Raises:
        UprobeError: no file is.
    """
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, offset, _, _, *path = line.split(maxsplit=5)
            start, end = (int(bound, 16) for bound in span.split("-"))
            if start <= address < end and path:
                return path[0].rstrip("\n"), address - start + int(offset, 16)
    raise UprobeError("no file holds the C library of this process")


class Warmer:
    """Makes the next probe quick to place.

    The first in a while takes the kernel about 10 ms, since forks must be held up on every CPU;
    for 20 ms after that another one takes 0.2 ms. So when a container seems to begin, whose
    libraries will have to be probed within milliseconds, a probe that nobody hits is placed
    meanwhile: in a file in memory that no process maps, without a program.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._fds: list[int] = []
        self._warmed_ns = 0
        self._thread: threading.Thread | None = None

    def warm(self, now_ns: int) -> None:
        """Begin to, without waiting."""
        if now_ns - self._warmed_ns < _WARM_NS or len(self._fds) >= _MAX_WARMING:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._warmed_ns = now_ns
        self._thread = threading.Thread(target=self._attach, name="warm", daemon=True)
        self._thread.start()

    def sweep(self, now_ns: int) -> None:
        """Take those probes out again when all is quiet: each delays others by 70 ms."""
        if self._fds and now_ns - self._warmed_ns > _QUIET_NS:
            fds, self._fds = self._fds, []
            release(fds)

    def close(self) -> None:
        """Take the probes out."""
        if self._thread is not None:
            self._thread.join()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _attach(self) -> None:
        with suppress(SourceError, OSError):
            if self._file is None:
                self._file = os.memfd_create("conmond-warm", os.MFD_CLOEXEC)
                os.write(self._file, b"\xc3" * 4096)
            self._fds.append(attach(None, f"/proc/self/fd/{self._file}", 0, retprobe=False))


# (type of the PMU, the bit of config that makes it a return probe)
@functools.cache
def _pmu() -> tuple[int, int]:
    try:
        pmu_type = int((_PMU / "type").read_text())
        bit = (_PMU / "format" / "retprobe").read_text().strip().removeprefix("config:")
        return pmu_type, int(bit)
    except FileNotFoundError as exc:
        raise UprobeError(
            "cannot probe libraries: this kernel was built without CONFIG_UPROBE_EVENTS"
        ) from exc
    except (OSError, ValueError) as exc:
        raise UprobeError(f"cannot probe libraries: {_PMU} is not as expected: {exc}") from exc


def _reason(exc: OSError) -> str:
    if exc.errno in (errno.EPERM, errno.EACCES):
        return "not permitted; it takes CAP_PERFMON and CAP_BPF, or root, and no lockdown"
    if exc.errno == errno.ENOTSUP:
        return "its first instruction is of a kind that the kernel cannot step over"
    return str(exc.strerror)
