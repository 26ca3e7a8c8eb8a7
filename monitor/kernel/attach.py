"""Attaches what was loaded. Every attachment is a descriptor, so all of them end with this
process, however it ends."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from monitor.errors import MonitorError, SourceError
from monitor.kernel import bpf_syscall
from monitor.kernel.loader import Loaded
from monitor.kernel.programs import AGAIN, CGROUP_HOOKS, PROGRAMS, TRACEPOINTS

__all__ = ["Attached", "attach"]

# Without these there is no record at all.
_REQUIRED = ("inet_sock_set_state",)

# Linux 5.10 has it not: doctor says so where it lists the hooks, and nothing is wrong with that.
_EXTRA = ("inet_sk_error_report",)

# What stays unseen without a hook, for the one sentence that says so.
_UNSEEN = {
    "sock_state_again": "now and then the end of a connection, where two fall together",
    "sched_process_exec": "the executable of processes that live only a moment",
    "sched_process_exit": "the end of processes",
    "packet_ingress": "first responses, TLS on the wire and turns",
    "packet_egress": "first responses, TLS on the wire and turns",
    "sock_release": "connections that fail before anything is sent (no route)",
    "connect4_enter": "IPv4 connections that fail before anything is sent (no route)",
    "connect6_enter": "IPv6 connections that fail before anything is sent (no route)",
}


@dataclass(slots=True)
class Attached:
    """What runs in the kernel."""

    descriptors: dict[str, int] = field(default_factory=dict)
    """Tracepoint or cgroup hook -> descriptor."""
    failed: dict[str, str] = field(default_factory=dict)
    """Tracepoint or cgroup hook -> one sentence."""

    def unseen(self) -> list[str]:
        """One sentence for each reason that something will not be seen."""
        by_reason: dict[str, list[str]] = {}
        for hook, reason in self.failed.items():
            if hook in _EXTRA:
                continue
            what = by_reason.setdefault(reason, [])
            if _UNSEEN[hook] not in what:
                what.append(_UNSEEN[hook])
        return [f"{reason}; not seen: {', '.join(what)}" for reason, what in by_reason.items()]

    def close(self) -> None:
        """Detach everything."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()


def attach(loaded: Loaded, cgroup: str | None) -> Attached:
    """Attach tracepoints and cgroup programs.

    Args:
        loaded: what the kernel accepted.
        cgroup: the cgroup2 mount; None where there is none.
    Raises:
        SourceError: a hook without which there is no record.
    """
    attached = Attached()
    try:
        for tracepoint, program in TRACEPOINTS.items():
            try:
                attached.descriptors[tracepoint] = bpf_syscall.open_raw_tracepoint(
                    tracepoint, _program(loaded, program)
                )
            except MonitorError as exc:
                if tracepoint in _REQUIRED:
                    raise
                attached.failed[tracepoint] = str(exc)
        for tracepoint, program in AGAIN.items():
            try:
                attached.descriptors[program] = bpf_syscall.open_raw_tracepoint(
                    tracepoint, _program(loaded, program)
                )
            except MonitorError as exc:
                attached.failed[program] = str(exc)
        _attach_cgroup(loaded, cgroup, attached)
    except BaseException:
        attached.close()
        raise
    return attached


def _program(loaded: Loaded, name: str) -> int:
    if name in loaded.failed:
        raise SourceError(loaded.failed[name])
    return loaded.programs[name]


def _attach_cgroup(loaded: Loaded, cgroup: str | None, attached: Attached) -> None:
    if cgroup is None:
        for hook in CGROUP_HOOKS:
            attached.failed[hook] = "no cgroup2 file system is mounted"
        return
    types = {program.name: program.attach_type for program in PROGRAMS}
    try:
        folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        for hook in CGROUP_HOOKS:
            attached.failed[hook] = f"cannot open {cgroup}: {exc.strerror}"
        return
    try:
        for hook in CGROUP_HOOKS:
            # connect_enter's notes are ended by sock_release: never one without the other
            if hook.startswith("connect") and "sock_release" in attached.failed:
                attached.failed[hook] = attached.failed["sock_release"]
                continue
            try:
                attached.descriptors[hook] = bpf_syscall.link_cgroup(
                    _program(loaded, hook), folder, types[hook]
                )
            except MonitorError as exc:
                attached.failed[hook] = str(exc)
    finally:
        os.close(folder)
