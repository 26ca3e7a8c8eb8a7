"""Lookups that failed, held back until nothing more is asked for the same name. Pure.

One lookup may be several calls: the same thread asks in another way, or again after a failure that
may pass; another thread asks for the other family. Only when none follows has it failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from conmon.names import EAI_AGAIN, EAI_CANCELED
from monitor.correlate.lookup import Lookup
from monitor.decode import LookupEvent

__all__ = ["FailedLookups"]

_Process = tuple[int, int]  # pid, start
_Hints = tuple[int, int, bytes]  # family, flags, service: how a name was asked for

PER_PROCESS: Final = 256  # held of one process: each is compared with every new one


def _hints(event: LookupEvent) -> _Hints:
    return event.hint_family, event.hint_flags, event.service


def _process(lookup: Lookup) -> _Process:
    return lookup.task.pid, lookup.task.start_ns


@dataclass(slots=True)
class _Held:
    lookup: Lookup
    deadline_ns: int
    hints: set[_Hints]


class FailedLookups:
    """Failed lookups that wait, oldest first.

    Args:
        most: how many; :meth:`hold` refuses more.
    """

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._held: dict[_Process, list[_Held]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Lookup]:
        return (held.lookup for waiting in self._held.values() for held in waiting)

    def deadline_ns(self) -> int | None:
        """When the first of them has failed."""
        return min(
            (w.deadline_ns for waiting in self._held.values() for w in waiting), default=None
        )

    def found(self, lookup: Lookup) -> None:
        """A lookup came to something in the end."""
        self._take(lookup, None)

    def hold(self, lookup: Lookup, event: LookupEvent, until_ns: int) -> bool:
        """Hold a failed one back, with what it repeats; False where there is no room.

        Args:
            lookup: begins where what it repeats began.
            event: it, as the kernel told it.
            until_ns: when it has failed unless something follows.
        """
        hints = {_hints(event)}
        earlier = self._take(lookup, _hints(event))
        if earlier is not None:
            lookup.start_ns = earlier.lookup.start_ns
            hints |= earlier.hints
        waiting = self._held.get(_process(lookup), [])
        if self._count >= self._most or len(waiting) >= PER_PROCESS:
            return False
        waiting.append(_Held(lookup, until_ns, hints))
        self._held[_process(lookup)] = waiting
        self._count += 1
        return True

    def due(self, now_ns: int) -> list[Lookup]:
        """Let go of those that have failed by now."""
        failed = []
        for process, waiting in list(self._held.items()):
            if min(held.deadline_ns for held in waiting) > now_ns:
                continue
            failed += [held.lookup for held in waiting if held.deadline_ns <= now_ns]
            self._keep(process, [held for held in waiting if held.deadline_ns > now_ns])
        return failed

    def process_ended(self, process: _Process, until_ns: int) -> None:
        """Nothing follows any more."""
        for held in self._held.get(process, ()):
            held.deadline_ns = min(held.deadline_ns, until_ns)

    def clear(self) -> None:
        self._held.clear()
        self._count = 0

    # The held one that a lookup repeats. To ask in the same way for what does not exist is another
    # try, and the first one failed. hints: how it was asked; None where it succeeded.
    def _take(self, lookup: Lookup, hints: _Hints | None) -> _Held | None:
        waiting = self._held.get(_process(lookup), [])
        for held in waiting:
            before = held.lookup
            again = (
                before.task.tid == lookup.task.tid
                and before.name == lookup.name
                and (hints not in held.hints or before.ret in (EAI_AGAIN, EAI_CANCELED))
            )
            if again or before.is_twin(lookup):
                self._keep(_process(lookup), [x for x in waiting if x is not held])
                return held
        return None

    def _keep(self, process: _Process, waiting: list[_Held]) -> None:
        self._count += len(waiting) - len(self._held[process])
        if waiting:
            self._held[process] = waiting
        else:
            del self._held[process]
