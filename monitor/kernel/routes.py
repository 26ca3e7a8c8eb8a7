"""Why a connect() failed before it sent anything: a socket of our own is connected the same way.

No hook that every kernel has shows connect()'s own result. But nearly all that fails there fails
for want of a route or of an address to come from, and UDP's connect() looks for both as TCP's
does, with the same errno, and sends nothing.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import socket
import threading
from contextlib import suppress
from typing import Final, NamedTuple

__all__ = ["Way", "connect_errno"]

_CLONE_NEWNET: Final = 0x40000000
_MOST_CANDIDATES: Final = 64
_SO_BINDTOIFINDEX: Final = 62
_IP_FREEBIND: Final = 15
_IPV6_FREEBIND: Final = 78

# What says more of our own socket than of the other: a policy on this process, no free UDP port.
_OURS: Final = frozenset(
    (errno.EPERM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
)

_libc = ctypes.CDLL(None, use_errno=True)


class Way(NamedTuple):
    """What decides a route."""

    address: bytes
    """4 or 16 bytes, network order."""
    port: int
    source: bytes = b""
    """That the socket was bound to; zeros or nothing: none."""
    mark: int = 0
    interface: int = 0


def connect_errno(way: Way, netns: int, pids: tuple[int, ...]) -> int | None:
    """Ask the kernel for a way as connect() would.

    Args:
        way: where to, and from where.
        netns: inode of the network namespace to ask in.
        pids: processes that may be in it.
    Returns:
        The errno; 0 if there is a way, so that something else failed; None if that namespace
        cannot be found or entered any more, or the answer would be about this process.
    """
    if os.stat("/proc/self/ns/net").st_ino == netns:
        return _ask(way)
    fd = _open_namespace(netns, pids)
    if fd is None:
        return None
    answer: list[int | None] = [None]

    def ask_there() -> None:  # a thread may be elsewhere than its process, and ends there
        if _libc.setns(fd, _CLONE_NEWNET) == 0:
            answer[0] = _ask(way)

    worker = threading.Thread(target=ask_there)
    worker.start()
    worker.join()
    os.close(fd)
    return answer[0]


def _open_namespace(netns: int, pids: tuple[int, ...]) -> int | None:
    paths = [f"/proc/{pid}/ns/net" for pid in pids]
    paths += glob.glob("/run/netns/*")[:_MOST_CANDIDATES]
    for path in paths:
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            if os.fstat(fd).st_ino == netns:
                return fd
            os.close(fd)
    return None


def _ask(way: Way) -> int | None:
    narrow = len(way.address) == 4
    if not narrow and way.address[0] == 0xFF:
        return errno.ENETUNREACH  # TCP asks no further
    found = _try(way, broadcast=True)
    # TCP has no use for what goes to many
    if found == 0 and narrow and (way.address[0] >> 4 == 0xE or _is_broadcast(way)):
        return errno.ENETUNREACH
    return None if found in _OURS else found


def _is_broadcast(way: Way) -> bool:
    return _try(way, broadcast=False) == errno.EACCES


# broadcast: whether that is allowed; where it is not, it alone is EACCES.
def _try(way: Way, *, broadcast: bool) -> int | None:
    narrow = len(way.address) == 4
    family = socket.AF_INET if narrow else socket.AF_INET6
    text = socket.inet_ntop(family, way.address)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                if broadcast and narrow:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                if way.mark:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, way.mark)
                if way.interface:
                    sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, way.interface)
                if any(way.source) and len(way.source) == len(way.address):
                    if narrow:
                        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                    else:
                        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
                    source = socket.inet_ntop(family, way.source)
                    sock.bind((source, 0) if narrow else (source, 0, 0, way.interface))
            except OSError:
                return None
            sock.connect((text, way.port) if narrow else (text, way.port, 0, way.interface))
    except OSError as exc:
        return exc.errno
    return 0
