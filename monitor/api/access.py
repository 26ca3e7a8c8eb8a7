"""Who asks, as the kernel knows it, and what they may see."""

from __future__ import annotations

import errno
import grp
import socket
import struct
from typing import Final, NamedTuple

__all__ = ["Asker", "group_id", "who_asks"]

_SO_PEERGROUPS: Final = 59
_MOST_GROUPS: Final = 65_536  # NGROUPS_MAX


class Asker(NamedTuple):
    """A peer of the query socket."""

    uid: int | None
    """None: not a local user, a scraper over TCP."""
    sees_all: bool
    metrics_only: bool = False

    @property
    def uid_only(self) -> int | None:
        """The one uid whose connections may be shown; None: all of them."""
        return None if self.sees_all else self.uid


def group_id(name: str) -> int | None:
    """Return the id of the group whose members see all; None where there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def who_asks(peer: socket.socket, group: int | None) -> Asker:
    """Return who is at the other end, as of when they connected.

    Args:
        peer: a connected Unix stream socket.
        group: members of it see all, besides root.
    Raises:
        OSError: the kernel does not say.
    """
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, gid = struct.unpack("=iII", raw)
    sees_all = uid == 0 or (group is not None and (gid == group or group in _groups(peer)))
    return Asker(uid, sees_all)


def _groups(peer: socket.socket) -> tuple[int, ...]:
    size = 256
    while True:
        try:
            raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size)
        except OSError as exc:
            if exc.errno == errno.ERANGE and size < 4 * _MOST_GROUPS:
                size *= 4
                continue
            if exc.errno == errno.ENOPROTOOPT:  # before Linux 4.13
                return ()
            raise
        return struct.unpack(f"={len(raw) // 4}I", raw)
