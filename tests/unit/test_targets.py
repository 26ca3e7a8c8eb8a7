"""monitor.kernel.targets: what is attached, kept and dropped, with fake processes and probes."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor.errors import SourceError
from monitor.kernel import targets as targets_module
from monitor.kernel.exclusions import Exclusions
from monitor.kernel.mapped_file import FileGone, FileRefused, OpenedFile
from monitor.kernel.mappings import Exec, Exit, Fork, Key, Lost, Mapping
from monitor.kernel.placing import ProbePrograms
from monitor.kernel.returns import Place, Returns
from monitor.kernel.targets import Targets

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")

SECOND = 1_000_000_000
PROGRAMS = {
    "getaddrinfo": ProbePrograms(entry=101, ret=102),
    "SSL_do_handshake": ProbePrograms(entry=103, ret=104, in_pairs=False),
}
RETURNS = (102, 104)
RESOLVER = "int getaddrinfo(void) { return 1; }"
HANDSHAKE = "int SSL_do_handshake(void) { return 2; }"
GO = 'asm(".section .gopclntab,\\"a\\"\\n.long 1\\n.previous");'


@pytest.fixture(scope="session")
def build(tmp_path_factory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("built")
    made: dict[str, Path] = {}

    def build(*sources: str) -> Path:
        source = "\n".join(sources)
        if source not in made:
            base = folder / f"lib{len(made)}"
            base.with_suffix(".c").write_text(source)
            made[source] = base.with_suffix(".so")
            kind = "-pie" if "#pragma program" in source else "-shared"
            command = ["gcc", kind, "-rdynamic", "-fPIC", "-fno-builtin", "-o", made[source]]
            subprocess.run([*command, base.with_suffix(".c")], check=True)
        return made[source]

    return build


class Watch:
    """Files that are watched, by descriptor's file, and what the test says was written."""

    def __init__(self) -> None:
        self.watched: dict[int, tuple[int, int]] = {}
        self.news: set[int] = set()

    def add(self, fd: int) -> int:
        number = len(self.watched) + 1
        self.watched[number] = (os.fstat(fd).st_dev, os.fstat(fd).st_ino)
        return number

    def remove(self, number: int) -> None:
        del self.watched[number]

    def written(self) -> set[int]:
        news, self.news = self.news, set()
        return news


class World:
    """Processes, files and probes, none of them real but the files' content."""

    def __init__(
        self,
        proc: Path,
        standard: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        settled_s: float = 0,
    ) -> None:
        self.proc = proc
        self.files: dict[tuple[int, int], Path] = {}
        self.processes: dict[int, list[Key]] = {}
        self.refuse: set[Key] = set()
        self.probes: dict[int, tuple[int, bool]] = {}
        self.released: list[int] = []
        self.opened = 0
        self.on_attach: Callable[[], None] = lambda: None
        self.attach_fails: Callable[[int], bool] = lambda prog_fd: False
        self.now_ns = 0
        self.no_returns: set[str] = set()
        self.unsound: set[str] = set()
        self.watch = Watch()
        self._numbers = itertools.count(1000)
        self.targets = Targets(
            self.attach, PROGRAMS, find_returns=self.find_returns, watch=self.watch,
            exclusions=Exclusions(exclude, proc=str(proc)),
            release=self.release, settle=lambda: None, opener=self.open,
            opener_own=self.open_own, scan=self.scan, standard=standard, proc=str(proc),
            clock_ns=lambda: self.now_ns, settled_s=settled_s,
        )  # fmt: skip

    def file(self, path: Path, inode: int) -> Key:
        self.files[8, inode] = path
        return 8, inode, 7

    def run(self, pid: int, *keys: Key) -> list[Mapping]:
        (self.proc / str(pid)).mkdir(exist_ok=True)
        self.processes.setdefault(pid, []).extend(keys)
        return [Mapping(pid, 0x1000, 0x2000, key, b"/as/seen") for key in keys]

    def end(self, pid: int) -> Exit:
        (self.proc / str(pid)).rmdir()
        del self.processes[pid]
        return Exit(pid)

    def scan(self):
        for pid, keys in self.processes.items():
            for dev, inode, _ in keys:
                yield Mapping(pid, 0x1000, 0x2000, (dev, inode, None), b"/as/seen")

    def open(self, mapping: Mapping) -> OpenedFile:
        self.opened += 1
        self.now_ns += 1_000_000
        if mapping.key in self.refuse:
            raise FileRefused("it lies on fuse")
        if mapping.pid not in self.processes:
            raise FileGone("gone")
        dev, inode, _ = mapping.key
        fd = os.open(self.files[dev, inode], os.O_RDONLY)
        return OpenedFile(fd=fd, identity=(dev, inode), dev=dev, inode=inode)

    def open_own(self, path: str) -> OpenedFile:
        for (dev, inode), held in self.files.items():
            if str(held) == path:
                fd = os.open(path, os.O_RDONLY)
                return OpenedFile(fd=fd, identity=(dev, inode), dev=dev, inode=inode)
        raise FileGone("none")

    # As if each function were one instruction of two bytes, which is also its return.
    def find_returns(self, fd, machine, build_id, functions):
        found = {}
        for name, (offset, _) in functions.items():
            place = Place(offset, os.pread(fd, 2, offset))
            if name in self.unsound:
                found[name] = "it begins in the middle of another function"
            elif name in self.no_returns:
                found[name] = Returns(place, reason="it can leave by another way")
            else:
                found[name] = Returns(place, (place,))
        return found

    def attach(self, prog_fd: int, path: str, offsets: list[int]) -> list[int]:
        assert path.startswith("/proc/self/fd/") and all(offset > 0 for offset in offsets)
        if self.attach_fails(prog_fd):
            raise SourceError("cannot probe that")
        number = next(self._numbers)
        self.probes[number] = (prog_fd, prog_fd in RETURNS)
        self.on_attach()
        return [number]

    def release(self, fds) -> None:
        for fd in fds:
            del self.probes[fd]
            self.released.append(fd)

    def attached(self) -> list[tuple[int, bool]]:
        return sorted(self.probes.values())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


BOTH_OF_RESOLVER = [(101, False), (102, True)]


def test_a_file_is_probed_for_what_it_defines_and_only_once(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    other = world.file(build("int nothing;"), 12)
    static = world.file(build(RESOLVER, HANDSHAKE), 13)
    for pid in (21, 22, 23):
        world.targets.handle(world.run(pid, libc, other))
    assert world.attached() == BOTH_OF_RESOLVER
    assert world.opened == 2
    assert other in world.targets.skip and libc not in world.targets.skip
    world.targets.handle(world.run(24, static))
    assert [prog for prog, _ in world.attached()] == [101, 101, 102, 102, 103, 104]
    first, second = world.targets.status()
    assert (first.inode, first.attached, first.users) == (11, ("getaddrinfo",), 3)
    assert (second.inode, second.users, second.error) == (13, 1, None)
    assert set(second.attached) == {"getaddrinfo", "SSL_do_handshake"}


def test_probes_go_with_the_last_user(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle([*world.run(21, libc), *world.run(22, libc)])
    world.targets.handle([world.end(21)])
    assert world.attached() == BOTH_OF_RESOLVER
    world.targets.handle([world.end(22)])
    assert world.attached() == []
    assert world.targets.status() == []
    assert world.watch.watched == {}
    world.targets.handle(world.run(23, libc))
    assert world.attached() == BOTH_OF_RESOLVER


def test_between_a_program_and_the_next_of_the_same_process_probes_stay(
    world: World, build
) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle(world.run(21, libc))
    world.targets.handle([Exec(21)])
    assert world.targets.deadline_ns() == world.now_ns + 20_000_000
    world.targets.handle(world.run(21, libc))
    assert world.targets.deadline_ns() is None
    world.now_ns += SECOND
    world.targets.handle([])
    assert world.released == []
    world.targets.handle([Exec(21)])
    world.now_ns += 20_000_000
    world.targets.handle([])
    assert world.attached() == []


def test_a_file_that_was_just_written_is_probed_once_it_has_settled(tmp_path: Path, build) -> None:
    world = World(tmp_path, settled_s=3600)
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle([*world.run(21, libc), *world.run(22, libc)])
    assert world.attached() == [] and world.targets.counts["young"] == 2
    world.targets.handle([world.end(22)])
    world.targets._settled_s = 0
    world.targets.sweep(world.now_ns + 3601 * SECOND)
    assert world.attached() == BOTH_OF_RESOLVER
    assert world.targets.status()[0].users == 1


def test_what_a_process_mapped_that_has_ended_is_left_alone(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle([*world.run(21, libc), Exit(21)])
    assert world.opened == 0
    world.on_attach = lambda: (world.proc / "21").exists() and (world.proc / "21").rmdir()
    world.targets.handle(world.run(21, libc))
    assert world.attached() == [] and len(world.released) == 2


def test_a_file_that_comes_and_goes_is_left_alone_for_a_while(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.sweep(0)
    for pid in range(100, 140):
        world.targets.handle(world.run(pid, libc))
        world.targets.handle([world.end(pid)])
    assert len(world.released) == 2 * 30
    assert world.targets.counts["restless"] == 1, "it is not looked into again"
    world.targets.sweep(60 * SECOND)
    world.targets.handle(world.run(200, libc))
    assert world.attached() == BOTH_OF_RESOLVER


def test_a_file_that_is_written_to_loses_its_probes_and_is_looked_at_anew(
    world: World, build
) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle(world.run(21, libc))
    world.watch.news = set(world.watch.watched)
    world.targets.written()
    assert world.attached() == []
    world.files[8, 11] = build(HANDSHAKE)
    world.targets.sweep(0)
    assert [prog for prog, _ in world.attached()] == [103, 104]
    assert world.targets.status()[0].users == 1


def test_the_systems_own_library_that_is_written_to_loses_its_probes(tmp_path: Path, build) -> None:
    path = build(RESOLVER)
    world = World(tmp_path, standard=(str(path),))
    world.file(path, 11)
    world.targets.start()
    world.watch.news = set(world.watch.watched)
    world.targets.written()
    assert world.attached() == []


def test_what_was_written_to_while_it_was_looked_at_keeps_no_probe(
    world: World, build, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.so"
    shutil.copy(build(RESOLVER), copy)
    libc = world.file(copy, 11)
    world.on_attach = lambda: copy.write_bytes(bytes(copy.stat().st_size))
    world.targets.handle(world.run(21, libc))
    assert world.attached() == []
    assert "written to" in (world.targets.status()[0].error or "")


def test_an_entry_alone_is_probed_only_where_it_says_something(world: World, build) -> None:
    world.no_returns = {"getaddrinfo", "SSL_do_handshake"}
    both = world.file(build(RESOLVER, HANDSHAKE), 11)
    world.targets.handle(world.run(21, both))
    assert world.attached() == [(103, False)]
    assert "another way" in (world.targets.status()[0].error or "")


def test_a_function_that_is_not_what_its_symbol_says_is_counted(world: World, build) -> None:
    world.unsound = {"getaddrinfo"}
    liar = world.file(build(RESOLVER), 11)
    world.targets.handle(world.run(21, liar))
    assert world.attached() == []
    assert world.targets.counts["unsound"] == 1
    assert "middle of another" in (world.targets.status()[0].error or "")


def test_programs_are_left_alone(world: World, build) -> None:
    program = world.file(build(RESOLVER, "int main(void) { return 0; }", "#pragma program"), 11)
    world.targets.handle(world.run(21, program))
    assert world.attached() == []
    assert world.targets.counts["program"] == 1


def test_nothing_is_probed_while_a_translator_runs(tmp_path: Path, build) -> None:
    path = build(RESOLVER)
    world = World(tmp_path, standard=(str(path),))
    world.file(path, 11)
    other = world.file(build(HANDSHAKE), 12)
    world.targets.start()
    world.targets.handle(world.run(21, other))
    assert len(world.probes) == 4
    tool = Mapping(22, 0, 1, (8, 99, 1), b"/usr/libexec/valgrind/memcheck-amd64-linux")
    (world.proc / "22").mkdir()
    world.targets.handle([tool])
    world.targets.handle([*world.run(23, other), Fork(24, 22), Exit(22)])
    assert world.attached() == []
    world.targets.handle([Exec(24)])
    world.targets.sweep(1)
    assert len(world.probes) == 4


@pytest.mark.parametrize(
    ("rule", "probed"),
    [
        ("library=/as/*", False),
        ("library=/other/*", True),
        ("comm=excluded", False),
        ("comm=other", True),
        ("exe=/opt/*", False),
        ("unit=db.service", False),
        ("unit=*.socket", True),
    ],
)
def test_what_is_excluded_is_not_probed(tmp_path: Path, build, rule: str, probed: bool) -> None:
    path = build(RESOLVER)
    world = World(tmp_path, standard=(str(path),), exclude=(rule,))
    world.targets.start() if rule.startswith(("comm", "exe", "unit")) else None
    key = world.file(path, 11)
    events = world.run(21, key)
    (world.proc / "21" / "comm").write_text("excluded\n")
    (world.proc / "21" / "exe").symlink_to("/opt/x/program")
    (world.proc / "21" / "cgroup").write_text("0::/system.slice/db.service\n")
    world.targets.handle(events)
    assert bool(world.attached()) is probed
    world.targets.sweep(61 * SECOND)
    assert bool(world.attached()) is probed
    if not probed:
        assert any("excluded by " + rule in (s.error or "") for s in world.targets.status())


def test_children_use_what_their_parent_uses_until_they_exec(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle(world.run(21, libc))
    world.run(22, libc)
    world.targets.handle([Fork(22, 21), world.end(21)])
    assert world.targets.status()[0].users == 1
    world.processes[22] = []
    world.targets.handle([Exec(22)])
    world.now_ns += SECOND
    world.targets.sweep(11 * SECOND)
    assert world.attached() == []


def test_an_exit_that_was_missed_is_found_by_the_sweep(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle(world.run(21, libc))
    world.end(21)
    world.targets.sweep(0)
    world.targets.sweep(11 * SECOND)
    assert world.attached() == []


def test_a_process_that_outlives_its_main_thread_keeps_its_probes(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle(world.run(21, libc))
    for thread in ("21", "22"):
        (world.proc / "21" / "task" / thread).mkdir(parents=True)
    world.targets.handle([Exit(21)])
    world.targets.sweep(0)
    world.targets.sweep(11 * SECOND)
    assert world.attached() == BOTH_OF_RESOLVER
    assert world.targets.status()[0].users == 1


def test_after_lost_events_all_processes_are_asked(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.run(21, libc)
    world.targets.handle([Lost(5)])
    world.targets.sweep(0)
    assert world.attached() == BOTH_OF_RESOLVER


def test_the_systems_own_libraries_are_probed_before_use_and_stay(tmp_path: Path, build) -> None:
    path = build(RESOLVER)
    world = World(tmp_path, standard=(str(path.parent / "lib*.so"),))
    libc = world.file(path, 11)
    world.targets.start()
    assert world.attached() == BOTH_OF_RESOLVER
    world.targets.handle(world.run(21, libc))
    assert libc in world.targets.skip, "its users are not counted, so events are not needed"
    assert world.targets.status()[0].users is None
    world.targets.handle([world.end(21)])
    world.targets.sweep(0)
    world.targets.sweep(1000 * SECOND)
    assert world.attached() == BOTH_OF_RESOLVER


def test_a_library_that_an_upgrade_replaced_goes_with_its_last_user(tmp_path: Path, build) -> None:
    path = build(RESOLVER)
    world = World(tmp_path, standard=(str(path),))
    old = world.file(path, 11)
    world.targets.start()
    world.targets.handle(world.run(21, old))
    world.targets.sweep(0)
    world.files = {(8, 12): path, (8, 11): build(RESOLVER, "int old;")}
    world.targets.sweep(60 * SECOND)
    assert [(s.inode, s.users) for s in world.targets.status()] == [(11, 1), (12, None)]
    world.targets.handle([world.end(21)])
    world.targets.sweep(61 * SECOND)
    world.targets.sweep(71 * SECOND)
    assert [s.inode for s in world.targets.status()] == [12]


def test_go_programs_are_left_alone(world: World, build) -> None:
    go = world.file(build(RESOLVER, GO), 11)
    world.targets.handle(world.run(21, go))
    assert world.attached() == []
    assert "Go" in (world.targets.status()[0].error or "")
    assert go in world.targets.skip


def test_a_refused_file_is_told_once_and_not_tried_again(world: World, build) -> None:
    fuse = world.file(build(RESOLVER), 11)
    world.refuse.add(fuse)
    for pid in (21, 22):
        world.targets.handle(world.run(pid, fuse))
    assert world.opened == 1
    assert [s.error for s in world.targets.status()] == ["it lies on fuse"]


def test_a_process_that_went_too_soon_does_not_hide_the_file(world: World, build) -> None:
    libc = world.file(build(RESOLVER), 11)
    world.targets.handle([Mapping(20, 0x1000, 0x2000, libc, b"/as/seen")])
    assert world.attached() == []
    world.targets.handle(world.run(21, libc))
    assert world.attached() == BOTH_OF_RESOLVER


def test_an_inode_number_that_is_used_again_is_looked_into_again(world: World, build) -> None:
    dull = world.file(build("int nothing;"), 11)
    world.targets.handle(world.run(21, dull))
    world.file(build(RESOLVER), 11)
    world.targets.handle(world.run(22, (8, 11, 8)))
    assert world.attached() == BOTH_OF_RESOLVER


def test_half_of_a_pair_is_not_left_attached(world: World, build) -> None:
    world.attach_fails = lambda prog_fd: prog_fd in (101, 104)
    both = world.file(build(RESOLVER, HANDSHAKE), 11)
    world.targets.handle(world.run(21, both))
    assert world.attached() == []
    assert "cannot probe that" in (world.targets.status()[0].error or "")
    world.attach_fails = lambda prog_fd: prog_fd == 104
    again = world.file(build(RESOLVER, HANDSHAKE), 12)
    world.targets.handle(world.run(22, again))
    assert world.attached() == BOTH_OF_RESOLVER
    assert world.targets.status()[0].attached == ("getaddrinfo",)
    assert (world.targets.status()[0].error or "").startswith("SSL_do_handshake: ")


def test_targets_are_bounded_and_room_is_used_when_it_comes(
    world: World, build, monkeypatch
) -> None:
    monkeypatch.setattr(targets_module, "MAX_TARGETS", 2)
    for pid in (21, 22, 23):
        world.targets.handle(world.run(pid, world.file(build(RESOLVER), pid)))
    assert world.targets.counts["full"] == 1
    assert len(world.probes) == 4
    world.targets.handle([world.end(21)])
    for second in (0, 11, 12):
        world.targets.sweep(second * SECOND)
    assert [s.inode for s in world.targets.status() if s.attached] == [22, 23]


def test_looking_into_files_has_a_budget(world: World, build) -> None:
    dull = build("int nothing;")
    keys = [world.file(dull, inode) for inode in range(1000, 1500)]
    world.targets.handle(world.run(21, *keys))
    assert world.opened == 200  # of 1 ms each
    world.targets.handle(world.run(22, world.file(build(RESOLVER), 11)))
    assert world.attached() == []
    for _ in range(3):
        world.now_ns += SECOND
        world.targets.sweep(0)
    assert world.attached() == BOTH_OF_RESOLVER


def test_memory_for_uninteresting_files_is_bounded(world: World, build, monkeypatch) -> None:
    monkeypatch.setattr(targets_module, "_MAX_KNOWN", 23)
    dull = build("int nothing;")
    world.targets.handle(world.run(21, *[world.file(dull, inode) for inode in range(100)]))
    assert 0 < len(world.targets.skip) <= 23
