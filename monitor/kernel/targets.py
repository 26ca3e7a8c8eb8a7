"""Which files carry which probes, at every moment.

A file becomes a target when a process maps it and it defines a function that we probe, whatever
its name. Its probes stay for as long as a process uses it and not a moment longer: they hold the
file's mount, and a file that nobody maps may be overwritten, whose next program would then meet a
probe in the middle of another instruction. The system's own libraries are probed from the start
and stay, so that the first short-lived program is seen too. A file that is written to loses its
probes at once, whoever uses it, and is looked at anew.

A probe is placed only where the file holds the bytes that were analysed, and that is asked again
once it is in its place.

Only libraries are probed. A program's own text is more than code to some: they move it to large
pages, check it, patch it; and a copied probe kills. For the same reason nothing is probed while a
program runs that translates machine code (valgrind, qemu-user): it would translate the probe.

Every process maps dozens of files, so most of the work is to have nothing to do: files known to be
uninteresting are in `Targets.skip`, which the watch over mappings consults before it makes an
event. A file is looked into once. Looking costs 0.1 ms, at worst (a huge symbol table) 100 ms,
and whoever can run programs can make us look: hence the budget.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from monitor.errors import SourceError
from monitor.kernel import elf, mapped_file, mappings, uprobe
from monitor.kernel.exclusions import Exclusions
from monitor.kernel.file_watch import FileWatch
from monitor.kernel.known_libraries import LOOK_AHEAD, STANDARD, standard_paths
from monitor.kernel.mapped_file import FileGone, FileRefused, Identity, OpenedFile
from monitor.kernel.placing import Attach, FindReturns, Placing, ProbePrograms

__all__ = ["TargetStatus", "Targets"]

MAX_TARGETS: Final = 256  # files with probes; each takes up to 6 descriptors
_MAX_KNOWN: Final = 32_768  # uninteresting files remembered; beyond, all are looked into again
_MAX_PENDING: Final = 4096  # mappings that wait for the next second's budget
_MAX_REFUSED: Final = 32  # refusals and failures that status() tells of
_BUDGET_NS: Final = 200_000_000  # spent on looking into files ...
_BUDGET_PERIOD_NS: Final = 1_000_000_000  # ... in so long
_REFRESH_NS: Final = 60_000_000_000  # how soon a library that was upgraded is unpinned
# Placing probes and taking them out takes 1 ms of CPU. A file that comes and goes more often than
# so in a minute is left alone until the next.
_MAX_COMINGS: Final = 30
_BETWEEN_NS: Final = 20_000_000  # from an exec to the new program's mappings
# A file that was written a moment ago may be written again: who builds and tries it does.
_SETTLED_S: Final = 10.0
_MAX_YOUNG: Final = 1024  # mappings of such files that wait
# The programs that run another's code by translating it, as they are mapped.
_TRANSLATOR: Final = re.compile(
    rb"/(?:valgrind(?:\.bin)?|valgrind/[a-z0-9_-]+-(?:amd64|x86|arm64|arm|riscv64)-linux"
    rb"|qemu-(?!system)[a-z0-9_]+(?:-static)?|libdynamorio[^/]*|pinbin|box64|FEXInterpreter)$"
)


_MAX_ROOTS: Final = 1024  # root directories remembered as looked into


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
    watch: int | None = None
    free_at_ns: int | None = None
    """Nobody uses it now, but somebody may be about to: until then it is kept."""


class Targets:
    """Attaches probes to the files that need them, driven by mapping events.

    Args:
        attach: as `uprobe.attach_all`.
        programs: function -> its programs.
        find_returns: as `disassembler.Disassembler.find`.
        watch: as `file_watch.FileWatch`; None: nobody tells when a file is written to.
        exclusions: what is kept free of probes.
        release: closes the descriptors of a target that is no longer used.
        settle: waits until all that was released is closed.
        opener: as `mapped_file.open_mapped`.
        opener_own: as `mapped_file.open_own`.
        opener_ahead: as `mapped_file.open_cached`.
        scan: as `mappings.scan`.
        standard: patterns of the system's own libraries.
        proc: where processes are listed.
        clock_ns: any clock; it only measures the budget.
        settled_s: seconds after its last change that a file is left alone.
    """

    skip: set[mappings.Key]
    """Files whose mappings need not be reported: hand it to `mappings.MappingWatch`."""
    counts: Counter[str]
    """Files ``looked`` into, and of these ``go``, ``program``, ``unsupported``, ``excluded``,
    ``unsound`` (what they say of a function is not so), ``restless`` (they come and go), ``paused``
    (met while a translator ran) and ``full`` (no room for more targets); ``young`` files, which are
    looked into later; files ``refused``; files ``written`` to while they were probed; mappings
    ``deferred`` for want of budget, and ``dropped`` then."""

    def __init__(
        self,
        attach: Attach,
        programs: Mapping[str, ProbePrograms],
        *,
        find_returns: FindReturns,
        watch: FileWatch | None = None,
        exclusions: Exclusions | None = None,
        release: Callable[[Sequence[int]], None] = uprobe.release,
        settle: Callable[[], None] = uprobe.settle,
        opener: Callable[[mappings.Mapping], OpenedFile] = mapped_file.open_mapped,
        opener_own: Callable[[str], OpenedFile] = mapped_file.open_own,
        opener_ahead: Callable[[mappings.Mapping, str], OpenedFile] = mapped_file.open_cached,
        scan: Callable[[], Iterable[mappings.Mapping]] = mappings.scan,
        standard: Sequence[str] = STANDARD,
        proc: str = "/proc",
        clock_ns: Callable[[], int] = time.monotonic_ns,
        settled_s: float = _SETTLED_S,
    ) -> None:
        self.skip = set()
        self.counts = Counter()
        self._release, self._settle = release, settle
        self._programs = dict(programs)
        self._placing = Placing(attach, self._programs, find_returns, release)
        self._watch = watch
        self._exclusions = exclusions or Exclusions()
        self._excluded: dict[Identity, str] = {}  # not probed again while we run
        self._comings: Counter[Identity] = Counter()  # this minute
        self._open, self._open_own, self._open_ahead = opener, opener_own, opener_ahead
        self._roots: dict[tuple[str, str], None] = {}
        self._scan, self._standard, self._proc = scan, standard, proc
        self._clock_ns = clock_ns
        self._targets: dict[Identity, _Target] = {}
        self._by_key: dict[mappings.Key, _Target] = {}
        self._uses: dict[int, set[_Target]] = {}  # users of targets that are not pinned
        self._unused: set[_Target] = set()  # have lost a user since they were last looked through
        self._refused: deque[TargetStatus] = deque(maxlen=_MAX_REFUSED)
        self._pending: deque[mappings.Mapping] = deque()
        self._young: deque[tuple[int, mappings.Mapping]] = deque()
        self._settled_s = settled_s
        self._period_start_ns = self._spent_ns = 0
        self._refreshed_ns: int | None = None
        self._scan_due = False
        self._has_been_full = False
        self._translators: set[int] = set()  # processes that translate machine code

    # What the owner calls

    def start(self) -> None:
        """Probe the system's own libraries, then whatever is in use now.

        The watch over mappings is to be open already, so that nothing falls between the two.
        """
        self._refreshed_ns = self._clock_ns()
        self._translators = {each.pid for each in self._scan() if _TRANSLATOR.search(each.path)}
        self._pin_standard()
        self._rescan(limited=False)

    def handle(self, events: Iterable[mappings.Event]) -> None:
        """Take in what `mappings.MappingWatch` has told."""
        events = list(events)
        gone = {event.pid for event in events if isinstance(event, mappings.Exit)}
        for event in events:
            match event:
                case mappings.Mapping() if event.pid in gone:
                    pass  # it has ended already
                case mappings.Mapping():
                    if _TRANSLATOR.search(event.path):
                        self._pause(event.pid)
                    self._mapped(event)
                case mappings.Fork(pid, parent):
                    self._leave(pid)
                    if parent in self._translators:
                        self._translators.add(pid)
                    for target in self._uses.get(parent, ()):
                        self._use(pid, target)
                case mappings.Exec(pid):
                    # what comes next mostly maps the same libraries
                    self._leave(pid, keep_ns=_BETWEEN_NS)
                    self._resume(pid)
                case mappings.Exit(pid):
                    if not self._has_threads(pid):  # a process may outlive its main thread
                        self._leave(pid)
                        self._resume(pid)
                case mappings.Lost():
                    self._scan_due = True
        if self._pending:
            self._work_off()
        self._drop_unused()

    def deadline_ns(self) -> int | None:
        """When `handle` is to be called, be there events or not; None: not before there are."""
        waiting = [t.free_at_ns for t in self._unused if t.free_at_ns is not None]
        return min(waiting, default=None)

    def written(self) -> None:
        """Let go of files that somebody writes to; to be called when the watch has something."""
        if self._watch is None:
            return
        numbers = self._watch.written()
        for target in [t for t in self._targets.values() if t.watch in numbers]:
            self.counts["written"] += 1
            self.skip -= target.keys
            self._drop(target)
            self._scan_due = True  # who maps it still is asked in a while, and it is looked at anew

    def sweep(self, now_ns: int) -> None:
        """Drop what nobody uses, catch up with what was missed; call it every second or so.

        Args:
            now_ns: CLOCK_MONOTONIC.
        """
        self._work_off()
        if self._refreshed_ns is None or now_ns - self._refreshed_ns >= _REFRESH_NS:
            self._refreshed_ns = now_ns
            self._comings.clear()
            self.skip.clear()  # what was of no interest may have been overwritten since
            self._pin_standard()
        for pid in [pid for pid in self._translators if not self._is_alive(pid)]:
            self._resume(pid)
        for pid in [pid for pid in self._uses if not self._is_alive(pid)]:
            self._leave(pid)
        while self._young and self._young[0][0] <= now_ns:
            mapping = self._young.popleft()[1]
            if self._is_alive(mapping.pid):
                self._mapped(mapping)
        if self._scan_due:
            self._scan_due = False
            self._rescan(limited=True)
        self._drop_unused()

    def status(self) -> list[TargetStatus]:
        """Every target, then the files that were refused last."""
        return [self._status(target) for target in self._targets.values()] + list(self._refused)

    def close(self) -> None:
        """Detach everything, and wait until that is done."""
        for target in self._targets.values():
            self._release(target.fds)
        self._settle()
        self._targets.clear()
        self._by_key.clear()
        self._uses.clear()
        self._pending.clear()
        self._young.clear()

    # Translators

    def _pause(self, pid: int) -> None:
        if not self._translators:
            for target in list(self._targets.values()):
                self._drop(target)
        self._translators.add(pid)

    def _resume(self, pid: int) -> None:
        if pid in self._translators:
            self._translators.discard(pid)
            if not self._translators:
                self.skip.clear()
                self._refreshed_ns = None  # the system's own libraries are probed at the next sweep
                self._scan_due = True

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
        for path in LOOK_AHEAD:
            try:
                opened = self._open_ahead(mapping, path)
            except SourceError:
                continue
            try:
                if opened.identity not in self._targets and self._has_settled(opened.fd):
                    target = self._examine(opened, path, pinned=False)
                    if target is not None:
                        self._use(mapping.pid, target)  # it is about to
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
            target = self._targets.get(opened.identity)
            if target is None and not self._has_settled(opened.fd):
                self.counts["young"] += 1
                if len(self._young) < _MAX_YOUNG:
                    due_ns = self._clock_ns() + int(self._settled_s * 1e9)
                    self._young.append((due_ns, mapping))
                return
            target = target or self._examine(opened, path, pinned=False)
        finally:
            os.close(opened.fd)
        if target is None or (target.pinned and not self._exclusions.about_processes):
            self._ignore(mapping.key)
        if target is not None:
            target.keys.add(mapping.key)
            if not target.pinned or self._exclusions.about_processes:
                self._by_key[mapping.key] = target
                self._use(mapping.pid, target)
                if not self._is_alive(mapping.pid):
                    self._leave(mapping.pid)

    def _is_alive(self, pid: int) -> bool:
        return os.path.exists(f"{self._proc}/{pid}")

    def _has_settled(self, fd: int) -> bool:
        return not 0 <= time.time() - os.fstat(fd).st_ctime < self._settled_s

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
        reason = self._reason_against(opened.identity, path, info)
        if reason is not None:
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
        # before the file is read, so that nothing is written unnoticed after
        target.watch = self._watch.add(opened.fd) if self._watch is not None else None
        placed = self._placing.place(opened.fd, info)
        target.fds, target.attached, target.error = placed.fds, placed.attached, placed.error
        self.counts["unsound"] += placed.unsound
        if not target.fds:
            if target.watch is not None and self._watch is not None:
                self._watch.remove(target.watch)
            self._refuse(path, opened.dev, opened.inode, info.build_id, target.error)
            return None
        self._comings[target.identity] += 1
        self._targets[target.identity] = target
        if not pinned:
            self._unused.add(target)  # unless somebody uses it by the end of this turn
        return target

    # Why a file that has something to probe is left alone; None where it is not.
    def _reason_against(self, identity: Identity, path: str, info: elf.ElfInfo) -> str | None:
        kind: str | None = None
        reason = self._excluded.get(identity)
        if reason is not None:
            kind = "excluded"
        elif rule := self._exclusions.of_library(path):
            kind, reason = "excluded", f"excluded by {rule}"
            self._excluded[identity] = reason  # under its other names, too
        elif info.is_go:
            kind, reason = "go", "a Go program, which is seen on the wire"
        elif info.is_program:
            kind, reason = "program", "a program, not a library: it is seen on the wire"
        elif self._translators:
            kind, reason = "paused", "a program that translates machine code runs"
        elif self._comings[identity] >= _MAX_COMINGS:
            kind, reason = "restless", "it comes and goes too often to be probed"
        elif len(self._targets) >= MAX_TARGETS:
            self._has_been_full = True
            kind, reason = "full", f"{MAX_TARGETS} files are probed already"
        if kind is not None:
            self.counts[kind] += 1
        return reason

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
        for path in standard_paths(self._standard):
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
                self._unused.add(target)
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

    def _has_threads(self, pid: int) -> bool:
        if pid not in self._uses:
            return False
        try:
            return len(os.listdir(f"{self._proc}/{pid}/task")) > 1
        except OSError:
            return False

    def _drop_unused(self) -> None:
        if not self._unused:
            return
        now_ns = self._clock_ns()
        for target in list(self._unused):
            if target.free_at_ns is not None and target.free_at_ns > now_ns:
                continue
            self._unused.discard(target)
            is_held = self._targets.get(target.identity) is target
            if is_held and not target.users and not target.pinned:
                self._drop(target)

    def _drop(self, target: _Target) -> None:
        del self._targets[target.identity]
        for key in target.keys:
            self._by_key.pop(key, None)
        for pid in list(target.users):
            self._stop_using(pid, target)
        if target.watch is not None and self._watch is not None:
            self._watch.remove(target.watch)
        self._release(target.fds)
        target.fds = []
        if self._has_been_full:  # now there is room for one that was turned away
            self._has_been_full = False
            self.skip.clear()
            self._scan_due = True

    # Users

    # Whether a process that must meet no probe uses the file, which then has none any more.
    def _exclude(self, pid: int, target: _Target) -> bool:
        rule = self._exclusions.of_process(pid)
        if rule is None:
            return False
        self.counts["excluded"] += 1
        reason = f"excluded by {rule}, which a process that uses it falls under"
        self._excluded[target.identity] = reason
        if target.identity in self._targets:
            self._drop(target)
        self._refuse(target.path, target.dev, target.inode, target.build_id, reason)
        return True

    def _use(self, pid: int, target: _Target) -> None:
        if self._exclusions.about_processes and self._exclude(pid, target):
            return
        if target.pinned:
            return
        target.free_at_ns = None
        target.users.add(pid)
        self._uses.setdefault(pid, set()).add(target)

    def _stop_using(self, pid: int, target: _Target) -> None:
        target.users.discard(pid)
        self._unused.add(target)
        target.free_at_ns = None
        uses = self._uses.get(pid, set())
        uses.discard(target)
        if not uses:
            self._uses.pop(pid, None)

    def _leave(self, pid: int, keep_ns: int = 0) -> None:
        for target in self._uses.pop(pid, ()):
            target.users.discard(pid)
            if not target.users:
                self._unused.add(target)
                target.free_at_ns = self._clock_ns() + keep_ns if keep_ns else None

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
