"""monitor.kernel.targets with real probes, processes, mount namespaces and file systems."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monitor.kernel import uprobe
from monitor.kernel.disassembler import Disassembler
from monitor.kernel.file_watch import FileWatch
from monitor.kernel.mapped_file import FileGone, open_mapped
from monitor.kernel.mappings import MappingWatch, scan_process
from monitor.kernel.placing import ProbePrograms
from monitor.kernel.targets import Targets
from tests.kernel.tiny_bpf import Counter

pytestmark = pytest.mark.kernel

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
# Loads the library named first, calls getaddrinfo() in it when told to.
CALLER = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
print("ready", flush=True)
for _ in sys.stdin:
    lib.getaddrinfo(b"127.0.0.1", None, None, ctypes.byref(ctypes.c_void_p()))
    print("done", flush=True)
"""


@pytest.fixture
def counter():
    made = Counter()
    yield made
    made.close()


class Run:
    """Targets under a watch, for getaddrinfo alone, outside the standard directories."""

    def __init__(self, prog_fd: int, standard: tuple[str, ...] = ()) -> None:
        programs = {"getaddrinfo": ProbePrograms(entry=prog_fd, ret=None)}
        self.disassembler = Disassembler()
        self.files = FileWatch()
        self.targets = Targets(
            uprobe.attach_all,
            programs,
            find_returns=self.disassembler.find,
            watch=self.files,
            standard=standard,
            settled_s=0,
        )
        self.watch = MappingWatch(self.targets.skip)
        self.targets.start()

    def turn(self) -> None:
        self.targets.handle(self.watch.drain(time.monotonic_ns()))

    def of(self, inode: int):
        return [s for s in self.targets.status() if s.inode == inode]

    def close(self) -> None:
        self.watch.close()
        self.targets.close()
        self.files.close()
        self.disassembler.close()


@pytest.fixture
def run(counter: Counter):
    made = Run(counter.prog_fd)
    yield made
    made.close()


@pytest.fixture
def start():
    children = []

    def start(*command: str) -> subprocess.Popen:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        children.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in children:
        end(child)


def call(child: subprocess.Popen) -> None:
    child.stdin.write("\n")
    assert child.stdout.readline() == "done\n"


def end(child: subprocess.Popen) -> None:
    child.stdin.close()
    child.wait()
    child.stdout.close()


def test_a_library_of_any_name_is_probed_while_it_is_used(
    run: Run, counter: Counter, start, tmp_path: Path
) -> None:
    copy = tmp_path / "notalibc.bin"
    shutil.copy(LIBC, copy)
    child = start(sys.executable, "-c", CALLER, str(copy))
    run.turn()
    (status,) = run.of(copy.stat().st_ino)
    assert (status.attached, status.users, status.path) == (("getaddrinfo",), 1, str(copy))
    before = counter.value
    for _ in range(23):
        call(child)
    assert counter.value >= before + 23
    end(child)
    run.turn()
    assert run.of(copy.stat().st_ino) == []


def test_a_library_that_is_written_to_loses_its_probes(
    run: Run, counter: Counter, start, tmp_path: Path
) -> None:
    copy = tmp_path / "written.so"
    shutil.copy(LIBC, copy)
    child = start(sys.executable, "-c", CALLER, str(copy))
    run.turn()
    assert run.of(copy.stat().st_ino) != []
    with open(copy, "r+b") as file:
        file.write(b"\x7fELF")
    run.targets.written()
    assert run.of(copy.stat().st_ino) == []
    uprobe.settle()
    before = counter.value
    call(child)
    assert counter.value == before


def test_a_mount_is_not_held_once_its_programs_have_ended(run: Run, start, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp_path)], check=True)
    try:
        shutil.copy(LIBC, tmp_path / "mounted.so")
        child = start(sys.executable, "-c", CALLER, str(tmp_path / "mounted.so"))
        run.turn()
        assert run.of((tmp_path / "mounted.so").stat().st_ino) != []
        end(child)
        run.turn()
        uprobe.settle()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_runs_before_the_start_is_probed_too(counter: Counter, start, tmp_path: Path) -> None:
    copy = tmp_path / "early.so"
    shutil.copy(LIBC, copy)
    start(sys.executable, "-c", CALLER, str(copy))
    run = Run(counter.prog_fd)
    try:
        assert run.of(copy.stat().st_ino)[0].users == 1
    finally:
        run.close()


def test_start_is_quick(counter: Counter) -> None:
    begun = time.monotonic()
    run = Run(counter.prog_fd, standard=(LIBC,))
    took = time.monotonic() - begun
    run.close()
    assert took < 1


# In a mount namespace of its own: a folder of the tree, mounted as the command says.
IN_NAMESPACE = """
set -e
{mount}
exec {python} -c "$1" "$2"
"""


def start_in_namespace(start, mount: str, library: Path, *unshare: str) -> subprocess.Popen:
    script = IN_NAMESPACE.format(mount=mount, python=sys.executable)
    return start("unshare", "-m", *unshare, "sh", "-c", script, "sh", CALLER, str(library))


def test_a_file_that_only_another_mount_namespace_has(
    run: Run, counter: Counter, start, tmp_path: Path
) -> None:
    mount = f"mount -t tmpfs none {tmp_path}; cp {LIBC} {tmp_path}/hidden.so"
    child = start_in_namespace(start, mount, tmp_path / "hidden.so", "-p", "-f", "-n")
    assert not (tmp_path / "hidden.so").exists()
    run.turn()
    mine = [s for s in run.targets.status() if s.path.endswith("/hidden.so")]
    assert [(s.attached, s.users) for s in mine] == [(("getaddrinfo",), 1)]
    before = counter.value
    call(child)
    assert counter.value == before + 1


def test_two_overlays_of_one_file_are_one_target(
    run: Run, counter: Counter, start, tmp_path: Path
) -> None:
    (tmp_path / "lower").mkdir()
    shutil.copy(LIBC, tmp_path / "lower" / "layered.so")
    children = []
    for name in ("a", "b"):
        for part in ("upper", "work", "merged"):
            (tmp_path / name / part).mkdir(parents=True)
        base = tmp_path / name
        options = f"lowerdir={tmp_path}/lower,upperdir={base}/upper,workdir={base}/work"
        mount = f"mount -t overlay overlay -o {options} {base}/merged"
        children.append(start_in_namespace(start, mount, base / "merged" / "layered.so"))
        run.turn()
    mine = [s for s in run.targets.status() if s.path.endswith("/layered.so")]
    assert [s.users for s in mine] == [2]
    before = counter.value
    for child in children:
        call(child)
    assert counter.value == before + 2, "each call is seen once"


def test_an_overlay_that_a_user_made_is_refused(run: Run, start, tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    shutil.copy(LIBC, tmp_path / "lower" / "users.so")
    for part in ("upper", "work", "merged"):
        (tmp_path / part).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount = f"mount -t overlay overlay -o {options} {tmp_path}/merged"
    start_in_namespace(start, mount, tmp_path / "merged" / "users.so", "-r")
    run.turn()
    mine = [s for s in run.targets.status() if s.path.endswith("/users.so")]
    assert [(s.attached, s.error) for s in mine] == [
        ((), "it lies on an overlay that a user made, over who knows what")
    ]


def test_without_map_files_the_path_in_the_process_root_serves(tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "by path.so"
    shutil.copy(LIBC, copy)
    library = ctypes.CDLL(str(copy))
    assert library
    (mapping,) = (m for m in scan_process(os.getpid()) if m.path == os.fsencode(copy))

    def refuse(base, mapping):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("monitor.kernel.mapped_file._open_range", refuse)
    opened = open_mapped(mapping)
    assert opened.inode == copy.stat().st_ino
    os.close(opened.fd)
    os.rename(copy, tmp_path / "moved")
    os.symlink(LIBC, copy)  # what a hostile owner would do
    with pytest.raises(FileGone):
        open_mapped(mapping)
