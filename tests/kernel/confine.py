"""Runs a command under the limits of a systemd unit, as far as they can be had without systemd.

    confine.py UNIT FOLDER COMMAND ...

Capabilities, system calls, address families, namespaces, writable and executable memory, limits
on resources, a root directory that is read-only but for FOLDER. Needs root and libseccomp, which
systemd itself uses. Not tried here: what hides folders (PrivateTmp, PrivateDevices, ProtectHome),
and memory and processor bounds.
"""

import contextlib
import ctypes
import errno
import os
import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NOT_EQUAL, EQUAL, MASKED_EQUAL = 1, 4, 7
PROT_WRITE, PROT_EXEC = 2, 4
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
CLONE_NEWNS, MS_REC, MS_BIND, MS_SLAVE = 0x20000, 0x4000, 0x1000, 0x80000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY = 442, -100, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38

libc = ctypes.CDLL(None, use_errno=True)


class Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint), ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64), ("b", ctypes.c_uint64),
    )  # fmt: skip


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def settings(unit):
    """Setting -> its lines, as systemd joins them: an empty one begins anew."""
    found = {}
    for line in Path(unit).read_text().splitlines():
        if "=" in line and line[0] not in "#[":
            key, _, value = line.partition("=")
            if not value:
                found[key] = []
            found.setdefault(key, []).extend([value] if value else [])
    return found


def in_set(name):
    """The system calls of a set of systemd's, such as @basic-io."""
    if not name.startswith("@"):
        return {name}
    listing = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    words = {line.strip() for line in listing.splitlines()[1:]}
    return {
        call for word in words if word and word[0] != "#" and word != name for call in in_set(word)
    }


def allowed_calls(lines):
    calls = in_set("@default")
    for line in lines:
        names = {call for word in line.lstrip("~").split() for call in in_set(word)}
        calls = calls - names if line.startswith("~") else calls | names
    return calls


class Filter:
    """A seccomp filter."""

    def __init__(self, default):
        self.lib = ctypes.CDLL("libseccomp.so.2")
        self.lib.seccomp_init.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.lib.seccomp_init(ctypes.c_uint32(default)))

    def rule(self, action, call, *comparisons):
        number = self.lib.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return  # none of this architecture
        array = (Comparison * max(1, len(comparisons)))(*comparisons)
        failed = self.lib.seccomp_rule_add_array(
            self.context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        assert not failed, (call, failed)

    def load(self):
        failed = self.lib.seccomp_load(self.context)
        assert not failed, failed


def confine_memory_and_sockets(unit):
    refuse = Filter(ALLOW)
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        both = PROT_WRITE | PROT_EXEC
        refuse.rule(ERRNO | errno.EPERM, "mmap", Comparison(2, MASKED_EQUAL, both, both))
        for call in ("mprotect", "pkey_mprotect"):
            refuse.rule(
                ERRNO | errno.EPERM, call, Comparison(2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC)
            )
    if unit["RestrictNamespaces"] == ["net"]:
        # what is left may be entered by its kind alone
        refuse.rule(ERRNO | errno.EPERM, "setns", Comparison(1, NOT_EQUAL, CLONE_NEWNET, 0))
        for kind in (CLONE_NEWNS, CLONE_NEWUSER):
            refuse.rule(ERRNO | errno.EPERM, "unshare", Comparison(0, MASKED_EQUAL, kind, kind))
    families = {getattr(socket, name) for name in " ".join(unit["RestrictAddressFamilies"]).split()}
    for family in set(range(46)) - families:
        refuse.rule(
            ERRNO | errno.EAFNOSUPPORT, "socket", Comparison(0, EQUAL, family, 0)
        )  # fmt: skip
    refuse.load()


def main(unit_file, folder, *command):
    unit = settings(unit_file)
    kept = set(unit["CapabilityBoundingSet"])
    calls = allowed_calls(unit["SystemCallFilter"])

    nofile = int(unit["LimitNOFILE"][0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
    with contextlib.suppress(ValueError):  # this root may not raise it: then less will do
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)

    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(None, b"/", None, MS_REC | MS_SLAVE, None))
    place = os.fsencode(folder)
    check(libc.mount(place, place, None, MS_BIND, None))
    # ProtectKernelTunables hides it
    check(libc.mount(b"/dev/null", b"/proc/kallsyms", None, MS_BIND, None))
    for path, set_, clear, flags in (
        (b"/", ATTR_RDONLY, 0, AT_RECURSIVE), (place, 0, ATTR_RDONLY, 0),
    ):  # fmt: skip
        attributes = struct.pack("=4Q", set_, clear, 0, 0)
        # /proc and /sys, too: ProtectKernelTunables, ProtectControlGroups
        check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, attributes, 32))

    names = capability_numbers()
    for name, number in names.items():
        if name not in kept:
            check(libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0))
    assert kept <= set(names), kept - set(names)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    confine_memory_and_sockets(unit)
    permit = Filter(ERRNO | errno.EPERM)
    for call in sorted(calls):
        permit.rule(ALLOW, call)
    permit.load()
    os.execvp(command[0], command)


def capability_numbers():
    """Name -> number of each that this kernel knows."""
    listing = subprocess.run(
        ["systemd-analyze", "capability", "--no-pager"], capture_output=True, text=True, check=True
    ).stdout
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    rows = (line.split() for line in listing.splitlines()[1:])
    return {row[0].upper(): int(row[1]) for row in rows if len(row) == 2 and int(row[1]) <= last}


if __name__ == "__main__":
    main(*sys.argv[1:])
