"""Lookups seen on the wire that may yet fail. Pure.

All questions of one process for one name are one entry. Which entries are one lookup, since they
are tries of a search list, is found when one of them is due.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from conmon.names import EAI_AGAIN, EAI_NONAME
from monitor.correlate.search import NEXT_TRY_NS, is_next_try
from monitor.decode import Task

__all__ = ["GIVE_UP_NS", "HOLD_NS", "SAME_LOOKUP_NS", "Process", "Undecided", "UndecidedTable"]

# A and AAAA of one lookup are asked together or one after the other.
SAME_LOOKUP_NS: Final = 5_000_000_000
MAX_TRIES: Final = 16  # names of one lookup: resolvers take at most six search domains
HOLD_NS: Final = 400_000_000
GIVE_UP_NS: Final = 15_000_000_000  # glibc's longest wait for one server is 10 s
_NEVER: Final = 1 << 63
# To look through many takes some milliseconds, so they are looked through seldom: this for each.
_REST_NS: Final = 50_000
_SWEEP_NS: Final = 1_000_000_000  # what was answered is let go of
_FEW: Final = 64  # their deadline is always the exact one

Process = tuple[int, int]  # pid, start
_Key = tuple[Process, bytes]


@dataclass(slots=True, eq=False)
class Undecided:
    """All questions of a process for one name."""

    task: Task
    first_ns: int
    last_ns: int
    raw: bytes
    """The question, and perhaps the beginning of what follows it."""
    server: bool = False
    """Asked to answer others: no failure of its own."""
    waiting: set[tuple[int, int]] = field(default_factory=set)
    ret: int = 0
    """EAI_ code of an answer without records."""
    unanswered: bool = False
    """A question's socket and number were used again before its answer came."""
    over_ns: int = 0
    """When its process ended; 0: it has not."""
    stub: bool = False
    """The server is systemd-resolved's stub."""
    answered: bool = False
    """One came with records, or says to ask again over TCP."""
    asked_ns: dict[int, int] = field(default_factory=dict)
    """When each type was first asked for of those without an answer yet."""
    kinds: set[int] = field(default_factory=set)
    """The types asked for since begun_ns."""
    begun_ns: int = 0
    """As of an exchange."""
    tries: tuple[bytes, ...] = ()
    """The names asked for since then, this one last."""
    before: Undecided | None = None
    """Of the name before it."""
    root: Undecided | None = None
    """Of the first of them; None: this one."""

    @property
    def is_pending(self) -> bool:
        """Whether a question is without an answer."""
        return bool(self.waiting) or self.unanswered

    def left(self, key: tuple[int, int]) -> None:
        """A question is known by that no more, and has had no answer."""
        if key in self.waiting:
            self.waiting.discard(key)
            self.unanswered = True

    def follows(self, ts_ns: int) -> bool:
        """Whether a question at that time is part of it."""
        # who got no answer asks again, after 5 s and more
        repeated = self.is_pending and not self.answered
        return ts_ns - self.last_ns <= (GIVE_UP_NS if repeated else SAME_LOOKUP_NS)

    def is_anew(self, kind: int) -> bool:
        """Whether a question for this type begins another lookup of the name."""
        unsettled = self.ret == EAI_AGAIN and not self.answered  # asked again, of another server
        asked = kind in self.kinds and kind not in self.asked_ns
        return not self.kinds or (asked and not unsettled)

    def begin(self, name: bytes, ts_ns: int, before: Undecided | None) -> None:
        """The next question begins a lookup, or goes on with one that asked for other names."""
        self.kinds.clear()
        if self.answered:
            self.asked_ns.clear()
        self.answered, self.ret, self.before = False, 0, before
        if before is None:
            self.begun_ns, self.tries, self.root = ts_ns, (name,), None
            return
        self.begun_ns, self.tries = before.begun_ns, (*before.tries, name)
        self.root = before.root or before

    def found(self) -> None:
        """One came with records, so that none of the tries before it failed."""
        tries: Undecided | None = self
        while tries is not None:
            tries.answered = True
            tries = tries.before

    def is_tried_again(self, name: bytes, ts_ns: int) -> bool:
        """Whether a question for another name, at that time, is the next try of this lookup."""
        return (
            not self.answered
            and bool(self.ret)
            and (not self.is_pending or self.ret == EAI_NONAME)
            and 0 <= ts_ns - self.last_ns < NEXT_TRY_NS
            and len(self.tries) < MAX_TRIES
            and is_next_try(self.tries, name)
        )

    def ask(self, kind: int, ts_ns: int) -> None:
        """Take in a question."""
        self.kinds.add(kind)
        self.asked_ns.setdefault(kind, ts_ns)

    def due_ns(self) -> int:
        """When it is decided at the latest."""
        if self.over_ns and self.is_pending:
            return self.over_ns
        return self.last_ns + (GIVE_UP_NS if self.is_pending or self.answered else HOLD_NS)


class UndecidedTable:
    """Entries by process and name as it stands in the question, the oldest first.

    Args:
        most: how many; the oldest give way.
    """

    def __init__(self, *, most: int) -> None:
        self.dropped = 0
        """Those that gave way before it was known whether they failed."""
        self._most = most
        self._entries: OrderedDict[_Key, Undecided] = OrderedDict()
        self._of_process: dict[Process, set[bytes]] = {}
        self._due_ns = _NEVER  # nothing is due before
        self._exact = True
        self._looked_ns = 0

    def get(self, process: Process, name: bytes) -> Undecided | None:
        return self._entries.get((process, name))

    def put(self, process: Process, name: bytes, undecided: Undecided) -> None:
        """Add one; one with that name is over."""
        self._entries[process, name] = undecided
        self._of_process.setdefault(process, set()).add(name)
        if len(self._entries) > self._most:
            oldest = self._remove(next(iter(self._entries)))
            self.dropped += not oldest.answered

    def changed(self, undecided: Undecided) -> None:
        """One has been asked for again, or answered."""
        if undecided.server:
            return
        self._exact = False
        if not undecided.answered:
            self._due_ns = min(self._due_ns, undecided.due_ns())

    def forget_question(self, undecided: Undecided, key: tuple[int, int]) -> None:
        """Whether it is answered cannot be seen any more."""
        if not undecided.answered and not undecided.server:
            self.dropped += 1
        undecided.waiting.discard(key)
        undecided.answered = True
        self._exact = False

    def process_ended(self, process: Process, ended_ns: int) -> None:
        """What it left without an answer has failed."""
        for name in self._of_process.get(process, ()):
            undecided = self._entries[process, name]
            undecided.over_ns = ended_ns
            self.changed(undecided)

    def deadline_ns(self) -> int | None:
        """When :meth:`failures` may have something at the earliest."""
        if not self._exact and len(self._entries) <= _FEW:
            self._due_ns = min(
                (
                    max(x.due_ns() for _, x in tries)
                    for tries in self._tries()
                    if not any(x.answered for _, x in tries)
                ),
                default=_NEVER,
            )
            self._exact = True
        if self._due_ns == _NEVER:
            return None
        return max(self._due_ns, self._rested_ns())

    def failures(self, now_ns: int) -> list[list[Undecided]]:
        """Return those that have failed by now, by lookup, and let go of what is decided."""
        failed: list[list[Undecided]] = []
        if now_ns < max(self._due_ns, self._rested_ns()) and now_ns - self._looked_ns < _SWEEP_NS:
            return failed
        self._looked_ns = now_ns
        self._due_ns = _NEVER
        self._exact = True
        for tries in self._tries():
            due_ns = max(x.due_ns() for _, x in tries)
            answered = any(x.answered for _, x in tries)
            if due_ns > now_ns:
                if not answered:
                    self._due_ns = min(self._due_ns, due_ns)
                continue
            for key, _ in tries:
                self._remove(key)
            if not answered:
                failed.append([x for _, x in tries])
        return failed

    def _rested_ns(self) -> int:
        return self._looked_ns + _REST_NS * len(self._entries)

    def _remove(self, key: _Key) -> Undecided:
        names = self._of_process[key[0]]
        names.discard(key[1])
        if not names:
            del self._of_process[key[0]]
        return self._entries.pop(key)

    # The undecided, those of one lookup together.
    def _tries(self) -> list[list[tuple[tuple[Process, bytes], Undecided]]]:
        groups: list[list[tuple[tuple[Process, bytes], Undecided]]] = []
        by_root: dict[int, list[tuple[tuple[Process, bytes], Undecided]]] = {}
        for key, undecided in sorted(self._entries.items(), key=lambda item: item[0]):
            process, name = key
            root = id(undecided.root or undecided)
            if root in by_root:
                by_root[root].append((key, undecided))
                continue
            if groups:
                (owner, stem), first = groups[-1][0]
                if (
                    owner == process
                    and name.startswith(stem[:-1])  # without the root's label
                    and abs(undecided.first_ns - first.first_ns) < GIVE_UP_NS
                    # a search list ends with success, and the next try follows at once
                    and (
                        not first.answered or 0 <= first.first_ns - undecided.last_ns < NEXT_TRY_NS
                    )
                ):
                    groups[-1].append((key, undecided))
                    by_root[root] = groups[-1]
                    continue
            groups.append([(key, undecided)])
            by_root[root] = groups[-1]
        return groups
