"""Why a connect() failed before it sent anything: the routing table is asked the same question.

No hook that every kernel has shows connect()'s own result, but nearly all that fails there fails
for want of a route, and the kernel answers RTM_GETROUTE with the errno that connect() returned.
One message on a plain netlink socket: pyroute2 would take 22 MB of the daemon's 25
(docs/dependencies.md).
"""

from __future__ import annotations

import ctypes
import glob
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import Final

__all__ = ["connect_errno"]

_RTM_GETROUTE: Final = 26
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_CLONE_NEWNET: Final = 0x40000000
_ANSWER_SECONDS: Final = 0.2
_MOST_CANDIDATES: Final = 64

_libc = ctypes.CDLL(None, use_errno=True)


def connect_errno(family: int, address: bytes, netns: int, pids: tuple[int, ...]) -> int | None:
    """Ask the kernel for a route as connect() would.

    Args:
        family: AF_INET or AF_INET6.
        address: 4 or 16 bytes, network order.
        netns: inode of the network namespace to ask in.
        pids: processes that may be in it.
    Returns:
        The errno; 0 if there is a route, so that something else failed; None if that namespace
        cannot be found or entered any more.
    """
    if os.stat("/proc/self/ns/net").st_ino == netns:
        return _ask(family, address)
    fd = _open_namespace(netns, pids)
    if fd is None:
        return None
    answer: list[int | None] = [None]

    def ask_there() -> None:  # a thread may be elsewhere than its process, and ends there
        if _libc.setns(fd, _CLONE_NEWNET) == 0:
            answer[0] = _ask(family, address)

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


def _ask(family: int, address: bytes) -> int | None:
    rtattr = struct.pack("=HH", 4 + len(address), _RTA_DST) + address
    rtmsg = struct.pack("=BBBBBBBBI", family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
    body = rtmsg + rtattr
    header = struct.pack("=IHHII", 16 + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
            netlink.settimeout(_ANSWER_SECONDS)
            netlink.send(header + body)
            answer = netlink.recv(4096)
    except OSError:
        return None
    if len(answer) < 20:
        return None
    kind, result = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
    if kind == _NLMSG_ERROR:
        return -int(result)
    if len(answer) > 23:
        route_type = answer[16 + 7]
        # unreachable, blackhole and prohibit routes of IPv6 come back as routes
        return {6: 22, 7: 113, 8: 13}.get(route_type, 0)
    return 0
