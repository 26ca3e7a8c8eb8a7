"""Names for what the kernel gives as numbers: executables, systemd units, containers.

What a process acted as is learned from exec events, so that it is known after the process has
gone; for processes older than the monitor, from /proc when they first act.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from monitor.correlate.identity import Identity
from monitor.correlate.text import printable_text
from monitor.decode import ExecEvent
from monitor.kernel.cached_stat import inode_of

__all__ = ["ProcIdentities", "find_cgroup2", "unit_and_container"]

MAX_PROCESSES: Final = 8192
MAX_PATHS: Final = 4096
MAX_CGROUPS: Final = 4096
MAX_CMDLINES: Final = 2048
MAX_CMDLINE_BYTES: Final = 4096
_STATUS_BYTES: Final = 8192  # of /proc/PID/status; NSpid is among the first lines
# A walk over all cgroups for one unknown id is not repeated for ids that are gone.
MAX_CGROUPS_WALKED: Final = 20_000

# What one part of a cgroup's path says of a container.
_BY_ID: Final = re.compile(r"(?:^|.*[-:.])([0-9a-f]{64})(?:\.scope)?")
_BY_TASK: Final = re.compile(r"[0-9a-f]{32}-[0-9]{6,12}")  # of ECS on Fargate
_BY_MACHINE: Final = re.compile(r"(?:systemd-nspawn@(.+)\.service|machine-(.+)\.scope)")
_LXC: Final = "lxc.payload"
_NO_CONTAINER: Final = ("qemu-", "libvirt-")  # a virtual machine: machine-qemu\x2d1\x2dname.scope
_ESCAPED: Final = re.compile(r"\\x([0-9a-f]{2})")
_UNIT: Final = re.compile(r"^[\w@:.\\-]+\.(?:service|scope|socket|slice)$")


def find_cgroup2(mounts: str = "/proc/self/mounts") -> str | None:
    """Where the cgroup2 file system is mounted; None where it is not."""
    with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if len(fields) > 2 and fields[2] == "cgroup2":
                return fields[1].encode("latin-1", "replace").decode("unicode_escape")
    return None


def unit_and_container(path: str) -> tuple[str | None, str | None]:
    """Read systemd unit and container id out of a cgroup's path.

    The unit is the innermost service or scope. A container, the innermost likewise, is told by the
    64 hexadecimal digits that Docker, containerd, CRI-O, Podman and ECS put there, by what ECS on
    Fargate does, or by its name: LXC, LXD, Incus, systemd-nspawn. What only watches over one from
    outside (conmon, lxc.monitor) is not in it.
    """
    unit: str | None = None
    for part in reversed(path.split("/")):
        if part.endswith((".service", ".scope", ".socket")) and _UNIT.match(part):
            unit = part
            break
    return unit, _container(path.split("/"))


def _container(parts: list[str]) -> str | None:
    for at in range(len(parts) - 1, -1, -1):
        part = parts[at]
        before = parts[at - 1] if at else ""
        after = parts[at + 1] if at + 1 < len(parts) else ""
        found = _BY_ID.fullmatch(part)
        if found is not None and "conmon-" not in part:
            return found[1]
        if _BY_TASK.fullmatch(part) and any(other.startswith("ecs") for other in parts[:at]):
            return part
        if before in ("lxc", _LXC) and part:
            return part
        if part.startswith(f"{_LXC}.") and part != f"{_LXC}.":
            return part.removeprefix(f"{_LXC}.")
        found = _BY_MACHINE.fullmatch(part)
        if found is not None and after != "supervisor":
            name = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), found[1] or found[2])
            if not (found[2] and name.startswith(_NO_CONTAINER)):
                return name
    return None


class ProcIdentities:
    """Identities from exec events, /proc and the cgroup tree, remembered within bounds.

    Args:
        cgroup_root: the cgroup2 mount, None where there is none.
        proc: for tests.
        cmdlines: tell arguments, too, which may hold secrets.
    """

    def __init__(
        self, cgroup_root: str | None, proc: str = "/proc", *, cmdlines: bool = False
    ) -> None:
        self._wants_cmdlines = cmdlines
        self._cmdlines: OrderedDict[tuple[int, int], tuple[str, ...] | None] = OrderedDict()
        self._container_pids: OrderedDict[tuple[int, int], int | None] = OrderedDict()
        self._root = cgroup_root
        self._proc = Path(proc)
        # (pid, process start) -> (device, inode), path of the newest exec; by inode for processes
        # that forked and never exec'd
        self._exe_by_process: OrderedDict[tuple[int, int], tuple[tuple[int, int], str | None]] = (
            OrderedDict()
        )
        self._exe_by_inode: OrderedDict[tuple[int, int], str] = OrderedDict()
        self._cgroups: OrderedDict[int, tuple[str | None, str | None]] = OrderedDict()
        self._identities: OrderedDict[tuple[int, int, bytes, int, int, int], Identity] = (
            OrderedDict()
        )

    def learn(self, event: ExecEvent) -> None:
        """Take in that a process became another program."""
        task = event.task
        # one that the kernel side could not follow may still be asked for
        path = printable_text(event.path) if event.path else self._linked(task.pid, task.exe_ino)
        if self._wants_cmdlines:
            self._learn_cmdline(task.pid, task.start_ns, task.exe_ino)
        if self.unit_of(task.cgroup_id, task.pid)[1] is not None:
            self._learn_container_pid(task.pid, task.start_ns, task.exe_ino)
        file = (task.exe_dev, task.exe_ino)
        self._exe_by_process[(task.pid, task.start_ns)] = file, path
        if path is not None and task.exe_ino:
            self._exe_by_inode[file] = path
            _bound(self._exe_by_inode, MAX_PATHS)
        _bound(self._exe_by_process, MAX_PROCESSES)

    def identify(
        self, *, pid: int, start_ns: int, comm: bytes, exe_ino: int, exe_dev: int, cgroup_id: int
    ) -> Identity:
        """See :class:`monitor.correlate.identity.Identities`."""
        comm = comm.split(b"\0", 1)[0]
        # a process that becomes another program may keep its name: a wrapper, then the real one
        key = (pid, start_ns, comm, cgroup_id, exe_dev, exe_ino)
        known = self._identities.get(key)
        if known is not None:
            return known
        unit, container = self.unit_of(cgroup_id, pid)
        identity = Identity(
            printable_text(comm),
            self._exe(pid, start_ns, exe_ino, exe_dev),
            unit,
            container,
            self._cmdline(pid, start_ns, exe_ino) if self._wants_cmdlines else None,
            self._container_pid(pid, start_ns, exe_ino) if container is not None else None,
        )
        self._identities[key] = identity
        _bound(self._identities, MAX_PROCESSES)
        return identity

    def _exe(self, pid: int, start_ns: int, ino: int, dev: int) -> str | None:
        file, path = self._exe_by_process.get((pid, start_ns), (None, None))
        if path is not None and file == (dev, ino):
            return path
        path = self._linked(pid, ino)
        if path is None:
            return self._exe_by_inode.get((dev, ino))
        self._exe_by_inode[(dev, ino)] = path
        _bound(self._exe_by_inode, MAX_PATHS)
        return path

    # A pid alone could be another process by now; its inode cannot lie.
    def _linked(self, pid: int, ino: int) -> str | None:
        link = self._proc / str(pid) / "exe"
        try:
            if inode_of(link) == ino:
                return printable_text(os.fsencode(os.readlink(link))).removesuffix(" (deleted)")
        except OSError:
            pass
        return None

    def _cmdline(self, pid: int, start_ns: int, ino: int) -> tuple[str, ...] | None:
        if (pid, start_ns) not in self._cmdlines:
            self._learn_cmdline(pid, start_ns, ino)
        return self._cmdlines[pid, start_ns]

    def _learn_cmdline(self, pid: int, start_ns: int, ino: int) -> None:
        """Read the arguments, which a process that has just ended takes with it."""
        words: tuple[str, ...] | None = None
        try:
            with open(self._proc / str(pid) / "cmdline", "rb") as file:
                raw = file.read(MAX_CMDLINE_BYTES)
            # a pid alone could be another process by now
            if raw and inode_of(self._proc / str(pid) / "exe") == ino:
                words = tuple(printable_text(word) for word in raw.rstrip(b"\0").split(b"\0"))
        except OSError:
            words = None
        self._cmdlines[pid, start_ns] = words
        self._cmdlines.move_to_end((pid, start_ns))
        _bound(self._cmdlines, MAX_CMDLINES)

    def _container_pid(self, pid: int, start_ns: int, ino: int) -> int | None:
        if (pid, start_ns) not in self._container_pids:
            self._learn_container_pid(pid, start_ns, ino)
        return self._container_pids[pid, start_ns]

    def _learn_container_pid(self, pid: int, start_ns: int, ino: int) -> None:
        """Read what the process is called in its own pid namespace, while it lives."""
        inner: int | None = None
        try:
            with open(self._proc / str(pid) / "status", "rb") as file:
                raw = file.read(_STATUS_BYTES)
            pids = raw.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()
            # a pid alone could be another process by now
            if len(pids) > 1 and inode_of(self._proc / str(pid) / "exe") == ino:
                inner = int(pids[-1])
        except (OSError, ValueError):
            inner = None
        self._container_pids[pid, start_ns] = inner
        self._container_pids.move_to_end((pid, start_ns))
        _bound(self._container_pids, MAX_CMDLINES)

    def unit_of(self, cgroup_id: int, pid: int | None) -> tuple[str | None, str | None]:
        """Return systemd unit and container id of a cgroup, of which a process is in it."""
        if not cgroup_id:
            return None, None
        known = self._cgroups.get(cgroup_id)
        if known is not None:
            return known
        path = self._cgroup_of_process(cgroup_id, pid) or self._walk(cgroup_id)
        found = unit_and_container(path) if path else (None, None)
        self._cgroups[cgroup_id] = found
        _bound(self._cgroups, MAX_CGROUPS)
        return found

    def _cgroup_of_process(self, cgroup_id: int, pid: int | None) -> str | None:
        if self._root is None or pid is None:
            return None
        try:
            text = (self._proc / str(pid) / "cgroup").read_text(errors="backslashreplace")
        except OSError:
            return None
        for line in text.splitlines():
            if line.startswith("0::"):
                path = line[3:]
                try:
                    if os.stat(self._root + path).st_ino == cgroup_id:
                        return path
                except OSError:
                    pass
        return None

    def _walk(self, cgroup_id: int) -> str | None:
        if self._root is None:
            return None
        pending = [self._root]
        seen = 0
        while pending and seen < MAX_CGROUPS_WALKED:
            folder = pending.pop()
            try:
                with os.scandir(folder) as entries:
                    folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue
            for entry in folders:
                seen += 1
                if entry.inode() == cgroup_id:
                    return entry.path[len(self._root) :]
                pending.append(entry.path)
        return None


def _bound(table: OrderedDict[Any, Any], most: int) -> None:
    while len(table) > most:
        table.popitem(last=False)
