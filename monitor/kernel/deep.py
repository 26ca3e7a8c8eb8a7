"""Probes on what one process's TLS libraries read and write, for as long as somebody asks.

Nothing of this is loaded before the first request, and all of it is gone with the last: every
attachment is a descriptor of this process.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from monitor.errors import MonitorError, SourceError
from monitor.kernel import bpf_syscall, elf, uprobe
from monitor.kernel.cache import CacheFolder
from monitor.kernel.disassembler import Disassembler
from monitor.kernel.kernel import Kernel
from monitor.kernel.mapped_file import Identity, open_mapped
from monitor.kernel.mappings import Key, scan_process
from monitor.kernel.programs import DEEP_FUNCTIONS, PROGRAMS
from monitor.kernel.returns import Returns

__all__ = ["DeepProbes", "DeepTarget"]

_PID: Final = struct.Struct("=I")
_CALLS: Final = struct.Struct("=Q")
_EGRESS: Final = "deep_egress"
_READ_OR_WRITE: Final = tuple(name for name, (_, ret) in DEEP_FUNCTIONS.items() if ret is not None)
_MAX_FILES: Final = 32  # probed files of one process; most have one
_MAX_KNOWN: Final = 4096  # mapped files looked into
_TRIED_FUNCTION: Final = "labs"
_TRIED: Final = 500  # calls that tell what a call costs


@dataclass(slots=True)
class DeepTarget:
    """One process that is probed."""

    pid: int
    libraries: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Path, as the process sees it and chosen by strangers -> functions probed."""
    _descriptors: list[int] = field(default_factory=list)
    _known: set[Key] = field(default_factory=set)
    _files: set[Identity] = field(default_factory=set)


class DeepProbes:
    """All processes whose plaintext is read. Its methods may be called from any thread.

    Args:
        kernel: loaded and attached.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._programs: dict[str, int] = {}
        self._link: int | None = None
        self._targets: dict[int, DeepTarget] = {}
        self._call_ns: float | None = None
        self._disassembler = Disassembler(CacheFolder())
        self._lock = threading.RLock()

    def open(self, pid: int) -> DeepTarget:
        """Probe a process's TLS libraries.

        Raises:
            MonitorError: it uses none that can be probed, or the kernel refuses; one sentence.
        """
        with self._lock:
            return self._open(DeepTarget(pid))

    def _open(self, target: DeepTarget) -> DeepTarget:
        pid = target.pid
        try:
            self._load()
            bpf_syscall.update_element(
                self._kernel.loaded.maps["deep_by_pid"], _PID.pack(pid), _CALLS.pack(0)
            )
            self._targets[pid] = target
            self.refresh(target)
            if not target.libraries:
                raise SourceError(
                    f"process {pid} uses neither OpenSSL nor GnuTLS, or hides their functions (Go, "
                    "Java and rustls bring TLS of their own): there is nothing to read it by"
                )
        except (MonitorError, OSError) as exc:
            self.close(target)
            if isinstance(exc, OSError):
                raise SourceError(f"cannot read process {pid}: {exc.strerror}") from exc
            raise
        return target

    def refresh(self, target: DeepTarget) -> None:
        """Probe what the process has mapped since."""
        with self._lock:
            self._refresh(target)

    def _refresh(self, target: DeepTarget) -> None:
        for mapping in scan_process(target.pid):
            if mapping.key in target._known or len(target._known) >= _MAX_KNOWN:
                continue
            target._known.add(mapping.key)
            if len(target._files) >= _MAX_FILES:
                return
            try:
                opened = open_mapped(mapping)
            except SourceError:
                continue
            try:
                if opened.identity not in target._files:
                    self._probe(target, opened.fd, opened.identity, os.fsdecode(mapping.path))
            finally:
                os.close(opened.fd)

    def calls(self, target: DeepTarget) -> int:
        """How often it has called what is probed."""
        raw = bpf_syscall.lookup_element(
            self._kernel.loaded.maps["deep_by_pid"], _PID.pack(target.pid), _CALLS.size
        )
        return int(_CALLS.unpack(raw)[0]) if raw else 0

    def close(self, target: DeepTarget) -> None:
        """Take its probes out; with the last process's go the programs."""
        with self._lock:
            self._targets.pop(target.pid, None)
            with suppress(OSError):
                bpf_syscall.delete_element(
                    self._kernel.loaded.maps["deep_by_pid"], _PID.pack(target.pid)
                )
            uprobe.release(target._descriptors)
            target._descriptors = []
            if not self._targets:
                self._unload()

    def call_ns(self) -> float:
        """What one probed call costs the process, measured on this machine by probing a function
        of this one; the bytes copied come on top.

        Raises:
            MonitorError: it cannot be measured.
        """
        with self._lock:
            if self._call_ns is None:
                self._load()
                try:
                    self._call_ns = self._measure()
                finally:
                    if not self._targets:
                        self._unload()
            return self._call_ns

    # -- parts --------------------------------------------------------------------------------

    def _load(self) -> None:
        if self._programs:
            return
        names = [program.name for program in PROGRAMS if program.on_request]
        self._programs = self._kernel.loaded.load_waiting(names)
        if self._kernel.cgroup is None:
            return  # turns are read all the same, without their sockets
        folder = os.open(self._kernel.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            types = {program.name: program.attach_type for program in PROGRAMS}
            self._link = bpf_syscall.link_cgroup(self._programs[_EGRESS], folder, types[_EGRESS])
        finally:
            os.close(folder)

    def _unload(self) -> None:
        if self._link is not None:
            os.close(self._link)
            self._link = None
        for descriptor in self._programs.values():
            os.close(descriptor)
        self._programs = {}
        self._disassembler.close()

    def _probe(self, target: DeepTarget, fd: int, identity: Identity, path: str) -> None:
        try:
            info = elf.inspect(fd, DEEP_FUNCTIONS)
        except elf.ElfError:
            return
        if info.is_go or not any(name in info.symbols for name in _READ_OR_WRITE):
            return
        target._files.add(identity)
        attached = []
        for name, found in self._returns(fd, info, info.symbols).items():
            try:
                target._descriptors += self._attach(name, fd, found, target.pid)
            except SourceError:
                continue  # this one cannot be stepped over; the others tell the rest
            attached.append(name)
        if attached:
            target.libraries[path] = tuple(attached)

    # Of those that can be probed: what is read or written is known at a call's return alone.
    def _returns(
        self, fd: int, info: elf.ElfInfo, symbols: Mapping[str, int]
    ) -> dict[str, Returns]:
        functions = {name: (offset, info.sizes.get(name, 0)) for name, offset in symbols.items()}
        found = self._disassembler.find(fd, info.machine, info.build_id, functions)
        return {
            name: said
            for name, said in found.items()
            if isinstance(said, Returns) and (said.places or DEEP_FUNCTIONS[name][1] is None)
        }

    # The returns first, as in monitor/kernel/targets.py. A probe of a task covers its whole
    # address space: every thread of the process and no other process.
    def _attach(self, name: str, fd: int, found: Returns, pid: int) -> list[int]:
        descriptors: list[int] = []
        entry, ret = DEEP_FUNCTIONS[name]
        places = [(ret, place) for place in found.places if ret is not None]
        try:
            for program, place in (*places, (entry, found.entry)):
                descriptors.append(
                    uprobe.attach(
                        self._programs[program], f"/proc/self/fd/{fd}", place.offset, pid=pid
                    )
                )
            for _, place in places:
                if os.pread(fd, len(place.code), place.offset) != place.code:
                    raise SourceError("it was written to while it was looked at")
        except BaseException:
            uprobe.release(descriptors)
            raise
        return descriptors

    # labs(0): no library calls it on the way, and 0 is what a call returns that moved nothing.
    def _measure(self) -> float:
        libc = ctypes.PyDLL(None)  # nobody else runs meanwhile
        function = libc.labs
        path, offset = uprobe.place_of(ctypes.cast(function, ctypes.c_void_p).value or 0)
        pid = os.getpid()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            info = elf.inspect(fd, (_TRIED_FUNCTION,))
            functions = {_TRIED_FUNCTION: (offset, info.sizes.get(_TRIED_FUNCTION, 0))}
            found = self._disassembler.find(fd, info.machine, info.build_id, functions)
            place = found[_TRIED_FUNCTION]
            if isinstance(place, str):
                raise SourceError(f"cannot measure what a call costs: {place}")
            return self._time(function, fd, place, pid)
        finally:
            os.close(fd)

    def _time(self, function: Callable[[int], int], fd: int, place: Returns, pid: int) -> float:
        with self._counted(pid):
            plain_ns = _time_of(function)
            descriptors = self._attach(_READ_OR_WRITE[0], fd, place, pid)
            try:
                probed_ns = _time_of(function)
            finally:
                uprobe.release(descriptors)
        return max(0.0, probed_ns - plain_ns)

    @contextmanager
    def _counted(self, pid: int) -> Iterator[None]:
        counts = self._kernel.loaded.maps["deep_by_pid"]
        bpf_syscall.update_element(counts, _PID.pack(pid), _CALLS.pack(0))
        try:
            yield
        finally:
            bpf_syscall.delete_element(counts, _PID.pack(pid))


# Nanoseconds of a call, the quickest of five series: the others were disturbed.
def _time_of(function: object) -> float:
    assert callable(function)
    best = float("inf")
    for _ in range(5):
        start_ns = time.perf_counter_ns()
        for _ in range(_TRIED // 5):
            function(0)
        best = min(best, (time.perf_counter_ns() - start_ns) / (_TRIED // 5))
    return best
