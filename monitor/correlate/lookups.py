"""Which lookup a connection came from.

Theory of operation. A lookup belongs to one process; it can only explain a connection of that
process to an address in its answer that began after it returned. Usually one name is left, asked
for by the same thread or by another one. Where several names have the address, SNI decides, if
there is one. Else a name is given only where one is left after what connections have used, for a
wrong one is worse than none:

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
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from monitor.correlate.text import (
    AF_INET,
    AF_INET6,
    address_key,
    address_text,
    is_ipv4_text,
    printable_text,
)
from monitor.decode import ConnEvent, LookupEvent, LookupFlag, Task

__all__ = [
    "AMBIGUOUS",
    "Ambiguous",
    "Evicted",
    "Join",
    "Lookup",
    "LookupTable",
    "make_lookup",
    "make_wire_lookup",
]

_T = TypeVar("_T")

# A process seldom has more names in use than a browser has tabs' worth of hosts.
PER_PROCESS: Final = 256
# Bounds memory: a lookup takes about 1 KB here.
TOTAL: Final = 8192
POOLED: Final = 4096  # names, answers and tasks that lookups share
# Of names with a common address, one that no connection has used within this was asked for with
# another purpose.
RIVALS_NS: Final = 2_000_000_000
# An answer that no connection has used for so long was not for one that SNI gives another name.
FRESH_NS: Final = 1_000_000_000
# Answers that came together are connected to in one go, by a program that waits for nothing else.
BURST_NS: Final = 5_000_000
MAX_CONNECTORS: Final = 1024  # threads of a process that connect; with more, any may do anything
MAX_ORPHANS: Final = 8
TWIN_NS: Final = 100_000_000  # between the calls for the two families of a name
TWINS_AMONG: Final = 32  # lookups of a process, the newest
# Some programs have another process look names up for them: lynx and lftp a child for each, Erlang
# a grandchild. What it found is connected to at once.
HELPER_NS: Final = 2_000_000_000
HELPED_LATE_NS: Final = 10_000_000_000  # a connection may be told of so long after its begin
PER_HELPED: Final = 32  # lookups kept by others for one process ...
MAX_HELPED: Final = 2048  # ... and for so many processes


@dataclass(slots=True, eq=False)
class Lookup:
    """A name that was asked for, and the answer."""

    task: Task
    name: str
    start_ns: int
    end_ns: int
    ret: int
    hint_flags: int
    service_port: int
    """Port in the answer; 0 where the caller gave no service."""
    addresses: tuple[str, ...]
    keys: frozenset[bytes]
    cut: bool
    is_literal: bool
    hint_family: int = 0
    later_end_ns: int = 0
    """When the second of two calls, one for each family, returned; ``end_ns`` is the first's."""
    folded: str = ""
    """The name as DNS compares it."""
    used: bool = False
    """A connection was established from it."""
    tried: set[bytes] = field(default_factory=set)
    """Addresses that connections from it have begun to."""
    kept: bool = False
    """Its own process has connected by it, so it was not made for a relative."""
    source: str = "getaddrinfo"
    """The record's ``dns_source``."""
    end_seen: bool = True

    def end_before(self, connect_ns: int) -> int:
        """When the answers were there that a connection begun then can have known."""
        return self.later_end_ns if 0 < self.later_end_ns <= connect_ns else self.end_ns

    def is_twin(self, other: Lookup) -> bool:
        """Whether the same process asked for the same name's other family at the same time, which
        is one lookup (curl asks for both, each in a thread of its own)."""
        return (
            {self.hint_family, other.hint_family} == {AF_INET, AF_INET6}
            and self.folded == other.folded
            and self.task.pid == other.task.pid
            and self.task.start_ns == other.task.start_ns
            and abs(self.start_ns - other.start_ns) < TWIN_NS
        )

    def _add_twin(self, other: Lookup) -> None:
        self.start_ns = min(self.start_ns, other.start_ns)
        self.later_end_ns = max(self.end_ns, other.end_ns)
        self.end_ns = min(self.end_ns, other.end_ns)
        self.addresses = tuple(dict.fromkeys((*self.addresses, *other.addresses)))
        self.keys |= other.keys
        self.cut = self.cut or other.cut
        self.hint_family = 0


Match = Literal["thread", "process", "host"]
"""``host``: by another process of this host, a relative that looks names up for it."""


@dataclass(frozen=True, slots=True)
class Join:
    """A lookup, and how it was matched: the record's ``dns_match``."""

    lookup: Lookup
    match: Match

    def took(self, key: bytes, *, established: bool) -> None:
        """A connection has begun from it, to that address."""
        lookup = self.lookup
        lookup.tried.add(key)
        if established:
            lookup.used = True
            lookup.kept = lookup.kept or self.match != "host"


class Ambiguous:
    """Several lookups fit: ask again with ``in_order`` once all earlier connections are known."""


AMBIGUOUS: Final = Ambiguous()


@dataclass(slots=True)
class Evicted:
    """When the newest answers came that are not kept any more."""

    name: str | bytes = ""
    name_ns: int = 0
    others_ns: int = 0

    def add(self, name: str | bytes, answered_ns: int) -> None:
        """An answer for a name is let go."""
        if name != self.name:
            self.others_ns = max(self.others_ns, self.name_ns)
            self.name, self.name_ns = name, 0
        self.name_ns = max(self.name_ns, answered_ns)

    def but_for(self, name: str | bytes) -> int:
        """When the newest one for another name came; 0: there was none."""
        return self.others_ns if name == self.name else max(self.others_ns, self.name_ns)


@dataclass(slots=True)
class _Process:
    lookups: deque[Lookup] = field(default_factory=lambda: deque(maxlen=PER_PROCESS))
    evicted: Evicted = field(default_factory=Evicted)
    doubted_ns: int = 0
    """Of what was answered by then nobody knows what has been connected to."""
    connected_ns: dict[int, int] = field(default_factory=dict)
    """When each thread that connects did so last."""
    stacked: bool = False
    """A thread that connects has asked for two names in a row: one was for another thread."""
    orphans: deque[set[int]] = field(default_factory=lambda: deque(maxlen=MAX_ORPHANS))
    """The threads that may have asked for what one that never asked connected to."""

    def crossing(self) -> bool:
        """Whether threads that connect do so by each other's answers."""
        if len(self.connected_ns) < 2:
            return False
        return self.stacked or any(x <= self.connected_ns.keys() for x in self.orphans)

    def note(self, conn: ConnEvent) -> None:
        """A thread has connected."""
        if len(self.connected_ns) >= MAX_CONNECTORS:
            self.stacked = True
            return
        at = self.connected_ns.get(conn.tid, 0)
        self.connected_ns[conn.tid] = max(at, conn.connect_ns)


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
        # least recently asked first
        self._processes: OrderedDict[tuple[int, int], _Process] = OrderedDict()
        # by the pid of whoever asked, and of the processes that it may have asked for
        self._helped: OrderedDict[int, deque[Lookup]] = OrderedDict()
        self._pool = _Pool(POOLED)
        self._evicted_ns = 0  # end of the newest lookup of a process that is not kept any more

    def __len__(self) -> int:
        return self._count

    def add(self, event: LookupEvent, ancestors: Sequence[int] = ()) -> Lookup:
        """Take in a lookup that returned.

        Args:
            ancestors: pids of the processes that the asking one descends from.
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
                    twin._add_twin(lookup)
                    return twin
        if process is None:
            process = self._processes[key] = _Process()
        else:
            self._processes.move_to_end(key)
        if len(process.lookups) == PER_PROCESS:
            self._count -= 1
            process.evicted.add(process.lookups[0].folded, process.lookups[0].end_ns)
        process.lookups.append(lookup)
        self._count += 1
        for pid in (event.task.pid, *ancestors):
            helped = self._helped.get(pid)
            if helped is None:
                helped = self._helped[pid] = deque(maxlen=PER_HELPED)
            else:
                self._helped.move_to_end(pid)
            helped.append(lookup)
        self._forget_helped(lookup.end_ns - HELPER_NS - HELPED_LATE_NS)
        while self._count > self._total:
            _, oldest = self._processes.popitem(last=False)
            self._count -= len(oldest.lookups)
            self._evicted_ns = max(self._evicted_ns, *(x.end_ns for x in oldest.lookups))
        return lookup

    # Most processes end within seconds, and what they asked for is of use to a relative no longer.
    def _forget_helped(self, before_ns: int) -> None:
        while self._helped:
            pid, helped = next(iter(self._helped.items()))
            if len(self._helped) <= MAX_HELPED and helped[-1].end_ns >= before_ns:
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

    def forget(self, process: tuple[int, int], ended_ns: int) -> None:
        """Drop what a process asked for that ended, unless others of its threads went on."""
        known = self._processes.get(process)
        if known is None or known.lookups[-1].end_ns > ended_ns:
            return
        del self._processes[process]
        self._count -= len(known.lookups)

    def __contains__(self, process: tuple[int, int]) -> bool:
        return process in self._processes

    def of(self, pid: int, start_ns: int) -> Iterator[Lookup]:
        """A process's lookups, newest first."""
        process = self._processes.get((pid, start_ns))
        return reversed(process.lookups) if process is not None else iter(())

    def join(
        self,
        conn: ConnEvent,
        *,
        sni: Callable[[], str | None],
        in_order: Sequence[ConnEvent] | None = None,
    ) -> Join | Ambiguous | None:
        """Find the lookup that a connection came from.

        Args:
            conn: the connection.
            sni: gives the name in its ClientHello, if there was one. Late TLS has another peer's.
            in_order: all doubtful connections from this one on, in the order in which they began;
                those that began earlier have been through here.
        """
        process = self._processes.get((conn.pid, conn.start_ns))
        if process is None:
            return None
        key = address_key(conn.family, conn.raddr)
        fits = [
            lookup
            for lookup in reversed(process.lookups)
            if key in lookup.keys and lookup.end_ns <= conn.connect_ns and not lookup.is_literal
        ]
        if not fits:
            return None
        same_port = [x for x in fits if x.service_port == conn.rport]
        fits = same_port or fits
        alone = _one_name(fits)
        evicted_ns = max(process.evicted.but_for(fits[0].folded), self._evicted_ns)
        sure = alone and conn.connect_ns - evicted_ns > RIVALS_NS
        spent = all(x.used or conn.connect_ns - x.end_ns > FRESH_NS for x in fits)
        if not sure or spent:
            name = sni()
            if name is not None:
                named = [x for x in fits if x.folded == name]
                if not named and spent:
                    return None
                fits = named or fits
                alone = _one_name(fits)
                sure = alone and (bool(named) or sure)
        if sure:
            own = next((x for x in fits if x.task.tid == conn.tid), None)
            return Join(own, "thread") if own else Join(fits[0], "process")
        if alone:
            return None  # what is not kept any more may have had the address, too
        if in_order is None:
            return AMBIGUOUS
        return _decide(process, conn, key, fits, in_order)

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
            if process is None:
                continue
            before_ns = process.connected_ns.get(conn.tid, 0)
            key = address_key(conn.family, conn.raddr)
            asked = set()
            knows = False
            others = set()
            for x in process.lookups:
                if x.end_ns > conn.connect_ns or x.is_literal or not x.keys:
                    continue
                if x.task.tid == conn.tid:
                    knows = knows or key in x.keys
                    if before_ns < x.end_ns and before_ns < conn.connect_ns:
                        asked.add(x.folded)
                elif key in x.keys and _is_unused(x, key):
                    others.add(x.task.tid)
            process.stacked = process.stacked or len(asked) > 1
            if not knows and others:
                process.orphans.append(others)
            process.note(conn)

    def may_help(self, pid: int, ppid: int) -> bool:
        """Whether a relative of this process has looked up a name."""
        return pid in self._helped or ppid in self._helped

    def helped(self, conn: ConnEvent, *, sni: Callable[[], str | None]) -> Join | None:
        """Find the lookup that another process made for a connection: one that descends from the
        connecting process, or the one that started it. Never by the address alone: None where
        several names fit.
        """
        key = address_key(conn.family, conn.raddr)
        parents = [x for x in self._helped.get(conn.ppid, ()) if x.task.pid == conn.ppid]
        fits = [
            x
            for x in (*self._helped.get(conn.pid, ()), *parents)
            if key in x.keys
            and 0 <= conn.connect_ns - x.end_ns < HELPER_NS
            and x.task.pid != conn.pid
            and not x.is_literal
            and not x.kept
        ]
        name = sni() if fits else None
        if name is not None:
            fits = [x for x in fits if x.folded == name]
        if len({x.folded for x in fits}) != 1:
            return None
        return Join(max(fits, key=lambda x: x.end_ns), "host")

    def literal_asked(self, conn: ConnEvent) -> bool:
        """Whether the process gave this very address, as a literal, to getaddrinfo()."""
        process = self._processes.get((conn.pid, conn.start_ns))
        if process is None:
            return False
        key = address_key(conn.family, conn.raddr)
        return any(x.is_literal and key in x.keys for x in process.lookups)


def fold(name: str) -> str:
    """Return a name as DNS compares it."""
    return name.lower().rstrip(".")


def sni_name(sni: str) -> str | None:
    """Return the name in a ClientHello as DNS compares it, None where it is an address.

    Some clients send the port, too, and some an address (RFC 6066 section 3 forbids both).
    """
    name, _, rest = sni.partition(":")
    if ":" in rest:
        return None
    name = fold(name)
    return name if name and not is_ipv4_text(name) else None


def _one_name(lookups: Sequence[Lookup]) -> bool:
    first = lookups[0].folded
    return all(x.folded == first for x in lookups)


def _is_unused(lookup: Lookup, key: bytes) -> bool:
    return not lookup.used and key not in lookup.tried


# Several names fit, and SNI is none of them.
def _decide(
    process: _Process,
    conn: ConnEvent,
    key: bytes,
    fits: Sequence[Lookup],
    following: Sequence[ConnEvent],
) -> Join | None:
    unused = [x for x in fits if _is_unused(x, key) and conn.connect_ns - x.end_ns < RIVALS_NS]
    own = [x for x in fits if x.task.tid == conn.tid]
    fresh = [x for x in unused if x.task.tid == conn.tid]
    if fresh:
        if not _one_name(fresh) or fresh[0].folded != own[0].folded:
            return None
        rivals = any(x.folded != fresh[0].folded and x.task.tid != conn.tid for x in unused)
        return None if rivals and process.crossing() else Join(fresh[0], "thread")
    if own:
        first = own[0]
        answered_since = any(
            x.folded != first.folded and x.end_ns > first.end_ns
            for x in fits
            if x.task.tid != conn.tid
        )
        again = _one_name(own) and not answered_since
        return Join(first, "thread") if again and not process.crossing() else None
    if conn.tid != conn.pid or process.connected_ns.keys() - {conn.tid}:
        return None  # several threads connect, and nothing says which answer is whose
    if unused and _one_name(unused):
        return Join(unused[0], "process")
    return _in_turn(process, conn, key, unused, following)


# An event loop was given several answers at once. It connects by each, in the order of the
# answers, before it does anything else; a program that looked names up beforehand does not.
def _in_turn(
    process: _Process,
    conn: ConnEvent,
    key: bytes,
    unused: Sequence[Lookup],
    following: Sequence[ConnEvent],
) -> Join | None:
    first: dict[str, Lookup] = {}
    for x in sorted(unused, key=lambda x: x.end_ns):
        first.setdefault(x.folded, x)
    answers = list(first.values())
    if not answers or answers[0].end_ns <= process.doubted_ns:
        return None
    before_ns = answers[-1].end_ns
    burst = 0
    for other in following:
        if (other.pid, other.start_ns) != (conn.pid, conn.start_ns):
            continue
        if address_key(other.family, other.raddr) == key:
            if other.connect_ns - before_ns >= BURST_NS:
                break
            before_ns = other.connect_ns
            burst += 1
    if burst != len(answers):
        process.doubted_ns = answers[-1].end_ns
        return None
    return Join(answers[0], "process")


def make_lookup(event: LookupEvent) -> Lookup:
    """Turn the kernel's event into what is kept: text, and keys to match addresses by."""
    addresses: dict[str, None] = {}
    keys = set()
    for answer in event.answers:
        addresses[address_text(answer.family, answer.addr, answer.scope_id)] = None
        keys.add(address_key(answer.family, answer.addr))
    name = printable_text(event.name)
    return Lookup(
        task=event.task,
        name=name,
        folded=fold(name),
        hint_family=event.hint_family,
        start_ns=event.start_ns,
        end_ns=event.end_ns,
        end_seen=not event.flags & LookupFlag.LEFT,
        ret=event.ret,
        hint_flags=event.hint_flags,
        service_port=event.answers[0].port if event.answers else 0,
        addresses=tuple(addresses),
        keys=frozenset(keys),
        cut=bool(event.flags & LookupFlag.LONG),
        is_literal=_is_literal(name, tuple(addresses)),
    )


def make_wire_lookup(
    task: Task,
    name: str,
    *,
    start_ns: int,
    end_ns: int | None,
    answers: list[tuple[int, bytes]],
    ret: int = 0,
    stub: bool = False,
) -> Lookup:
    """A lookup as DNS messages tell it.

    Args:
        end_ns: None where nobody answered.
        answers: (family, 16 bytes) of each address.
        ret: the EAI_ code that getaddrinfo() would have given.
        stub: systemd-resolved was asked, at the address where it takes DNS.
    """
    return Lookup(
        task=task,
        name=name,
        folded=fold(name),
        start_ns=start_ns,
        end_ns=end_ns or start_ns,
        end_seen=end_ns is not None,
        ret=ret,
        hint_flags=0,
        service_port=0,
        addresses=tuple(dict.fromkeys(address_text(*answer) for answer in answers)),
        keys=frozenset(address_key(*answer) for answer in answers),
        cut=False,
        is_literal=False,
        source="resolved" if stub else "wire",
    )


def _is_literal(name: str, addresses: tuple[str, ...]) -> bool:
    # getaddrinfo() reads 127.1 and 0x7f.1 as addresses too, in which case digits lead.
    if ":" in name:
        return True
    last = name.rstrip(".").rpartition(".")[2]
    return bool(last) and (last.isdecimal() or last[:2].lower() == "0x") and len(addresses) <= 2
