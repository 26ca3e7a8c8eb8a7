"""The short-lived child that lists sockets through sock_diag, and the only file that imports
pyroute2.

Started by monitor/kernel/older.py. Writes one line of JSON for each TCP connection that a local
process opened, in every network namespace that a process is in: the fields of
:class:`monitor.kernel.older.OlderConn`, in their order. Ends with 1, and a sentence on stderr,
where it could not look everywhere.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from pyroute2 import DiagSocket

from monitor.correlate.text import printable_text

MAX_LISTED: Final = 16_384  # a row is half a kilobyte of the daemon's memory
_MAX_FDS: Final = 1 << 20  # of all processes together
_CLONE_NEWNET: Final = 0x4000_0000
_LISTEN: Final = 10
# ESTABLISHED FIN_WAIT1 FIN_WAIT2 CLOSE_WAIT LAST_ACK LISTEN CLOSING; one in SYN_SENT is either
# seen or about to be
_STATES: Final = sum(1 << state for state in (1, 4, 5, 8, 9, 10, 11))
_TCP_INFO: Final = 1 << 1  # INET_DIAG_INFO
_CLOSED_BY_PEER: Final = (8, 9, 11)
_libc = ctypes.CDLL(None, use_errno=True)


def network_namespaces(proc: str = "/proc") -> dict[int, str]:
    """Return those that processes are in, and those kept by a mount: inode -> a path to it."""
    found: dict[int, str] = {}
    for pid in _pids(proc):
        path = f"{proc}/{pid}/ns/net"
        with suppress(OSError):
            found.setdefault(os.stat(path).st_ino, path)
    with open(f"{proc}/self/mounts", "rb") as lines:
        for line in lines:
            fields = line.split(b" ")
            if len(fields) > 2 and fields[2] == b"nsfs":
                path = os.fsdecode(fields[1].decode("latin-1").encode().decode("unicode_escape"))
                with suppress(OSError):
                    found.setdefault(os.stat(path).st_ino, path)
    return found


def socket_owners(proc: str = "/proc") -> dict[int, int]:
    """Return who holds which socket: inode -> the lowest pid."""
    owners: dict[int, int] = {}
    looked = 0
    for pid in sorted(_pids(proc)):
        try:
            names = os.listdir(f"{proc}/{pid}/fd")
        except OSError:
            continue
        for name in names:
            looked += 1
            if looked > _MAX_FDS:
                return owners
            try:
                target = os.readlink(f"{proc}/{pid}/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:["):
                owners.setdefault(int(target[8:-1]), pid)
    return owners


def _pids(proc: str) -> list[int]:
    return [int(name) for name in os.listdir(proc) if name.isdigit()]


def _enter(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)


def _sockets() -> Iterator[Any]:
    with DiagSocket() as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            for found in diag.get_sock_stats(family=family, states=_STATES, extensions=_TCP_INFO):
                if "idiag_state" not in found:  # pyroute2 hands errors out as if they were sockets
                    raise OSError(errno.EPROTONOSUPPORT, "sock_diag does not answer for TCP")
                yield found


def opened_here(sockets: list[Any]) -> list[Any]:
    """Leave out what listens, and what was accepted: its port is one that is listened on."""
    listening = {s["idiag_sport"] for s in sockets if s["idiag_state"] == _LISTEN}
    return [s for s in sockets if s["idiag_state"] != _LISTEN and s["idiag_sport"] not in listening]


def process_facts(pid: int | None, proc: str = "/proc") -> list[Any]:
    """Return comm, exe and start (ticks since boot) of a process; None: not to be had."""
    if pid is None:
        return [None, None, None]
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
        comm = printable_text(before.partition(b"(")[2])
        start = int(after.split()[19])
    except (OSError, ValueError, IndexError):
        return [None, None, None]
    exe = None
    with suppress(OSError):
        exe = printable_text(os.readlink(f"{proc}/{pid}/exe".encode())).removesuffix(" (deleted)")
    return [comm, exe, start]


def _row(found: Any, netns: int, owners: dict[int, int]) -> list[Any]:
    pid = owners.get(found["idiag_inode"])
    info = found.get_attr("INET_DIAG_INFO") or {}
    received = info.get("tcpi_bytes_received")
    # The kernel counts a received FIN as one byte (tcp_rcv_nxt_update).
    if received and found["idiag_state"] in _CLOSED_BY_PEER:
        received -= 1
    return [
        found["idiag_cookie"],
        netns,
        pid,
        *process_facts(pid),
        found["idiag_uid"],
        found.get_attr("INET_DIAG_CGROUP_ID") or 0,
        found["idiag_family"],
        found["idiag_src"],
        found["idiag_sport"],
        found["idiag_dst"],
        found["idiag_dport"],
        found["idiag_state"],
        info.get("tcpi_rtt") or None,
        info.get("tcpi_rttvar") if info.get("tcpi_rtt") else None,
        info.get("tcpi_total_retrans"),
        _less(info.get("tcpi_bytes_sent"), info.get("tcpi_bytes_retrans")),
        received,
    ]


def _less(sent: int | None, again: int | None) -> int | None:
    return None if sent is None else sent - (again or 0)


def main() -> int:
    """Run as ``python -m monitor.kernel.sockdiag_child``."""
    own = os.stat("/proc/self/ns/net").st_ino
    owners = socket_owners()
    listed = 0
    failed: OSError | None = None
    for netns, path in network_namespaces().items():
        try:
            if netns != own:
                _enter(path)
                own = netns
            found = opened_here(list(_sockets()))
        except (ProcessLookupError, FileNotFoundError):
            continue  # it has just ended
        except OSError as exc:
            # a mount of another kind of namespace cannot be entered as one
            failed = failed if exc.errno == errno.EINVAL else exc
            continue
        for each in found:
            if listed == MAX_LISTED:
                print(f"more than {MAX_LISTED} older connections", file=sys.stderr)
                return 1
            listed += 1
            sys.stdout.write(json.dumps(_row(each, netns, owners), separators=(",", ":")) + "\n")
    if failed is not None:
        print(f"cannot look into every network namespace: {failed.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
