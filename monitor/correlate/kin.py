"""Which processes one descends from. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from monitor.decode import Task

__all__ = ["Kin"]

MAX_PARENTS: Final = 8192  # processes whose parent is remembered
ANCESTORS: Final = 4  # generations looked back: Erlang's resolver is a great-grandchild


class Kin:
    """The parents of processes that have run another program since conmond began."""

    def __init__(self) -> None:
        # by pid: the parent's, and its own start
        self._parents: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def executed(self, task: Task) -> None:
        """A process runs a program."""
        self._parents[task.pid] = task.ppid, task.start_ns
        if len(self._parents) > MAX_PARENTS:
            self._parents.popitem(last=False)

    def ended(self, pid: int) -> None:
        """A process has ended."""
        self._parents.pop(pid, None)

    def ancestors(self, task: Task) -> list[tuple[int, int]]:
        """The pids of those that a process descends from, the nearest first, and when the next one
        down from each was started: who has that pid and started later is another."""
        found: list[tuple[int, int]] = []
        pid, before_ns = task.ppid, task.start_ns
        while pid > 1 and len(found) < ANCESTORS:
            found.append((pid, before_ns))
            pid, before_ns = self._parents.get(pid, (0, 0))
        return found
