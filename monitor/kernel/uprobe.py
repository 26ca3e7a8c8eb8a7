"""Attach a BPF program to an instruction in a file: a uprobe.

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
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from monitor.errors import SourceError
from monitor.kernel import bpf_syscall
from monitor.kernel.perf import IOC_ENABLE, IOC_SET_BPF, PerfAttr, perf_event_open

__all__ = [
    "UprobeError",
    "Warmer",
    "attach",
    "attach_all",
    "check_available",
    "place_of",
    "release",
    "settle",
]

_WARM_NS: Final = 20_000_000  # how long a placed probe makes others quick
_QUIET_NS: Final = 3_000_000_000
_MAX_WARMING: Final = 64
_MAX_CLOSING: Final = 32  # threads that wait for probes to be taken out

_PMU: Final = Path("/sys/bus/event_source/devices/uprobe")


class UprobeError(SourceError):
    """A function cannot be probed."""


def attach(prog_fd: int | None, path: str, offset: int, *, pid: int = -1) -> int:
    """Run a BPF program whenever an instruction is about to be executed.

    Args:
        prog_fd: a loaded program of type kprobe; None only counts: read 8 bytes of the descriptor.
        path: the file. The kernel follows it, so a file that was checked is given as
            ``/proc/self/fd/N`` of the checked descriptor.
        offset: of the instruction, in bytes from the start of the file.
        pid: probe this process alone; -1 for all.
    Returns:
        A descriptor, closed on exec, that holds the probe, the file's inode and its mount: the
        probe ends when it is closed.
    Raises:
        UprobeError: the kernel has no uprobes, forbids them, or cannot place one there.
    Source: Documentation/ABI/testing/sysfs-bus-event_source-devices and perf_event_open(2).
    """
    pmu_type = _pmu()
    where = ctypes.create_string_buffer(os.fsencode(path))
    attr = PerfAttr(
        type=pmu_type,
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


def attach_all(prog_fd: int, path: str, offsets: Sequence[int]) -> list[int]:
    """Run a BPF program whenever one of several instructions of a file is about to be executed.

    Args:
        prog_fd: a loaded program of type kprobe, for attachment to many places.
        path, offsets: as of `attach`.
    Returns:
        Descriptors that hold the probes: one for all where the kernel can (6.6), else one for each.
    Raises:
        UprobeError: as `attach`; then there is none.
    """
    try:
        return [bpf_syscall.link_uprobes(prog_fd, path, offsets)]
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise UprobeError(f"cannot probe {path}: {_reason(exc)}") from exc
    fds: list[int] = []
    try:
        for offset in offsets:
            fds.append(attach(prog_fd, path, offset))
    except BaseException:
        release(fds)
        raise
    return fds


def release(fds: Sequence[int]) -> None:
    """Close probes without waiting for them.

    The instruction is itself again at once, but then the kernel waits until every CPU has left
    the probe, 25 to 100 ms where that was measured; perf events (before Linux 6.6) one after the
    other. So an event loop leaves it to threads that do nothing else. The descriptors are no longer
    the caller's.
    """
    _closer.close(fds)


def settle() -> None:
    """Wait until everything that was released is closed."""
    _closer.settle()


# Closes descriptors side by side; its threads end when there is nothing left to do.
class _Closer:
    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._threads = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def settle(self) -> None:
        with self._lock:
            while self._threads:
                self._idle.wait()

    def close(self, fds: Sequence[int]) -> None:
        with self._lock:
            self._waiting.extend(fds)
            for _ in fds:
                if self._threads >= _MAX_CLOSING:
                    break
                try:
                    threading.Thread(target=self._work, name="closing", daemon=True).start()
                except RuntimeError:  # no thread is to be had: one that runs will do it, or nobody
                    break
                self._threads += 1
            alone = not self._threads
        if alone:
            self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads = max(0, self._threads - 1)
                    self._idle.notify_all()
                    return
                fd = self._waiting.popleft()
            os.close(fd)


_closer = _Closer()


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
            self._fds.append(attach(None, f"/proc/self/fd/{self._file}", 0))


@functools.cache
def _pmu() -> int:
    try:
        return int((_PMU / "type").read_text())
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
