"""Which lookup a connection came from.

Theory of operation. A lookup belongs to one process; it can only explain a connection of that
process to an address in its answer that began after it returned. Usually one name is left, asked
for by the same thread or by another one. Where several names have the address, SNI decides, if
there is one; else these do, and where none does there is no name, since a wrong one is worse:

=============================  ===============================================================
who asked                      what is taken
=============================  ===============================================================
the connecting thread          the oldest of its lookups that no connection has used; or its
                               newest, if no other thread was answered since
other threads, for one that    likewise the oldest that no connection has used (event loops)
connects: the main thread
other threads, for several     nothing
=============================  ===============================================================

Connections close in any order: where one that began earlier may have used a lookup, the choice is
put off until all of them are known (a snapshot of the open ones).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from monitor.correlate.text import address_key, address_text, printable_text
from monitor.decode import ConnEvent, LookupEvent, LookupFlag, Task

__all__ = [
    "AMBIGUOUS",
    "Ambiguous",
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
# Names with a common address compete only when they were asked for this close together: the
# older one, if it was ever to be used, has been by then.
RIVALS_NS: Final = 2_000_000_000
# Some programs have another process look names up for them: lynx and lftp a child for each, Erlang
# a grandchild. What it found is connected to at once.
HELPER_NS: Final = 2_000_000_000
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
    uses: int = 0
    """Connections established from it."""
    kept: bool = False
    """Its own process has connected by it, so it was not made for a relative."""
    source: str = "getaddrinfo"
    """The record's ``dns_source``."""
    end_seen: bool = True


Match = Literal["thread", "process", "host"]
"""``host``: by another process of this host, a relative that looks names up for it."""


@dataclass(frozen=True, slots=True)
class Join:
    """A lookup, and how it was matched: the record's ``dns_match``."""

    lookup: Lookup
    match: Match

    def used(self) -> None:
        """A connection was established from it."""
        self.lookup.uses += 1
        self.lookup.kept = self.lookup.kept or self.match != "host"


class Ambiguous:
    """Several lookups fit: ask again with ``in_order`` once all earlier connections are known."""


AMBIGUOUS: Final = Ambiguous()


@dataclass(slots=True)
class _Process:
    connectors: set[int] = field(default_factory=set)
    """Threads that connect by other threads' answers where several names fit; at most two."""
    lookups: deque[Lookup] = field(default_factory=lambda: deque(maxlen=PER_PROCESS))


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
        if process is None:
            process = self._processes[key] = _Process()
        else:
            self._processes.move_to_end(key)
        if len(process.lookups) == PER_PROCESS:
            self._count -= 1
        process.lookups.append(lookup)
        self._count += 1
        for pid in (event.task.pid, *ancestors):
            helped = self._helped.get(pid)
            if helped is None:
                helped = self._helped[pid] = deque(maxlen=PER_HELPED)
                if len(self._helped) > MAX_HELPED:
                    self._helped.popitem(last=False)
            helped.append(lookup)
        while self._count > self._total:
            _, oldest = self._processes.popitem(last=False)
            self._count -= len(oldest.lookups)
        return lookup

    def forget(self, pid: int, start_ns: int) -> None:
        """Drop what a process asked for."""
        process = self._processes.pop((pid, start_ns), None)
        if process is not None:
            self._count -= len(process.lookups)

    def __contains__(self, process: tuple[int, int]) -> bool:
        return process in self._processes

    def of(self, pid: int, start_ns: int) -> Iterator[Lookup]:
        """A process's lookups, newest first."""
        process = self._processes.get((pid, start_ns))
        return reversed(process.lookups) if process is not None else iter(())

    def join(
        self, conn: ConnEvent, *, sni: str | None, in_order: bool = False
    ) -> Join | Ambiguous | None:
        """Find the lookup that a connection came from.

        Args:
            conn: the connection.
            sni: the name in its ClientHello, if there was one.
            in_order: every connection that began earlier has been through here.
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
        if sni is not None:
            named = [x for x in fits if x.name.lower().rstrip(".") == sni]
            fits = named or fits
        own = [x for x in fits if x.task.tid == conn.tid]
        if len({x.name for x in fits}) == 1:
            return Join(own[0], "thread") if own else Join(fits[0], "process")
        if own:
            return self._of_thread(conn, own, fits, in_order=in_order)
        if len(process.connectors) < 2:
            process.connectors.add(conn.tid)
        if conn.tid != conn.pid or len(process.connectors) > 1:
            return None  # several threads connect, and nothing says which answer is whose
        return self._by_order(fits, "process", in_order=in_order)

    # Several names fit, and the thread has asked for one itself: that one, unless it may have been
    # handed another thread's answer since.
    def _of_thread(
        self, conn: ConnEvent, own: list[Lookup], fits: list[Lookup], *, in_order: bool
    ) -> Join | Ambiguous | None:
        found = self._by_order(own, "thread", in_order=in_order)
        if isinstance(found, Ambiguous):
            return found
        lookup = found.lookup
        handed = any(
            x.name != lookup.name and x.end_ns > lookup.end_ns and x.task.tid != conn.tid
            for x in fits
        )
        if handed and not lookup.uses and not in_order:
            return AMBIGUOUS  # a connection that began earlier may have used its own
        return None if handed and lookup.uses else found

    # Of several names, the oldest that no connection has used; else the newest.
    @staticmethod
    def _by_order(fits: list[Lookup], match: Match, *, in_order: bool) -> Join | Ambiguous:
        newest = fits[0]
        rivals = [
            x
            for x in fits
            if not x.uses and newest.end_ns - x.end_ns < RIVALS_NS and x.name != newest.name
        ]
        if not rivals:
            return Join(newest, match)
        if not in_order:
            return AMBIGUOUS
        if newest.uses:
            return Join(rivals[-1], match)
        return Join(min(newest, *rivals, key=lambda x: x.end_ns), match)

    def may_help(self, pid: int, ppid: int) -> bool:
        """Whether a relative of this process has looked up a name."""
        return pid in self._helped or ppid in self._helped

    def helped(self, conn: ConnEvent, *, sni: str | None) -> Join | None:
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
        if sni is not None:
            fits = [x for x in fits if x.name.lower().rstrip(".") == sni] or fits
        if len({x.name for x in fits}) != 1:
            return None
        return Join(max(fits, key=lambda x: x.end_ns), "host")

    def literal_asked(self, conn: ConnEvent) -> bool:
        """Whether the process gave this very address, as a literal, to getaddrinfo()."""
        process = self._processes.get((conn.pid, conn.start_ns))
        if process is None:
            return False
        key = address_key(conn.family, conn.raddr)
        return any(x.is_literal and key in x.keys for x in process.lookups)


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
        start_ns=event.start_ns,
        end_ns=event.end_ns,
        ret=event.ret,
        hint_flags=event.hint_flags,
        service_port=event.answers[0].port if event.answers else 0,
        addresses=tuple(addresses),
        keys=frozenset(keys),
        cut=bool(event.flags & LookupFlag.CUT),
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
