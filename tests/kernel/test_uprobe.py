"""monitor.kernel.uprobe: probes on real functions, counted by a BPF program."""

from __future__ import annotations

import ctypes
import fcntl
import os

import pytest

from monitor.kernel import elf, uprobe
from tests.kernel.tiny_bpf import Counter

pytestmark = pytest.mark.kernel

LIBC = ctypes.CDLL("libc.so.6")


@pytest.fixture
def counter():
    made = Counter()
    yield made
    made.close()


@pytest.fixture
def libc_fd():
    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "libc.so.6" in line or "libc-2" in line)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_each_call_is_seen_once_until_the_descriptor_is_closed(
    counter: Counter, libc_fd: int
) -> None:
    offset = elf.inspect(libc_fd, ["labs"]).symbols["labs"]
    path = f"/proc/self/fd/{libc_fd}"
    probe = uprobe.attach(counter.prog_fd, path, offset, pid=os.getpid())
    assert fcntl.fcntl(probe, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    for _ in range(23):
        LIBC.labs(-5)
    assert counter.value == 23
    os.close(probe)
    LIBC.labs(-5)
    assert counter.value == 23


def test_other_processes_are_seen_unless_one_is_asked_for(counter: Counter, libc_fd: int) -> None:
    offset = elf.inspect(libc_fd, ["labs"]).symbols["labs"]
    path = f"/proc/self/fd/{libc_fd}"

    def call_in_child() -> None:
        if not (pid := os.fork()):
            LIBC.labs(-7)
            os._exit(0)
        os.waitpid(pid, 0)

    mine = uprobe.attach(counter.prog_fd, path, offset, pid=os.getpid())
    call_in_child()
    assert counter.value == 0
    os.close(mine)
    everyones = uprobe.attach(counter.prog_fd, path, offset)
    before = counter.value
    call_in_child()
    assert counter.value > before
    os.close(everyones)


def test_what_cannot_be_probed_is_told_in_a_sentence(counter: Counter, tmp_path) -> None:
    with pytest.raises(uprobe.UprobeError, match=r"cannot probe .*none\+0x10: No such file"):
        uprobe.attach(counter.prog_fd, str(tmp_path / "none"), 16)
    with pytest.raises(uprobe.UprobeError, match="Invalid argument"):
        uprobe.attach(counter.prog_fd, str(tmp_path), 16)
    with pytest.raises(uprobe.UprobeError):
        uprobe.attach(counter.map_fd, "/bin/true", 4096)
