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
from pathlib import Path
from typing import Final

from monitor.errors import SourceError
from monitor.kernel.perf import IOC_ENABLE, IOC_SET_BPF, PerfAttr, perf_event_open

__all__ = ["UprobeError", "attach", "check_available", "release"]

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
