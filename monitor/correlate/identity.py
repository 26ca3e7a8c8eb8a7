"""Who made a connection, in words. The shell that answers is monitor/kernel/identities.py."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Identities", "Identity"]


class Identity(NamedTuple):
    """A process as a record names it; None where not known."""

    comm: str | None = None
    exe: str | None = None
    unit: str | None = None
    container: str | None = None
    cmdline: tuple[str, ...] | None = None
    """Only where the configuration asks for it."""
    container_pid: int | None = None
    """Its pid as its container sees it."""


class Identities(Protocol):
    """Knows processes by what the kernel noted when they acted."""

    def identify(
        self, *, pid: int, start_ns: int, comm: bytes, exe_ino: int, exe_dev: int, cgroup_id: int
    ) -> Identity:
        """Return what is known of a process, which may be gone."""
        ...
