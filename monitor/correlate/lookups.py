"""Which lookup a connection came from.

Theory of operation. A lookup belongs to one process; it can only explain a connection of that
process, or of one that was forked from it later, to an address in its answer that began after it
returned. A newer answer for the same name takes its place. Usually one name is left, asked for by
the same thread or by another one. Where several names have the address, what the connection's own
bytes ask for decides: SNI, or an HTTP request's Host. Else a name is given only where one is left
after what connections have used, for a wrong one is worse than none:

==============================  ==============================================================
the connecting thread            what is taken
==============================  ==============================================================
asked for one name that no       that one; nothing if the process's threads were seen to
connection has used              connect by each other's answers (a pool that does both)
asked for one name ever          that one again, unless another thread was answered since
is the only one that connects,   the one name that no connection has used; of several that
others ask (event loops)         came together, each in turn if as many connections follow
else                             nothing
==============================  ==============================================================

What earlier connections have used is known only when all of them are, and they close in any order:
the choice is put off until then (a snapshot of the open ones).

An address that was given as such, later than any name that has it, has no name.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from monitor.correlate.choice import PER_PROCESS, RIVALS_NS, Process, decide, is_unused, one_name
from monitor.correlate.lookup import Ask, Join, Lookup, make_lookup
from monitor.correlate.text import address_key
from monitor.decode import ConnEvent, ForkEvent, LookupEvent

__all__ = ["AMBIGUOUS", "NAMELESS", "Ambiguous", "Chain", "LookupTable", "Nameless"]

_T = TypeVar("_T")

# Bounds memory: a lookup takes about 1 KB here.
TOTAL: Final = 8192
FAIR: Final = 8  # lookups of a process that others' do not push out while others have more
POOLED: Final = 4096  # names, answers and tasks that lookups share
# An answer that no connection has used for so long was not for one that SNI gives another name.
FRESH_NS: Final = 1_000_000_000
TWINS_AMONG: Final = 32  # lookups of a process, the newest
# Some programs have another process look names up for them: lynx and lftp a child for each, Erlang
# a grandchild. What it found is connected to at once.
HELPER_NS: Final = 2_000_000_000
HELPED_LATE_NS: Final = 10_000_000_000  # a connection may be told of so long after its begin
PER_HELPED: Final = 32  # lookups kept by others for one process ...
MAX_HELPED: Final = 2048  # ... and for so many processes
MAX_FORKED: Final = 8192  # processes that go on with what others looked up ...
MAX_CHILDREN: Final = 1024  # ... and of one, so that it takes no other's place
GENERATIONS: Final = 4  # a daemon forks twice before it forks its workers


class Ambiguous:
    """Several lookups fit: ask again with ``in_order`` once all earlier connections are known."""


class Nameless:
    """No name is to be told, whatever else may know one: the connection asks for an address as
    such, several names remain, or the only answers with the address were replaced."""


AMBIGUOUS: Final = Ambiguous()
NAMELESS: Final = Nameless()

_Key = tuple[int, int]  # pid, start
Chain = tuple[tuple[_Key, int], ...]
"""Processes that one was forked from, the nearest first, and when: what they knew by then, it
knows."""


class _Pool:
    """One object for equal values: programs ask for the same names over and over."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[Any, Any] = {}

    def one(self, value: _T) -> _T:
        """The value, or an equal one that is in use already."""
        if len(self._values) >= self._most:
            self._values.clear()
        kept: _T = self._values.setdefault(value, value)
        return kept


class LookupTable:
    """The lookups that connections may still follow from, by process, oldest forgotten first."""

    def __init__(self, *, total: int = TOTAL) -> None:
        self._total = total
        self._count = 0
        # least recently used first
        self._processes: OrderedDict[_Key, Process] = OrderedDict()
        # by the pid of whoever asked, and of the processes that it may have asked for: a lookup,
        # and what started no later than its process's ancestor with that pid
        self._helped: OrderedDict[int, deque[tuple[Lookup, int]]] = OrderedDict()
        self._forked: OrderedDict[_Key, Chain] = OrderedDict()
        self._forked_from: Counter[_Key] = Counter()
        self._pool = _Pool(POOLED)
        self._evicted_ns = 0  # end of the newest lookup of a process that is not kept any more

    def __len__(self) -> int:
        return self._count

    def add(self, event: LookupEvent, ancestors: Sequence[tuple[int, int]] = ()) -> Lookup:
        """Take in a lookup that returned.

        Args:
            ancestors: of the processes that the asking one descends from, the pids, and when the
                next one down from each was started.
        """
        lookup = make_lookup(event)
        pool = self._pool
        lookup.task, lookup.name = pool.one(lookup.task), pool.one(lookup.name)
        lookup.addresses, lookup.keys = pool.one(lookup.addresses), pool.one(lookup.keys)
        key = (event.task.pid, event.task.start_ns)
        process = self._processes.get(key)
        if process is not None and lookup.keys and lookup.hint_family:
            for twin in itertools.islice(reversed(process.lookups), TWINS_AMONG):
                if twin.is_twin(lookup) and twin.keys:
                    twin.add_twin(lookup)
                    return twin
        if process is None:
            process = self._processes[key] = Process()
        else:
            self._processes.move_to_end(key)
        if len(process.lookups) == PER_PROCESS:
            self._let_go(process)
        process.lookups.append(lookup)
        self._count += 1
        for pid, before_ns in ((event.task.pid, event.task.start_ns), *ancestors):
            helped = self._helped.get(pid)
            if helped is None:
                helped = self._helped[pid] = deque(maxlen=PER_HELPED)
            else:
                self._helped.move_to_end(pid)
            helped.append((lookup, before_ns))
        self._forget_helped(lookup.end_ns - HELPER_NS - HELPED_LATE_NS)
        if self._count > self._total:
            self._make_room()
        return lookup

    def _let_go(self, process: Process) -> None:
        oldest = process.lookups.popleft()
        process.evicted.add(oldest.folded, oldest.end_ns)
        self._count -= 1

    # Who has very many gives way: a server that looked up one name when it started needs it for
    # days.
    def _make_room(self) -> None:
        most = max(self._processes.values(), key=lambda x: len(x.lookups))
        for _ in range(len(most.lookups) // 4 if len(most.lookups) > FAIR else 0):
            self._let_go(most)
        if self._count <= self._total:
            return
        while self._count > self._total - self._total // 64:  # to look for the largest is much work
            _, oldest = self._processes.popitem(last=False)
            self._count -= len(oldest.lookups)
            self._evicted_ns = max(self._evicted_ns, *(x.end_ns for x in oldest.lookups))

    # Most processes end within seconds, and what they asked for is of use to a relative no longer.
    def _forget_helped(self, before_ns: int) -> None:
        while self._helped:
            pid, helped = next(iter(self._helped.items()))
            if len(self._helped) <= MAX_HELPED and helped[-1][0].end_ns >= before_ns:
                return
            del self._helped[pid]

    def has_twin(self, lookup: Lookup) -> bool:
        """Whether the same name's other family, asked for at the same time, was found."""
        process = self._processes.get((lookup.task.pid, lookup.task.start_ns))
        if process is None or not lookup.hint_family:
            return False
        return any(
            x.keys and (x.is_twin(lookup) or (not x.hint_family and x.later_end_ns))
            for x in itertools.islice(reversed(process.lookups), TWINS_AMONG)
            if x.folded == lookup.folded
        )

    # -- processes ----------------------------------------------------------------------------

    def forked(self, event: ForkEvent, *, asked: bool) -> None:
        """A process was forked.

        Args:
            asked: its parent has asked DNS without a call of the C library's.
        """
        parent, child = (event.parent, event.parent_start_ns), (event.pid, event.start_ns)
        before = self._forked.get(parent, ())
        if not (asked or before or parent in self._processes):
            return
        if self._forked_from.get(parent, 0) >= MAX_CHILDREN:
            return
        self.replaced(child)
        chain: Chain = ((parent, event.ts_ns), *before)[:GENERATIONS]
        self._forked[child] = chain
        for process, _ in chain:
            self._forked_from[process] += 1
        if len(self._forked) > MAX_FORKED:
            self.replaced(next(iter(self._forked)))

    def replaced(self, process: _Key) -> None:
        """A process has another program now, or is no more: what it was forked with is gone."""
        for ancestor, _ in self._forked.pop(process, ()):
            self._forked_from[ancestor] -= 1
            if not self._forked_from[ancestor]:
                del self._forked_from[ancestor]

    def chain(self, process: _Key) -> Chain:
        """The processes whose lookups it goes on with."""
        return self._forked.get(process, ())

    def is_needed(self, process: _Key) -> bool:
        """Whether others go on with what this one looked up."""
        return process in self._forked_from

    def ended(self, process: _Key, at_ns: int) -> None:
        """A process has ended, so that its pid may be another's."""
        known = self._processes.get(process)
        if known is not None:
            known.ended_ns = at_ns

    def forget(self, process: _Key, ended_ns: int) -> None:
        """Drop what a process asked for that ended, unless others of its threads went on."""
        known = self._processes.get(process)
        if known is None or known.lookups[-1].end_ns > ended_ns:
            return
        del self._processes[process]
        self._count -= len(known.lookups)

    def of(self, pid: int, start_ns: int) -> Iterator[Lookup]:
        """A process's own lookups, newest first."""
        process = self._processes.get((pid, start_ns))
        return reversed(process.lookups) if process is not None else iter(())

    def __contains__(self, process: _Key) -> bool:
        return process in self._processes or process in self._forked

    # -- joining ------------------------------------------------------------------------------

    # Answers with the address that were there when a connection began, newest first: its own
    # process's, then those it was forked with. Literals included, replaced ones too.
    def _answers(self, conn: ConnEvent, key: bytes) -> Iterator[Lookup]:
        process = self._processes.get((conn.pid, conn.start_ns))
        if process is not None:
            for x in reversed(process.lookups):
                if key in x.keys and x.end_ns <= conn.connect_ns:
                    yield x
        for ancestor, forked_ns in self.chain((conn.pid, conn.start_ns)):
            process = self._processes.get(ancestor)
            for x in reversed(process.lookups) if process is not None else ():
                if key in x.keys and x.end_ns <= forked_ns and x.task.uid == conn.uid:
                    yield x

    # Of each name, the newest answer with addresses of that family that was there when a connection
    # began.
    def _newest(self, conn: ConnEvent, family: int, names: set[str]) -> dict[str, Lookup]:
        newest: dict[str, Lookup] = {}
        own = (conn.pid, conn.start_ns)
        for known, by_ns in ((own, conn.connect_ns), *self.chain(own)):
            process = self._processes.get(known)
            for x in reversed(process.lookups) if process is not None else ():
                if x.folded not in names or x.end_ns > by_ns or x.cut:
                    continue
                if any(len(key) == family for key in x.keys):
                    newest[x.folded] = x
                    names.discard(x.folded)
                    if not names:
                        return newest
        return newest

    def join(
        self, conn: ConnEvent, *, asked: Ask, in_order: Sequence[ConnEvent] | None = None
    ) -> Join | Ambiguous | Nameless | None:
        """Find the lookup that a connection came from.

        Args:
            conn: the connection.
            asked: whom its bytes ask for. Late TLS has another peer's name.
            in_order: all doubtful connections from this one on, in the order in which they began;
                those that began earlier have been through here.
        """
        key = address_key(conn.family, conn.raddr)
        answers = list(self._answers(conn, key))
        # the address as such may be asked for with the port, the name before without it
        same_port = [x for x in answers if x.service_port == conn.rport]
        if any(not x.is_literal for x in same_port):
            answers = same_port
        fits = [x for x in answers if not x.is_literal]
        if not fits:
            return None
        newest = self._newest(conn, len(key), {x.folded for x in fits})
        fits = [x for x in fits if not _is_replaced(x, newest.get(x.folded), key, conn)]
        if not fits:
            return NAMELESS
        if (conn.pid, conn.start_ns) in self._processes:
            self._processes.move_to_end((conn.pid, conn.start_ns))
        given: Lookup | None = None
        if len(fits) < len(answers):
            given = _given(conn, answers)
            if given is not None:
                stored = [x for x in fits if not x.direct and x.end_ns <= given.start_ns]
                if not stored:
                    return Join(given, _match(given, conn))
                if in_order is None:
                    return AMBIGUOUS
                fits = stored
            elif _is_rivalled(conn, key, answers):
                return AMBIGUOUS if in_order is None else NAMELESS
        own_fits = [x for x in fits if _is_of(x, conn)]
        if any(is_unused(x, key) and conn.connect_ns - x.end_ns < RIVALS_NS for x in own_fits):
            fits = own_fits
        found = self._choose(conn, key, fits, asked, in_order)
        if given is not None and isinstance(found, Join):
            return replace(found, stored=True)
        return found

    def _choose(
        self,
        conn: ConnEvent,
        key: bytes,
        fits: list[Lookup],
        asked: Ask,
        in_order: Sequence[ConnEvent] | None,
    ) -> Join | Ambiguous | Nameless | None:
        process = self._processes.get((conn.pid, conn.start_ns))
        alone = one_name(fits)
        evicted_ns = self._evicted_ns
        if process is not None:
            evicted_ns = max(evicted_ns, process.evicted.but_for(fits[0].folded))
        sure = alone and conn.connect_ns - evicted_ns > RIVALS_NS
        spent = all(x.used or conn.connect_ns - x.end_ns > FRESH_NS for x in fits)
        settled = False
        if not sure or spent:
            said = asked()
            if said is not None and said.name is not None:
                named = [x for x in fits if x.folded == said.name]
                # a Host may be any server's behind the one that was looked up
                if not named and spent and said.source == "sni":
                    return None
                settled = bool(named) and not alone and said.source == "http"
                fits = named or fits
                alone = one_name(fits)
                sure = alone and (bool(named) or sure)
            elif said is not None and said.key == key and spent:
                return NAMELESS
        if sure:
            found = next((x for x in fits if x.task.tid == conn.tid and _is_of(x, conn)), fits[0])
            return Join(found, _match(found, conn), "http" if settled else "lookup")
        if alone:
            return None  # what is not kept any more may have had the address, too
        if process is None or not all(_is_of(x, conn) for x in fits):
            return NAMELESS  # who forked it may have had another child use one of them
        if in_order is None:
            return AMBIGUOUS
        return decide(process, conn, key, fits, in_order) or NAMELESS

    def connected(self, conn: ConnEvent) -> None:
        """Remember that its thread connects."""
        process = self._processes.get((conn.pid, conn.start_ns))
        if process is not None:
            process.note(conn)

    def doubtful(self, conns: Sequence[ConnEvent]) -> None:
        """Learn, before any of them is joined, how their processes' threads share work.

        Args:
            conns: those that were ambiguous, in the order in which they began.
        """
        for conn in conns:
            process = self._processes.get((conn.pid, conn.start_ns))
            if process is not None:
                process.learn(conn)

    # -- relatives ----------------------------------------------------------------------------

    def may_help(self, pid: int, ppid: int) -> bool:
        """Whether a relative of this process has looked up a name."""
        return pid in self._helped or ppid in self._helped

    def helped(self, conn: ConnEvent, *, asked: Ask) -> Join | None:
        """Find the lookup that another process of the same user made for a connection: one that
        descends from the connecting process, or the one that started it. Never by the address
        alone: None where several names fit.
        """
        fits = [
            x
            for x in self._relatives(conn)
            if conn.connect_ns - x.end_ns < HELPER_NS and not x.kept
        ]
        said = asked() if fits else None
        if said is not None and said.name is not None:
            named = [x for x in fits if x.folded == said.name]
            fits = named if said.source == "sni" else named or fits
        if len({x.folded for x in fits}) != 1:
            return None
        return Join(max(fits, key=lambda x: x.end_ns), "host")

    def _relatives(self, conn: ConnEvent) -> Iterator[Lookup]:
        key = address_key(conn.family, conn.raddr)
        for pid in (conn.pid, conn.ppid):
            for x, before_ns in self._helped.get(pid, ()):
                if (
                    key in x.keys
                    and x.end_ns <= conn.connect_ns
                    and x.task.uid == conn.uid
                    and not x.is_literal
                    and (
                        x.task.pid != pid and conn.start_ns <= before_ns
                        if pid == conn.pid
                        else x.task.pid == pid and self._lives(x, conn)
                    )
                ):
                    yield x

    # Whether a lookup's process was still there when a connection began: its pid is no other's.
    def _lives(self, x: Lookup, conn: ConnEvent) -> bool:
        process = self._processes.get((x.task.pid, x.task.start_ns))
        if process is None or x.task.start_ns > conn.start_ns:
            return False
        return not process.ended_ns or process.ended_ns > conn.connect_ns

    def has_answer(self, conn: ConnEvent) -> bool:
        """Whether a name with its address was looked up before, by its process or for it."""
        key = address_key(conn.family, conn.raddr)
        if any(not x.is_literal for x in self._answers(conn, key)):
            return True
        return next(self._relatives(conn), None) is not None

    def literal_asked(self, conn: ConnEvent) -> bool:
        """Whether the process gave this very address, as a literal, to getaddrinfo()."""
        process = self._processes.get((conn.pid, conn.start_ns))
        if process is None:
            return False
        key = address_key(conn.family, conn.raddr)
        return any(x.is_literal and key in x.keys for x in process.lookups)


def _is_of(lookup: Lookup, conn: ConnEvent) -> bool:
    return lookup.task.pid == conn.pid and lookup.task.start_ns == conn.start_ns


# Whether the newest answer for the same name has the address no more. One that another thread got
# at about the same time leaves the older one its own.
def _is_replaced(x: Lookup, newest: Lookup | None, key: bytes, conn: ConnEvent) -> bool:
    if newest is None or newest is x or key in newest.keys or newest.end_ns < x.end_ns:
        return False
    if newest.task.tid == x.task.tid or not is_unused(x, key):
        return True
    return conn.connect_ns - x.end_ns > RIVALS_NS


def _match(lookup: Lookup, conn: ConnEvent) -> Any:
    if not _is_of(lookup, conn):
        return "host"
    return "thread" if lookup.task.tid == conn.tid else "process"


# The address given as such that a connection is to: the newest answer is that, the connecting
# thread's if it asked at all. A program may have looked it up and kept it as text; then no
# connection has ever followed from the name without that. answers: newest first.
def _given(conn: ConnEvent, answers: Sequence[Lookup]) -> Lookup | None:
    own = [x for x in answers if x.task.tid == conn.tid and _is_of(x, conn)]
    newest = (own or answers)[0]
    return newest if newest.is_literal else None


# Whether another thread gave the address as such at about the same time, so that who connects to
# it may have had it from either.
def _is_rivalled(conn: ConnEvent, key: bytes, answers: Sequence[Lookup]) -> bool:
    if any(x.task.tid == conn.tid and _is_of(x, conn) for x in answers):
        return False
    return any(
        x.is_literal and is_unused(x, key) and conn.connect_ns - x.end_ns < RIVALS_NS
        for x in answers
    )
