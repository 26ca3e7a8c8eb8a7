"""Open the file behind another process's mapping, when that process may be hostile.

Three things must not happen: that a path steers us to another file, that opening does something
(devices, pipes), and that we wait for someone. A FUSE file system answers only when its owner, any
user, feels like it, so the mount is known before the file is asked anything: the file is first
taken as a bare reference (O_PATH), the reference names its mount, and the mount table, which is
the kernel's own, says what that is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import Final

from monitor.errors import SourceError
from monitor.kernel.mappings import Mapping, scan_process

__all__ = [
    "FileGone",
    "FileRefused",
    "Identity",
    "OpenedFile",
    "open_cached",
    "open_mapped",
    "open_own",
]

Identity = tuple[int | bytes, ...]
"""Equal for two openings of one real file, whatever mount it was reached through."""

# Served by a process of some user, or by another machine that may stop to answer.
_NOT_OURS: Final = re.compile(
    r"fuse(blk|\..*)?|virtiofs|9p|nfs4?|cifs|smb3|ceph|afs|coda|orangefs|lustre|glusterfs"
)
# A stat of these gives another device than the mapping: layers and subvolumes have their own.
_OWN_DEVICES: Final = frozenset({"overlay", "btrfs"})

_MAX_MOUNTS_BYTES: Final = 4 << 20  # a host with thousands of containers: 1 MB
_AT_EMPTY_PATH, _AT_HANDLE_FID = 0x1000, 0x200
_MAX_HANDLE: Final = 128
_SYS_OPENAT2: Final = 437  # the same on every architecture
# CACHED: only what the kernel has in memory, so that no file system is asked. What is mapped is.
_RESOLVE: Final = 0x02 | 0x04 | 0x10 | 0x20  # NO_MAGICLINKS NO_SYMLINKS IN_ROOT CACHED

# The same with symbolic links, for names that a distribution links: libc.so.6 -> libc-2.31.so.
_RESOLVE_LINKS: Final = _RESOLVE & ~0x04

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class FileGone(SourceError):
    """The process or the mapping is gone; another process may bring the file back."""


class FileRefused(SourceError):
    """The file is none that may be read or probed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    """A regular file, open for reading; ``fd`` is the receiver's to close."""

    fd: int
    identity: Identity
    dev: int
    """As stat says it, in the kernel's encoding."""
    inode: int


def open_mapped(mapping: Mapping, proc: str = "/proc") -> OpenedFile:
    """Open the file that a process has mapped.

    Raises:
        FileGone: it is not mapped there any more.
        FileRefused: not a regular file, or on a file system that may make us wait.
    Source: proc_pid_map_files(5), openat2(2), proc_pid_mountinfo(5).
    """
    reference = _take_reference(mapping, proc)
    try:
        mount_id = _mount_id(reference)
        fstype, dev = _mount(mapping.pid, mount_id, proc, device=mapping.key[0])
        _check_mount(mapping.pid, fstype, dev, proc)
        status = os.fstat(reference)
        found_dev = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
        wanted_dev, wanted_inode, _ = mapping.key
        if status.st_ino != wanted_inode or (
            found_dev != wanted_dev and fstype not in _OWN_DEVICES
        ):
            raise FileGone("another file is mapped there now")
        return _reopen(reference, status, fstype)
    except OSError as exc:
        raise FileGone(f"cannot open a mapped file: {exc.strerror}") from exc
    finally:
        os.close(reference)


def open_own(path: str) -> OpenedFile:
    """Open a file of the system itself: a path that only root can change.

    Raises:
        FileGone: there is none.
        FileRefused: not a regular file.
    """
    try:
        reference = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as exc:
        raise FileGone(f"cannot open {path}: {exc.strerror}") from exc
    try:
        fstype, _ = _mount(os.getpid(), _mount_id(reference), "/proc")
        return _reopen(reference, os.fstat(reference), fstype)
    except OSError as exc:
        raise FileGone(f"cannot open {path}: {exc.strerror}") from exc
    finally:
        os.close(reference)


def _reopen(reference: int, status: os.stat_result, fstype: str) -> OpenedFile:
    if not stat.S_ISREG(status.st_mode):
        raise FileRefused("it is not a regular file")
    dev = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    identity: Identity = (dev, status.st_ino)
    if fstype == "overlay" and (handle := _file_handle(reference)):
        identity = (handle, status.st_size)
    fd = os.open(
        f"/proc/self/fd/{reference}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    )
    return OpenedFile(fd=fd, identity=identity, dev=dev, inode=status.st_ino)


# A descriptor that names the file and does nothing else: no file system is asked for it.
def _take_reference(mapping: Mapping, proc: str) -> int:
    base = f"{proc}/{mapping.pid}"
    try:
        return _open_range(base, mapping)
    except FileNotFoundError:
        # The mapping was split or moved since. Where is the file now?
        for now in scan_process(mapping.pid, proc):
            if now.key[:2] == mapping.key[:2]:
                try:
                    return _open_range(base, now)
                except OSError:
                    break
        raise FileGone("it is not mapped any more") from None
    except PermissionError:
        # map_files takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; the path in the root directory
        # of the process takes neither. The inode is checked afterwards.
        return _open_in_root(base, mapping.path)
    except OSError as exc:
        raise FileGone(f"cannot open a mapped file: {exc.strerror}") from exc


def _open_range(base: str, mapping: Mapping) -> int:
    name = f"{base}/map_files/{mapping.start:x}-{mapping.end:x}"
    return os.open(name, os.O_PATH | os.O_CLOEXEC)


def open_cached(mapping: Mapping, path: str, proc: str = "/proc") -> OpenedFile:
    """Open a file by its path in the root directory of a process, if that takes no waiting: every
    step of the path must be in the kernel's memory (Linux 5.12).

    Args:
        mapping: something that the process has mapped.
        path: absolute.
    Raises:
        FileGone: there is none, or not in memory, or the process has ended.
        FileRefused: not a regular file, or on a file system that may make us wait.
    """
    pid = mapping.pid
    reference = _open_in_root(f"{proc}/{pid}", os.fsencode(path), _RESOLVE_LINKS)
    try:
        mount_id = _mount_id(reference)
        fstype, dev = _mount(pid, mount_id, proc, _device_of_mount(mapping, mount_id, proc))
        _check_mount(pid, fstype, dev, proc)
        return _reopen(reference, os.fstat(reference), fstype)
    except OSError as exc:
        raise FileGone(f"cannot open {path}: {exc.strerror}") from exc
    finally:
        os.close(reference)


# The device of a mount, if what is mapped lies on the same one.
def _device_of_mount(mapping: Mapping, mount_id: int, proc: str) -> int | None:
    mapped = _take_reference(mapping, proc)
    try:
        return mapping.key[0] if _mount_id(mapped) == mount_id else None
    finally:
        os.close(mapped)


def _check_mount(pid: int, fstype: str, dev: str, proc: str) -> None:
    if _NOT_OURS.fullmatch(fstype):
        raise FileRefused(f"it lies on {fstype}, which may make a reader wait for ever")
    if fstype == "overlay" and not _is_trusted_overlay(pid, dev, proc):
        raise FileRefused("it lies on an overlay that a user made, over who knows what")


def _open_in_root(base: str, path: bytes, resolve: int = _RESOLVE) -> int:
    try:
        root = os.open(f"{base}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise FileGone(f"cannot open a mapped file: {exc.strerror}") from exc
    try:
        how = ctypes.create_string_buffer(
            struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, resolve), 24
        )
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), root, path, how, ctypes.c_size_t(24)
        )  # fmt: skip
    finally:
        os.close(root)
    if fd < 0:
        reason = os.strerror(ctypes.get_errno())
        if ctypes.get_errno() == errno.ENOSYS:
            reason = "it takes CAP_CHECKPOINT_RESTORE, or Linux 5.12"
        raise FileGone(f"cannot open a mapped file: {reason}")
    return fd


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise FileRefused("its mount is not known")


# (type of the file system, its device)
def _mount(pid: int, mount_id: int, proc: str, device: int | None = None) -> tuple[str, str]:
    needle = b"\n%d " % mount_id
    for whose in (str(pid), "self"):  # a mapping can outlive its mount in its own namespace
        try:
            with open(f"{proc}/{whose}/mountinfo", "rb") as file:
                table = b"\n" + file.read(_MAX_MOUNTS_BYTES)
        except OSError:
            continue
        at = table.find(needle)
        if at >= 0:
            line = table[at + 1 :].split(b"\n", 1)[0]
            fields, _, tail = line.partition(b" - ")
            return tail.split(b" ", 1)[0].decode("ascii", "replace"), fields.split()[2].decode()
    # A process in a chroot is not shown the mount that its root lies in. If we have the same file
    # system mounted, its device tells.
    if device is not None:
        number = f"{device >> 20}:{device & 0xFFFFF}"
        with open(f"{proc}/self/mountinfo", "rb") as file:
            for line in file:
                fields, _, tail = line.partition(b" - ")
                if fields.split(b" ", 3)[2].decode() == number:
                    return tail.split(b" ", 1)[0].decode("ascii", "replace"), number
    raise FileRefused("its mount is not known")


# A user may lay an overlay over a FUSE file system of his in a user namespace of his. One that
# our own mounts show, or that is used in our own user namespace, root has made.
def _is_trusted_overlay(pid: int, dev: str, proc: str) -> bool:
    if os.readlink(f"{proc}/{pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        return True
    with open("/proc/self/mountinfo") as mounts:
        return any(line.split(" ", 3)[2] == dev for line in mounts)


# Two containers of one image share the file below their overlays, and the probe sits there. Its
# own handle, which overlays pass on from Linux 6.6, tells; before, both would be probed.
def _file_handle(fd: int) -> bytes | None:
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", _MAX_HANDLE, 0), 8 + _MAX_HANDLE)
    mount_id = ctypes.c_int()
    failed = _libc.name_to_handle_at(
        fd, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH | _AT_HANDLE_FID
    )
    if failed:
        return None
    size, _ = struct.unpack_from("=Ii", buffer)
    return buffer.raw[4 : 8 + min(size, _MAX_HANDLE)]
