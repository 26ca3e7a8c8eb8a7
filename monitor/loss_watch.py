"""What the kernel side lost since it was asked last, as the correlator wants to know it."""

from __future__ import annotations

from typing import Final, Protocol

from monitor.correlate import Lost
from monitor.kernel.kernel import LOST_COUNTERS
from monitor.kernel.losses import Losses

__all__ = ["LossWatch"]

# Kinds by what they leave unknown; the others leave nothing of a connection.
_CONNS: Final = ("lost_conn", "conn_full")
_LOOKUPS: Final = ("lost_lookup", "lookup_full", "lost_dns", "lost_exec")
_HELLO: Final = "lost_hello"
_PLAIN: Final = "lost_plain"


class _Kernel(Protocol):
    losses: Losses

    def missed(self) -> int: ...


class LossWatch:
    """Notices losses.

    Args:
        kernel: the kernel side.
    """

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._missed = 0
        self._counted = 0

    @property
    def total(self) -> int:
        """How many were noticed."""
        return self._counted + self._missed

    def counted(self) -> Lost | None:
        """What the programs counted themselves; None where that is nothing new.

        To be asked before a record is made: what it may have lost was counted before its end was
        handed over. Costs no system call.
        """
        if not self._kernel.losses.changed():
            return None
        losses = self._kernel.losses.read()
        counted = sum(losses[name][0] for name in LOST_COUNTERS)
        fresh, self._counted = counted - self._counted, counted
        return Lost(
            fresh,
            losses[_PLAIN][1],
            conn_ns=max(losses[name][1] for name in _CONNS),
            lookup_ns=max(losses[name][1] for name in _LOOKUPS),
            hello_ns=losses[_HELLO][1],
        )

    def missed(self, now_ns: int) -> Lost | None:
        """Runs that the kernel skipped, which it counts without the time and tells by system calls:
        to be asked now and then."""
        missed = self._kernel.missed()
        fresh, self._missed = missed - self._missed, missed
        return Lost(fresh, now_ns) if fresh > 0 else None
