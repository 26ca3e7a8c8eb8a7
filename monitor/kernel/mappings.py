"""Who maps which file for execution: all there are now, and each new one as it happens.

The live part is one dummy perf event per CPU whose ring carries the side-band records that
profilers read: an mmap2 record for each executable mapping of any process, dlopen included, and
fork, exec and exit. Nothing is polled for and tracefs is not needed.

Each record wakes the reader, because a short-lived program may look up its name a few
milliseconds after it mapped its C library. In a storm of execs that would cost more than it
brings, so after a burst of wake-ups the reader asks to be left alone for a while: see
`MappingWatch.resume_ns`.
"""

from __future__ import annotations

import mmap
import os
import re
import select
import struct
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final

from monitor.errors import SourceError
from monitor.kernel.perf import PerfAttr, perf_event_open

__all__ = [
    "Event",
    "Exec",
    "Exit",
    "Fork",
    "Key",
    "Lost",
    "Mapping",
    "MappingWatch",
    "scan",
]

_TYPE_SOFTWARE, _COUNT_DUMMY = 1, 9
# Bits of perf_event_attr: mmap, comm, task, watermark, sample_id_all, mmap2, comm_exec,
# use_clockid and namespaces.
_FLAGS: Final = (
    1 << 8 | 1 << 9 | 1 << 13 | 1 << 14 | 1 << 18 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 28
)
_SAMPLE_TIME: Final = 1 << 2  # with sample_id_all: each record ends with the time
_RECORD_LOST, _RECORD_COMM, _RECORD_EXIT, _RECORD_FORK, _RECORD_MMAP2 = 2, 3, 4, 7, 10
_RECORD_NAMESPACES: Final = 16
_MOUNTS: Final = 5  # of the namespaces listed, the mount namespace
_MISC_COMM_EXEC: Final = 1 << 13
_PROT_EXEC: Final = 4

_HEADER: Final = struct.Struct("=IHH")  # type misc size
_MMAP2: Final = struct.Struct("=IIQQQIIQQII")  # pid tid addr len pgoff maj min ino gen prot flags
_TASK: Final = struct.Struct("=IIII")  # pid ppid tid ptid
_COMM: Final = struct.Struct("=II")  # pid tid
_NAMESPACES: Final = struct.Struct("=IIQ")  # pid tid count; then (dev, inode) each
_NAMESPACE: Final = struct.Struct("=QQ")
_LOST: Final = struct.Struct("=QQ")  # id lost
_TIME: Final = struct.Struct("=Q")
_MMAP2_PATH: Final = _HEADER.size + _MMAP2.size

_DATA_HEAD: Final = 1024  # in the first page of a ring; the tail follows
_HEAD_TAIL: Final = struct.Struct("=QQ")
_TAIL: Final = struct.Struct("=Q")

# An exec writes about 1 KB of records and curl 4 KB. Many CPUs share the load, so they get less.
_RING_BYTES: Final = 256 << 10
_RING_BYTES_MANY_CPUS: Final = 64 << 10
_MANY_CPUS: Final = 16

# More than so many wake-ups in so long are a storm; then the reader looks every _REST_NS only.
_BURST_WAKES: Final = 100
_BURST_NS: Final = 100_000_000
_REST_NS: Final = 4_000_000

_MAX_MOUNTS: Final = 65_536  # processes whose mount namespace is remembered

_ONLINE_CPUS: Final = Path("/sys/devices/system/cpu/online")

Key = tuple[int, int, int | None]
"""A file: device (kernel encoding, major << 20 | minor), inode, generation (None: not known)."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A process mapped a file for execution."""

    pid: int
    start: int
    end: int
    key: Key
    path: bytes
    """As the process sees it; chosen by strangers, to be shown and never to be followed."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A process was made; it has the mappings of its parent."""

    pid: int
    parent: int


@dataclass(frozen=True, slots=True)
class Mounts:
    """A process is in this mount namespace. `MappingWatch` yields only changes: what its parent or
    itself was in before was another one, so a container may begin."""

    pid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Exec:
    """A process replaced its program: its mappings are gone."""

    pid: int


@dataclass(frozen=True, slots=True)
class Exit:
    """The main thread of a process ended."""

    pid: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Records were lost because they were not read in time."""

    count: int


Event = Mapping | Fork | Mounts | Exec | Exit | Lost

_MAPS_LINE: Final = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ..x. [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([1-9]\d*) +(\S.*)$",
    re.MULTILINE,
)


def scan(proc: str = "/proc") -> Iterator[Mapping]:
    """Every file that each process has mapped for execution, once per process.

    Processes that end meanwhile, or that may not be looked at, are left out.

    Source: proc_pid_maps(5).
    """
    for pid in os.listdir(proc):
        if pid.isdecimal():
            yield from scan_process(int(pid), proc)


def scan_process(pid: int, proc: str = "/proc") -> Iterator[Mapping]:
    """Every file that one process has mapped for execution, once."""
    try:
        with open(f"{proc}/{pid}/maps", "rb") as file:
            maps = file.read()
    except OSError:
        return
    seen = set()
    for start, end, major, minor, inode, path in _MAPS_LINE.findall(maps):
        key = (int(major, 16) << 20 | int(minor, 16), int(inode), None)
        if key not in seen:
            seen.add(key)
            yield Mapping(pid, int(start, 16), int(end, 16), key, path)


def parse_records(data: bytes, skip: Container[Key] = ()) -> list[tuple[int, Event]]:
    """Decode side-band records, in order, each with its time (CLOCK_MONOTONIC).

    Args:
        data: whole records, as they stand in a ring.
        skip: files whose mappings are of no interest.
    Source: perf_event_open(2) and include/uapi/linux/perf_event.h.
    """
    events: list[tuple[int, Event]] = []
    event: Event | None
    at, end = 0, len(data)
    while at + _HEADER.size <= end:
        kind, misc, size = _HEADER.unpack_from(data, at)
        if size < _HEADER.size + _TIME.size or at + size > end:
            raise SourceError(f"a perf record claims {size} bytes of {end - at}")
        event = None
        body = at + _HEADER.size
        if kind == _RECORD_MMAP2:
            pid, _, addr, length, _, major, minor, inode, generation, prot, _ = _MMAP2.unpack_from(
                data, body
            )
            key = (major << 20 | minor, inode, generation)
            if inode and prot & _PROT_EXEC and key not in skip:
                path = data[at + _MMAP2_PATH : at + size].split(b"\0", 1)[0]
                event = Mapping(pid, addr, addr + length, key, path)
        elif kind == _RECORD_FORK:
            pid, parent, _, _ = _TASK.unpack_from(data, body)
            if pid != parent:  # else a thread
                event = Fork(pid, parent)
        elif kind == _RECORD_EXIT:
            pid, _, tid, _ = _TASK.unpack_from(data, body)
            if pid == tid:
                event = Exit(pid)
        elif kind == _RECORD_COMM:
            if misc & _MISC_COMM_EXEC:
                event = Exec(_COMM.unpack_from(data, body)[0])
        elif kind == _RECORD_NAMESPACES:
            if _NAMESPACES.unpack_from(data, body)[2] > _MOUNTS:
                place = body + _NAMESPACES.size + _MOUNTS * _NAMESPACE.size
                pid, _, _ = _NAMESPACES.unpack_from(data, body)
                event = Mounts(pid, _NAMESPACE.unpack_from(data, place)[1])
        elif kind == _RECORD_LOST:
            event = Lost(_LOST.unpack_from(data, body)[1])
        at += size
        if event is not None:
            events.append((_TIME.unpack_from(data, at - _TIME.size)[0], event))
    return events


# The ring of one CPU.
class _Ring:
    def __init__(self, cpu: int, size: int) -> None:
        attr = PerfAttr(
            type=_TYPE_SOFTWARE,
            config=_COUNT_DUMMY,
            sample_type=_SAMPLE_TIME,
            flags=_FLAGS,
            wakeup=1,
            clockid=time.CLOCK_MONOTONIC,
        )
        self.fd = perf_event_open(attr, pid=-1, cpu=cpu)
        try:
            self._map = mmap.mmap(self.fd, mmap.PAGESIZE + size)
        except BaseException:
            os.close(self.fd)
            raise
        self._size = size

    # Bytes that came since the last call. Copied, so that the kernel gets its room back at once.
    # The head is read before the data, and x86 keeps that order.
    def take(self) -> bytes:
        head, tail = _HEAD_TAIL.unpack_from(self._map, _DATA_HEAD)
        if head == tail:
            return b""
        base = mmap.PAGESIZE
        first, last = tail % self._size, head % self._size
        if first < last:
            data = self._map[base + first : base + last]
        else:
            data = self._map[base + first : base + self._size] + self._map[base : base + last]
        _TAIL.pack_into(self._map, _DATA_HEAD + 8, head)
        return data

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)


class MappingWatch:
    """Yields mappings, forks, execs and exits of all processes as they happen.

    The owner has an event loop: it waits for `fileno` to become readable, then calls `drain`. While
    `resume_ns` is not None it does not wait for `fileno` but calls `drain` at that time.

    Args:
        skip: files whose mappings are not to be yielded; the owner may change it at any time.
    Raises:
        SourceError: the kernel has no perf events, or does not permit them.
    """

    resume_ns: int | None
    """Until when (CLOCK_MONOTONIC) `fileno` is to be left alone; None: wait for it."""
    lost: int
    """Records lost so far."""

    def __init__(self, skip: Container[Key] = ()) -> None:
        self.resume_ns = None
        self.lost = 0
        self._skip = skip
        self._rings: dict[int, _Ring] = {}
        self._burst_start_ns = 0
        self._burst_wakes = 0
        self._mounts: dict[int, int] = {}  # process -> mount namespace, as far as told
        self._epoll = select.epoll()
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """One descriptor for all CPUs."""
        return self._epoll.fileno()

    def refresh(self) -> None:
        """Follow CPUs that came or went; to be called now and then."""
        online = _online_cpus()
        size = _RING_BYTES if len(online) <= _MANY_CPUS else _RING_BYTES_MANY_CPUS
        for cpu in self._rings.keys() - online:
            self._drop(cpu)
        for cpu in online - self._rings.keys():
            try:
                ring = _Ring(cpu, size)
            except OSError as exc:
                if self._rings:  # it went away between the two calls, or comes next time
                    continue
                raise SourceError(
                    f"cannot watch which libraries programs map: perf_event_open: {exc.strerror}"
                ) from exc
            self._rings[cpu] = ring
            self._epoll.register(ring.fd, select.EPOLLIN)

    def drain(self, now_ns: int) -> list[Event]:
        """Everything that happened since the last call, in order of time.

        Args:
            now_ns: CLOCK_MONOTONIC.
        """
        # A CPU that went offline hangs up for good; left in, it would keep the owner awake.
        for fd, state in self._epoll.poll(0):
            if state & (select.EPOLLHUP | select.EPOLLERR):
                for cpu in [cpu for cpu, ring in self._rings.items() if ring.fd == fd]:
                    self._drop(cpu)
        self._pace(now_ns)
        stamped: list[tuple[int, Event]] = []
        for ring in self._rings.values():
            if data := ring.take():
                stamped += parse_records(data, self._skip)
        # Each ring is in order, but a process moves between CPUs, and what it mapped must not
        # come before the exec that went before.
        stamped.sort(key=itemgetter(0))
        return [event for _, event in stamped if self._is_news(event)]

    def _is_news(self, event: Event) -> bool:
        mounts = self._mounts
        match event:
            case Mounts(pid, inode):
                before = mounts.get(pid)
                if len(mounts) >= _MAX_MOUNTS:
                    mounts.clear()
                mounts[pid] = inode
                return before is not None and before != inode
            case Fork(pid, parent):
                if parent in mounts:
                    mounts[pid] = mounts[parent]
            case Exit(pid):
                mounts.pop(pid, None)
            case Lost(count):
                self.lost += count
        return True

    def _pace(self, now_ns: int) -> None:
        if now_ns - self._burst_start_ns > _BURST_NS:
            self._burst_start_ns = now_ns
            self._burst_wakes = 0
        self._burst_wakes += 1
        self.resume_ns = now_ns + _REST_NS if self._burst_wakes > _BURST_WAKES else None

    def _drop(self, cpu: int) -> None:
        ring = self._rings.pop(cpu)
        self._epoll.unregister(ring.fd)
        ring.close()

    def close(self) -> None:
        """Stop watching."""
        for cpu in list(self._rings):
            self._drop(cpu)
        self._epoll.close()


def _online_cpus() -> set[int]:
    cpus: set[int] = set()
    for part in _ONLINE_CPUS.read_text().strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
