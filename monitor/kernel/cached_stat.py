"""A file's inode number, by what the kernel has in memory.

stat() of a file on FUSE or a network file system asks its server, which may be any user's process
and answer when it likes. Whoever must not wait takes what is known here.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

__all__ = ["inode_of"]

_AT_FDCWD: Final = -100
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_INO: Final = 0x100
_SIZE, _INO_AT = 256, 32  # of struct statx
_libc = ctypes.CDLL(None, use_errno=True)


def inode_of(path: str | os.PathLike[str]) -> int:
    """Return the inode number of what a path leads to, without asking a file system's server.

    Raises:
        OSError: it leads nowhere, or this C library has no statx() (before glibc 2.28).
    Source: statx(2).
    """
    statx = getattr(_libc, "statx", None)
    if statx is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(_SIZE)
    if statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_INO, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))
    return int.from_bytes(buffer.raw[_INO_AT : _INO_AT + 8], "little")
