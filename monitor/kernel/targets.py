"""Which files carry which probes, at every moment.

A file becomes a target when a process maps it and it defines a function that we probe, whatever
its name. Its probes stay for as long as a process uses it, and a little longer; they hold the
file's mount, so a container that is gone must not keep them. The system's own libraries are
probed from the start and stay, so that the first short-lived program is seen too.

Every process maps dozens of files, so most of the work is to have nothing to do: files known to be
uninteresting are in `Targets.skip`, which the watch over mappings consults before it makes an
event. A file is looked into once. Looking costs 0.1 ms, at worst (a huge symbol table) 100 ms,
and whoever can run programs can make us look: hence the budget.
"""

from __future__ import annotations

import glob
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from monitor.errors import SourceError
from monitor.kernel import elf, mapped_file, mappings, uprobe
from monitor.kernel.mapped_file import FileGone, FileRefused, Identity, OpenedFile

__all__ = ["ProbePrograms", "TargetStatus", "Targets"]

MAX_TARGETS: Final = 256  # files with probes; each takes up to 6 descriptors
_MAX_KNOWN: Final = 32_768  # uninteresting files remembered; beyond, all are looked into again
_MAX_PENDING: Final = 4096  # mappings that wait for the next second's budget
_MAX_REFUSED: Final = 32  # refusals and failures that status() tells of
_BUDGET_NS: Final = 200_000_000  # spent on looking into files ...
_BUDGET_PERIOD_NS: Final = 1_000_000_000  # ... in so long
_LINGER_NS: Final = 10_000_000_000  # a container that runs one program after another keeps it
_REFRESH_NS: Final = 60_000_000_000  # how soon a library that was upgraded is unpinned

# The dynamic linkers' standard directories, and what in them is probed before anyone uses it.
_STANDARD: Final = tuple(
    f"{folder}/{name}"
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/lib/*-linux-*")
    for name in (
        "libc.so.6",
        "ld-musl-*.so.1",
        "libssl.so.*",
        "libgnutls.so.*",
        "libssl3.so",
        "libwolfssl.so.*",
        "libmbedtls.so.*",
    )
)


# Looked for in the root directory of a program that is new to us, before its dynamic linker comes
# to them: the first probe takes the kernel 15 ms, a small program needs no longer to its lookup.
_LOOK_AHEAD: Final = (
    *(
        f"{folder}/{name}"
        for name in ("libc.so.6", "libssl.so.3", "libssl.so.1.1", "libgnutls.so.30")
        for folder in (f"/lib/{os.uname().machine}-linux-gnu", "/lib64", "/lib")
    ),
    f"/lib/ld-musl-{os.uname().machine}.so.1",
)
_MAX_ROOTS: Final = 1024  # root directories remembered as looked into


class Attach(Protocol):
    """As `uprobe.attach`."""

    def __call__(self, prog_fd: int, path: str, offset: int, *, retprobe: bool) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePrograms:
    """Descriptors of the programs for one function; None leaves that side unprobed."""

    entry: int | None
    ret: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetStatus:
    """One file: what is probed in it, or why nothing is."""

    path: str
    """As the first process that mapped it sees it; chosen by strangers."""
    dev: int
    inode: int
    build_id: str | None
    attached: tuple[str, ...]
    """Functions with every probe in place."""
    users: int | None
    """Processes that use it; None for the system's own libraries, whose users are not counted."""
    error: str | None


@dataclass(slots=True, eq=False)
class _Target:
    path: str
    identity: Identity
    dev: int
    inode: int
    build_id: str | None
    pinned: bool
    fds: list[int] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    error: str | None = None
    keys: set[mappings.Key] = field(default_factory=set)
    users: set[int] = field(default_factory=set)
    idle_since_ns: int | None = None


class Targets:
    """Attaches probes to the files that need them, driven by mapping events.

    Args:
        attach: as `uprobe.attach`.
        programs: function -> its programs.
        release: closes the descriptors of a target that is no longer used.
        opener: as `mapped_file.open_mapped`.
        opener_own: as `mapped_file.open_own`.
        opener_ahead: as `mapped_file.open_cached`.
        scan: as `mappings.scan`.
        standard: patterns of the system's own libraries.
        proc: where processes are listed.
        clock_ns: any clock; it only measures the budget.
    """

    skip: set[mappings.Key]
    """Files whose mappings need not be reported: hand it to `mappings.MappingWatch`."""
    counts: Counter[str]
    """Files ``looked`` into, and of these ``go``, ``unsupported`` and ``full`` (no room for more
    targets); files ``refused``; mappings ``deferred`` for want of budget, and ``dropped`` then."""

    def __init__(
        self,
        attach: Attach,
        programs: Mapping[str, ProbePrograms],
        *,
        release: Callable[[Sequence[int]], None] = uprobe.release,
        opener: Callable[[mappings.Mapping], OpenedFile] = mapped_file.open_mapped,
        opener_own: Callable[[str], OpenedFile] = mapped_file.open_own,
        opener_ahead: Callable[[mappings.Mapping, str], OpenedFile] = mapped_file.open_cached,
        scan: Callable[[], Iterable[mappings.Mapping]] = mappings.scan,
        standard: Sequence[str] = _STANDARD,
        proc: str = "/proc",
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.skip = set()
        self.counts = Counter()
        self._attach, self._release = attach, release
        self._programs = dict(programs)
        self._open, self._open_own, self._open_ahead = opener, opener_own, opener_ahead
        self._roots: dict[tuple[str, str], None] = {}
        self._scan, self._standard, self._proc = scan, standard, proc
        self._clock_ns = clock_ns
        self._targets: dict[Identity, _Target] = {}
        self._by_key: dict[mappings.Key, _Target] = {}
        self._uses: dict[int, set[_Target]] = {}  # users of targets that are not pinned
        self._refused: deque[TargetStatus] = deque(maxlen=_MAX_REFUSED)
        self._pending: deque[mappings.Mapping] = deque()
        self._period_start_ns = self._spent_ns = 0
        self._refreshed_ns: int | None = None
        self._scan_due = False
        self._has_been_full = False

    # What the owner calls

    def start(self) -> None:
        """Probe the system's own libraries, then whatever is in use now.

        The watch over mappings is to be open already, so that nothing falls between the two.
        """
        self._pin_standard()
        self._rescan(limited=False)

    def handle(self, events: Iterable[mappings.Event]) -> None:
        """Take in what `mappings.MappingWatch` has told."""
        for event in events:
            match event:
                case mappings.Mapping():
                    self._mapped(event)
                case mappings.Fork(pid, parent):
                    self._leave(pid)
                    for target in self._uses.get(parent, ()):
                        self._use(pid, target)
                case mappings.Exec(pid) | mappings.Exit(pid):
                    self._leave(pid)
                case mappings.Lost():
                    self._scan_due = True
        if self._pending:
            self._work_off()

    def sweep(self, now_ns: int) -> None:
        """Drop what nobody uses, catch up with what was missed; call it every second or so.

        Args:
            now_ns: CLOCK_MONOTONIC.
        """
        self._work_off()
        if self._refreshed_ns is None:
            self._refreshed_ns = now_ns
        elif now_ns - self._refreshed_ns >= _REFRESH_NS:
            self._refreshed_ns = now_ns
            self._pin_standard()
        for pid in [pid for pid in self._uses if not os.path.exists(f"{self._proc}/{pid}")]:
            self._leave(pid)
        idle = self._idle(now_ns)
        # Before probes are taken out, all processes are asked: events may have been lost, and a
        # process may outlive its main thread.
        if self._scan_due or idle:
            self._scan_due = False
            self._rescan(limited=True)
        for target in idle:
            if not target.users:
                self._drop(target)

    def status(self) -> list[TargetStatus]:
        """Every target, then the files that were refused last."""
        return [self._status(target) for target in self._targets.values()] + list(self._refused)

    def close(self) -> None:
        """Detach everything, and wait until that is done."""
        for target in self._targets.values():
            for fd in target.fds:
                os.close(fd)
        self._targets.clear()
        self._by_key.clear()
        self._uses.clear()
        self._pending.clear()

    # Mappings

    def _mapped(self, mapping: mappings.Mapping, *, limited: bool = True) -> None:
        if mapping.key in self.skip:
            return
        target = self._by_key.get(mapping.key)
        if target is not None:
            self._use(mapping.pid, target)
        elif limited and not self._has_budget():
            self.counts["deferred"] += 1
            if len(self._pending) < _MAX_PENDING:
                self._pending.append(mapping)
            else:
                self.counts["dropped"] += 1
                self._scan_due = True
        else:
            start_ns = self._clock_ns()
            self._look(mapping)
            self._spent_ns += self._clock_ns() - start_ns

    def _has_budget(self) -> bool:
        now_ns = self._clock_ns()
        if now_ns - self._period_start_ns >= _BUDGET_PERIOD_NS:
            self._period_start_ns, self._spent_ns = now_ns, 0
        return self._spent_ns < _BUDGET_NS

    def _work_off(self) -> None:
        while self._pending and self._has_budget():
            self._mapped(self._pending.popleft())

    def _rescan(self, *, limited: bool) -> None:
        for mapping in self._scan():
            self._mapped(mapping, limited=limited)

    # A program of another root directory (a container, a chroot) has a C library of its own.
    def _look_ahead(self, mapping: mappings.Mapping) -> None:
        try:
            base = f"{self._proc}/{mapping.pid}"
            root = (os.readlink(f"{base}/ns/mnt"), os.readlink(f"{base}/root"))
        except OSError:
            return
        if root in self._roots:
            return
        if len(self._roots) >= _MAX_ROOTS:
            self._roots.clear()
        self._roots[root] = None
        for path in _LOOK_AHEAD:
            try:
                opened = self._open_ahead(mapping, path)
            except SourceError:
                continue
            try:
                if opened.identity not in self._targets:
                    self._examine(opened, path, pinned=False)
            finally:
                os.close(opened.fd)

    # The first mapping of a file under this key: what is it?
    def _look(self, mapping: mappings.Mapping) -> None:
        self._look_ahead(mapping)
        path = os.fsdecode(mapping.path)
        try:
            opened = self._open(mapping)
        except FileGone:
            return  # not remembered: the next process that maps it may live longer
        except FileRefused as exc:
            self.counts["refused"] += 1
            self._refuse(path, mapping.key[0], mapping.key[1], None, str(exc))
            self._ignore(mapping.key)
            return
        try:
            target = self._targets.get(opened.identity) or self._examine(opened, path, pinned=False)
        finally:
            os.close(opened.fd)
        if target is None or target.pinned:
            self._ignore(mapping.key)
        if target is not None:
            target.keys.add(mapping.key)
            if not target.pinned:
                self._by_key[mapping.key] = target
                self._use(mapping.pid, target)

    def _ignore(self, key: mappings.Key) -> None:
        if len(self.skip) >= _MAX_KNOWN:
            self.skip.clear()
        self.skip.add(key)

    # Files

    # Look into a file and attach what it calls for; None where that is nothing.
    def _examine(self, opened: OpenedFile, path: str, *, pinned: bool) -> _Target | None:
        self.counts["looked"] += 1
        try:
            info = elf.inspect(opened.fd, self._programs)
        except elf.ElfError:
            return None
        if info.unsupported:
            self.counts["unsupported"] += 1
        if not info.symbols:
            return None
        if info.is_go:
            self.counts["go"] += 1
            reason = "a Go program, which return probes crash"
            self._refuse(path, opened.dev, opened.inode, info.build_id, reason)
            return None
        if len(self._targets) >= MAX_TARGETS:
            self.counts["full"] += 1
            self._has_been_full = True
            reason = f"{MAX_TARGETS} files are probed already"
            self._refuse(path, opened.dev, opened.inode, info.build_id, reason)
            return None
        target = _Target(
            path=path,
            identity=opened.identity,
            dev=opened.dev,
            inode=opened.inode,
            build_id=info.build_id,
            pinned=pinned,
        )
        for name, offset in info.symbols.items():
            self._probe(target, opened.fd, name, offset)
        if not target.fds:
            self._refuse(path, opened.dev, opened.inode, info.build_id, target.error)
            return None
        self._targets[target.identity] = target
        return target

    # The return first: a call that begins between the two is then a return without an entry,
    # which is ignored, and not an entry that waits for its return for ever.
    def _probe(self, target: _Target, fd: int, name: str, offset: int) -> None:
        programs = self._programs[name]
        fds: list[int] = []
        try:
            for prog_fd, retprobe in ((programs.ret, True), (programs.entry, False)):
                if prog_fd is not None:
                    path = f"/proc/self/fd/{fd}"
                    fds.append(self._attach(prog_fd, path, offset, retprobe=retprobe))
        except SourceError as exc:
            target.error = f"{name}: {exc}"
            self._release(fds)
        else:
            target.fds += fds
            if fds:
                target.attached.append(name)

    def _refuse(
        self, path: str, dev: int, inode: int, build_id: str | None, error: str | None
    ) -> None:
        self._refused.append(
            TargetStatus(
                path=path,
                dev=dev,
                inode=inode,
                build_id=build_id,
                attached=(),
                users=0,
                error=error,
            )
        )

    # Probe the system's own libraries; one that an upgrade replaced is then like any other file.
    def _pin_standard(self) -> None:
        found: set[Identity] = set()
        for path in self._standard_paths():
            try:
                opened = self._open_own(path)
            except SourceError:
                continue
            try:
                target = self._targets.get(opened.identity)
                if target is None:
                    target = self._examine(opened, path, pinned=True)
                if target is not None:
                    found.add(target.identity)
                    self._pin(target)
            finally:
                os.close(opened.fd)
        for target in self._targets.values():
            if target.pinned and target.identity not in found:
                target.pinned = False
                self.skip -= target.keys
                self._by_key |= dict.fromkeys(target.keys, target)
                self._scan_due = True  # who uses it was not counted

    def _pin(self, target: _Target) -> None:
        if not target.pinned:
            target.pinned = True
            for pid in list(target.users):
                self._stop_using(pid, target)
            for key in target.keys:
                self._by_key.pop(key, None)
                self._ignore(key)

    def _standard_paths(self) -> Iterator[str]:
        seen = set()
        for pattern in self._standard:
            for path in glob.iglob(pattern):
                real = os.path.realpath(path)
                if real not in seen:
                    seen.add(real)
                    yield real

    # Targets that nobody has used for long enough.
    def _idle(self, now_ns: int) -> list[_Target]:
        idle = []
        for target in self._targets.values():
            if target.pinned or target.users:
                target.idle_since_ns = None
            elif target.idle_since_ns is None:
                target.idle_since_ns = now_ns
            elif now_ns - target.idle_since_ns >= _LINGER_NS:
                idle.append(target)
        return idle

    def _drop(self, target: _Target) -> None:
        del self._targets[target.identity]
        for key in target.keys:
            self._by_key.pop(key, None)
        self._release(target.fds)
        if self._has_been_full:  # now there is room for one that was turned away
            self._has_been_full = False
            self.skip.clear()
            self._scan_due = True

    # Users

    def _use(self, pid: int, target: _Target) -> None:
        target.users.add(pid)
        self._uses.setdefault(pid, set()).add(target)

    def _stop_using(self, pid: int, target: _Target) -> None:
        target.users.discard(pid)
        uses = self._uses.get(pid, set())
        uses.discard(target)
        if not uses:
            self._uses.pop(pid, None)

    def _leave(self, pid: int) -> None:
        for target in self._uses.pop(pid, ()):
            target.users.discard(pid)

    def _status(self, target: _Target) -> TargetStatus:
        return TargetStatus(
            path=target.path,
            dev=target.dev,
            inode=target.inode,
            build_id=target.build_id,
            attached=tuple(target.attached),
            users=None if target.pinned else len(target.users),
            error=target.error,
        )
