"""monitor.kernel.mapped_file: a made-up /proc whose map_files lead to real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.kernel.mapped_file import FileGone, FileRefused, open_mapped, open_own
from monitor.kernel.mappings import Mapping

PID = 23


@pytest.fixture
def real(tmp_path: Path) -> Path:
    path = tmp_path / "lib.so"
    path.write_bytes(b"content")
    return path


def dev_of(path: Path) -> int:
    dev = path.stat().st_dev
    return os.major(dev) << 20 | os.minor(dev)


class Proc:
    def __init__(self, base: Path, real: Path) -> None:
        self.base, self.real = base / "proc", real
        (self.base / str(PID) / "map_files").mkdir(parents=True)
        (self.base / str(PID) / "ns").mkdir()
        (self.base / str(PID) / "ns" / "user").symlink_to(os.readlink("/proc/self/ns/user"))
        (self.base / "self").mkdir()
        (self.base / "self" / "mountinfo").write_text("")
        fd = os.open(real, os.O_PATH)
        with open(f"/proc/self/fdinfo/{fd}") as info:
            self.mount_id = next(line.split()[1] for line in info if "mnt_id" in line)
        os.close(fd)
        self.mount("ext4")
        self.map(real)

    def map(self, path: Path, name: str = "1000-2000") -> None:
        (self.base / str(PID) / "map_files" / name).symlink_to(path)

    def mount(self, fstype: str) -> None:
        table = f"1{self.mount_id} 0 7:7 / /a rw - tmpfs x rw\n"
        table += f"{self.mount_id} 1 8:1 / / rw,relatime shared:1 - {fstype} /dev/x rw\n"
        (self.base / str(PID) / "mountinfo").write_text(table)

    def open(self, **changes):
        stat = self.real.stat()
        dev, inode = changes.get("dev", dev_of(self.real)), changes.get("inode", stat.st_ino)
        start = changes.get("start", 0x1000)
        return open_mapped(
            Mapping(PID, start, start + 0x1000, (dev, inode, 1), b"/x"), str(self.base)
        )


@pytest.fixture
def proc(tmp_path: Path, real: Path) -> Proc:
    return Proc(tmp_path, real)


def test_the_mapped_file_is_opened_for_reading(proc: Proc) -> None:
    opened = proc.open()
    assert os.read(opened.fd, 100) == b"content"
    assert (opened.dev, opened.inode) == (dev_of(proc.real), proc.real.stat().st_ino)
    os.close(opened.fd)


@pytest.mark.parametrize("fstype", ["fuse", "fuse.sshfs", "fuseblk", "nfs4", "cifs", "9p"])
def test_file_systems_that_may_make_us_wait_are_refused_before_a_stat(
    proc: Proc, fstype: str, monkeypatch
) -> None:
    proc.mount(fstype)

    def hangs(fd):
        raise AssertionError("asked the file system")

    with monkeypatch.context() as patch:  # pytest itself calls it
        patch.setattr(os, "fstat", hangs)
        with pytest.raises(FileRefused, match=fstype):
            proc.open()


def test_another_file_under_the_same_mapping_is_not_taken(proc: Proc) -> None:
    with pytest.raises(FileGone, match="another file"):
        proc.open(inode=4)
    with pytest.raises(FileGone, match="another file"):
        proc.open(dev=4)
    proc.mount("btrfs")  # whose subvolumes have devices of their own
    os.close(proc.open(dev=4).fd)
    with pytest.raises(FileGone, match="another file"):
        proc.open(inode=4)


def test_a_mapping_that_moved_is_found_again(proc: Proc) -> None:
    dev, inode = dev_of(proc.real), proc.real.stat().st_ino
    with pytest.raises(FileGone, match="not mapped any more"):
        proc.open(start=0x5000)
    (proc.base / str(PID) / "maps").write_text(
        f"1000-2000 r-xp 00000000 {dev >> 20:02x}:{dev & 0xFFFFF:02x} {inode}    /lib.so\n"
    )
    os.close(proc.open(start=0x5000).fd)


def test_only_regular_files_are_opened(proc: Proc, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    proc.real = tmp_path / "pipe"
    proc.map(proc.real, "9000-a000")
    with pytest.raises(FileRefused, match="not a regular file"):
        proc.open(start=0x9000)


def test_an_overlay_is_trusted_in_our_own_user_namespace_only(proc: Proc) -> None:
    proc.mount("overlay")
    os.close(proc.open(dev=4).fd)
    link = proc.base / str(PID) / "ns" / "user"
    link.unlink()
    link.symlink_to("user:[4]")
    with pytest.raises(FileRefused, match="overlay that a user made"):
        proc.open(dev=4)


def test_a_file_whose_mount_nobody_shows_is_refused(proc: Proc) -> None:
    (proc.base / str(PID) / "mountinfo").write_text("")
    with pytest.raises(FileRefused, match="mount is not known"):
        proc.open()


def test_no_descriptor_is_left_behind(proc: Proc) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.close(proc.open().fd)
    for change in ({"inode": 4}, {"start": 0x5000}):
        with pytest.raises(FileGone):
            proc.open(**change)
    proc.mount("fuse")
    with pytest.raises(FileRefused):
        proc.open()
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_of_the_system_itself(real: Path, tmp_path: Path) -> None:
    opened = open_own(str(real))
    assert opened.identity == (dev_of(real), real.stat().st_ino)
    os.close(opened.fd)
    with pytest.raises(FileGone):
        open_own(str(tmp_path / "none"))
    with pytest.raises(FileRefused):
        open_own(str(tmp_path))
