"""Events in, conmon records out. No sockets, files, clocks or threads in here.

Theory of operation. A connection arrives once, when it has ended (``ConnEvent``), and is a
record at once, but for two cases that need to know what else is open:

===========================  ========================================  =======================
what ended                   what is still unknown                     settled by
===========================  ========================================  =======================
attempt that failed, made    whether another address of the answer     a snapshot after HOLD_NS,
from a lookup                wins (Happy Eyeballs, retries)            or the winner's own end
connection that several      which of them earlier connections, still  a snapshot: all take their
lookups fit                  open, came from                           lookup in order of begin
lookup that failed           whether the same name is asked again      HOLD_NS, or the process's
                             (other family, other flags)               end
===========================  ========================================  =======================

A snapshot is the map of open connections, read by the caller: :meth:`Correlator.snapshot`. The
caller takes one when :meth:`Correlator.deadline` says so, and now and then in any case, so that
open connections keep their lookups. ``now_ns`` is CLOCK_MONOTONIC throughout.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from conmon.names import AI_NUMERICHOST
from conmon.record import Record, Tcp
from monitor.correlate.asked import has_hellos, http_asked, says_whom, sni_asked
from monitor.correlate.attempts import Held, HeldAttempts, Trial, group_of, trial_of
from monitor.correlate.build import Clock, Facts, lookup_record, record_of
from monitor.correlate.dns_wire import DnsTable
from monitor.correlate.failed import FailedLookups
from monitor.correlate.hellos import HelloTable
from monitor.correlate.identity import Identities, Identity
from monitor.correlate.kin import Kin
from monitor.correlate.lookup import Asked, Join, Lookup
from monitor.correlate.lookups import AMBIGUOUS, Ambiguous, LookupTable, Nameless
from monitor.correlate.losses import Losses, Lost
from monitor.correlate.plain import TurnTable
from monitor.correlate.sockets import Sockets
from monitor.correlate.text import address_key
from monitor.decode import (
    ConnEvent,
    ConnFlag,
    DnsEvent,
    Event,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    HelloEvent,
    LookupEvent,
)

__all__ = ["Correlator", "Key", "Lost"]

# Happy Eyeballs starts the next attempt within 250 ms (RFC 8305), a retry follows at once.
HOLD_NS: Final = 400_000_000
# After a process ended nothing follows; its last packets may still be under way.
EXIT_HOLD_NS: Final = 20_000_000
# ... and what is left open is told of in a snapshot, which comes within a second or two.
FORGET_NS: Final = 10_000_000_000
MAX_HELD: Final = 16_384  # connections and lookups put off at one time; past it they are settled
MAX_OPEN: Final = 131_072
DEFERRED_HOLD_NS: Final = 50_000_000
# An address that DNS gave and that getaddrinfo() was then asked for as a literal is that name's if
# the connection follows within this.
LITERAL_NS: Final = 1_000_000_000
RESOLVED: Final = "systemd-resolved"


AI_CANONNAME: Final = 0x2  # glibc and musl

Key = tuple[int, int]
"""An open connection: its sk and connect_ns."""


def _key(conn: ConnEvent) -> bytes:
    return address_key(conn.family, conn.raddr)


@dataclass(slots=True)
class _Open:
    """A connection seen in a snapshot."""

    trial: Trial
    join: Join | None = None
    joined: bool = False
    earlier: tuple[ConnEvent, ...] = ()
    announced: bool = False
    missing: int = 0


class Correlator:
    """Joins events to records.

    Args:
        facts: of this host and daemon.
        identities: who a process is.
        clock: monotonic to wall time.
        live: also return a record, ``state`` open, once a connection's set-up is complete.
    """

    def __init__(
        self, *, facts: Facts, identities: Identities, clock: Clock, live: bool = False
    ) -> None:
        self.facts = facts
        self.clock = clock
        self.vanished = 0
        """Open connections that left the map without their event arriving."""
        self._identities = identities
        self.live = live
        """Records are also returned once their connection is set up."""
        self._lookups = LookupTable()
        self._dns = DnsTable()
        self._hellos = HelloTable()
        self._sockets = Sockets()
        self._ended_meanwhile: set[Key] | None = None
        # the kernel hands an end over first, and takes its entry out of the map then
        self._ended_last: deque[Key] = deque(maxlen=64)
        self.plain = TurnTable()
        """What TLS libraries were seen to read and write, where somebody asked for that."""
        self._open: dict[Key, _Open] = {}
        self._held = HeldAttempts(most=MAX_HELD)
        self._deferred: list[ConnEvent] = []
        self._failed_lookups = FailedLookups(most=MAX_HELD)
        self._kin = Kin()
        self._losses = Losses()
        self._lookup_since_snapshot = False
        self._ended: deque[tuple[tuple[int, int], int]] = deque()
        """Processes that have looked up names and ended, and when."""

    # -- in -----------------------------------------------------------------------------------

    def feed(self, event: Event | Lost) -> list[Record]:
        """Take in one event; return the records that it completes."""
        match event:
            case ConnEvent():
                return self._conn_ended(event)
            case LookupEvent():
                return self._lookup_returned(event)
            case DnsEvent():
                self._lookup_since_snapshot = True
                self._dns.add(event)
            case HelloEvent():
                self._hellos.add(event)
            case ExitEvent():
                self._process_ended(event)
            case ForkEvent():
                asked = (event.parent, event.parent_start_ns) in self._dns
                self._lookups.forked(event, asked=asked)
            case Lost():
                self._losses.note(event)
            case ExecEvent():
                task = event.task
                self._lookups.replaced((task.pid, task.start_ns))
                self._kin.executed(task)
        return []

    @property
    def lookups_dropped(self) -> int:
        """Lookups on the wire of which nobody will know whether they failed."""
        return self._dns.dropped

    def wants_snapshot(self) -> bool:
        """Whether open connections may need a lookup pinned, or are to be announced."""
        return self.live or self._lookup_since_snapshot

    def deadline(self) -> int | None:
        """When a snapshot is wanted at the latest; None if nothing waits for one."""
        times = list(self._held.deadlines_ns())
        times += [conn.end_ns + DEFERRED_HOLD_NS for conn in self._deferred]
        for failing_ns in (self._failed_lookups.deadline_ns(), self._dns.deadline_ns()):
            if failing_ns is not None:
                times.append(failing_ns)
        return min(times, default=None)

    def wants(self, key: Key, process: tuple[int, int], ppid: int, *, established: bool) -> bool:
        """Whether the next snapshot needs the event of an open connection, not its key alone.

        Most open connections are of processes that have looked up nothing lately: there is nothing
        to remember of them until they end.

        Args:
            key: its sk and connect_ns.
            process, ppid: the pid and start of its process, and its parent's pid.
        """
        opened = self._open.get(key)
        if opened is None:
            return (
                self.live
                or process in self._lookups
                or process in self._dns
                or self._lookups.may_help(process[0], ppid)
            )
        if not opened.joined:
            return True
        return established != bool(opened.trial.established_ns) or (
            self.live and not opened.announced
        )

    def knows(self, key: Key) -> bool:
        """Whether an open connection is remembered: snapshots must tell that it is there."""
        return key in self._open

    def begin_snapshot(self) -> None:
        """The map is about to be read for :meth:`snapshot`: what ends from now on may be in it."""
        self._ended_meanwhile = set(self._ended_last)

    def snapshot(
        self, conns: Iterable[ConnEvent], *, others: Iterable[Key] = (), now_ns: int
    ) -> list[Record]:
        """Take in all connections that are open now, and settle what waited for that.

        Args:
            conns: from the map ``conn_by_sk``, in the order in which they began. Every event that
                the kernel submitted before it was read has been fed.
            others: sk and connect_ns of those in the map that :meth:`wants` did not want and that
                it :meth:`knows`.
        """
        self._lookup_since_snapshot = False
        ended, self._ended_meanwhile = self._ended_meanwhile, None
        if ended:
            conns = (conn for conn in conns if (conn.sk, conn.connect_ns) not in ended)
        current = set(others)
        answered: list[ConnEvent] = []
        records = self._settle_in_order(self._unsettled(conns, current, answered))
        for key in [key for key in self._open if key not in current]:
            known = self._open[key]
            known.missing += 1
            if known.missing > 1:  # once may be its event being under way
                del self._open[key]
                self._hellos.take(*key)
                self.vanished += 1
        self._claim_held()
        records += self._expire(now_ns)
        records += self._announce(answered)
        return records

    def _unsettled(
        self, conns: Iterable[ConnEvent], current: set[Key], answered: list[ConnEvent]
    ) -> Iterator[tuple[ConnEvent, _Open]]:
        """Yield those whose lookup is still to be found, as they come: there may be very many.

        Args:
            current: takes in what each is known by.
            answered: takes in those that may be announced.
        """
        for conn in conns:
            key = (conn.sk, conn.connect_ns)
            current.add(key)
            opened = self._open.get(key)
            if opened is None:
                opened = _Open(trial_of(conn))
                if len(self._open) < MAX_OPEN:
                    self._open[key] = opened
            elif not opened.trial.established_ns:
                opened.trial = trial_of(conn)
                if opened.join is not None and conn.established_ns:
                    opened.join.took(_key(conn), established=True)
            opened.missing = 0
            if self.live and conn.first_resp_ns and not opened.announced:
                answered.append(conn)  # set-up ends with the first answer
            if not opened.joined:
                yield conn, opened

    def describe(self, conn: ConnEvent, tcp: Tcp | None) -> Record:
        """Return the record of an open connection as it stands. Nothing is settled by it.

        Args:
            conn: from the map ``conn_by_sk``.
            tcp: what its socket says; None where that is not known.
        """
        opened = self._open.get((conn.sk, conn.connect_ns))
        join: Join | None
        if opened is not None and opened.joined:
            join = opened.join
        elif conn.flags & ConnFlag.INBOUND:
            join = None
        else:
            found = self._join(conn)
            join = None if isinstance(found, Ambiguous) else found
        return self._record(conn, join, opened.earlier if opened is not None else (), tcp)

    def open_host(self, key: Key) -> str | None:
        """Return the name that an open connection was looked up by, as DNS compares it, where that
        is settled."""
        opened = self._open.get(key)
        lookup = opened.join.named if opened is not None and opened.join is not None else None
        return lookup.folded if lookup is not None else None

    def finish(self) -> list[Record]:
        """Settle everything that waits, because the monitor ends."""
        records = self._settle_in_order([])
        records += [self._failed_record(held) for held in self._held.clear()]
        records += [self._lookup_failed(lookup) for lookup in self._failed_lookups]
        self._failed_lookups.clear()
        return records

    # -- lookups ------------------------------------------------------------------------------

    def _lookup_returned(self, event: LookupEvent) -> list[Record]:
        self._lookup_since_snapshot = True
        if event.ret == 0:
            self._failed_lookups.found(self._lookups.add(event, self._kin.ancestors(event.task)))
            return []
        if event.hint_flags & AI_NUMERICHOST:
            return []  # only asked whether the text is an address
        if event.hint_flags & AI_CANONNAME and event.name == self.facts.hostname:
            return []  # asked what this host is called in full: nothing was to be connected to
        lookup = self._lookups.add(event, self._kin.ancestors(event.task))
        if self._lookups.has_twin(lookup):
            return []  # the name is there, in the other family
        if self._failed_lookups.hold(lookup, event, lookup.end_ns + HOLD_NS):
            return []
        return [self._lookup_failed(lookup)]

    def _lookup_failed(self, lookup: Lookup) -> Record:
        task = lookup.task
        who = self._identities.identify(
            pid=task.pid,
            start_ns=task.start_ns,
            comm=task.comm,
            exe_ino=task.exe_ino,
            exe_dev=task.exe_dev,
            cgroup_id=task.cgroup_id,
        )
        return lookup_record(lookup, facts=self.facts, clock=self.clock, who=who)

    # -- connections --------------------------------------------------------------------------

    def _conn_ended(self, conn: ConnEvent) -> list[Record]:
        opened = self._open.pop((conn.sk, conn.connect_ns), None)
        self._sockets.ended(conn)
        self._ended_last.append((conn.sk, conn.connect_ns))
        if self._ended_meanwhile is not None:
            self._ended_meanwhile.add((conn.sk, conn.connect_ns))
        if conn.flags & ConnFlag.INBOUND:
            return [self._record(conn, None, ())]
        if opened is not None and opened.joined:
            join = self._join_by_request(conn, opened.join)
            return self._finish_conn(conn, join, opened.earlier)
        found = self._join(conn)
        if isinstance(found, Ambiguous):
            if len(self._deferred) < MAX_HELD:
                self._deferred.append(conn)
                return []
            found = None  # a wrong name would be worse than none
        return self._finish_conn(conn, found, ())

    def _join(
        self, conn: ConnEvent, in_order: Sequence[ConnEvent] | None = None
    ) -> Join | Ambiguous | None:
        if (conn.pid, conn.start_ns) in self._lookups:
            found = self._lookups.join(conn, asked=lambda: self._asked(conn), in_order=in_order)
            if isinstance(found, Nameless):
                return None
            if found is not None:
                return found
        return self._other_join(conn)

    # When it was last looked at the ClientHello or the request had perhaps not been sent.
    def _join_by_request(self, conn: ConnEvent, join: Join | None) -> Join | None:
        said = self._asked(conn)
        if said is None or (join is not None and said.name in (None, join.lookup.folded)):
            return join
        found = self._join(conn)
        if not isinstance(found, Join):
            return join
        return found if join is None or found.lookup.folded == said.name else join

    # What explains a connection where no lookup call of its own process does: DNS messages on the
    # wire, or a relative that looked the name up.
    def _other_join(self, conn: ConnEvent) -> Join | None:
        process = (conn.pid, conn.start_ns)
        if process in self._dns:
            join = self._dns.join(conn, lambda: self._asked(conn))
            # c-ares' users hand what it found to getaddrinfo(), as a literal
            if join is not None and (
                conn.connect_ns - join.lookup.end_ns < LITERAL_NS
                or not self._lookups.literal_asked(conn)
            ):
                return join
        for ancestor, forked_ns in self._lookups.chain(process):
            if ancestor in self._dns:
                join = self._dns.join(conn, lambda: self._asked(conn), ancestor, forked_ns)
                if join is not None:
                    return join
        if self._lookups.may_help(conn.pid, conn.ppid):
            return self._lookups.helped(conn, asked=lambda: self._asked(conn))
        return None

    def _finish_conn(
        self, conn: ConnEvent, join: Join | None, earlier: Iterable[ConnEvent]
    ) -> list[Record]:
        self._lookups.connected(conn)
        if not conn.established_ns:
            if join is None or join.named is None or conn.flags & ConnFlag.END_UNSEEN:
                return [self._record(conn, join, ())]
            join.took(_key(conn), established=False)
            return self._hold(conn, join)
        if join is not None:
            join.took(_key(conn), established=True)
            earlier = [*earlier, *self._held.take(conn, join)]
        return [self._record(conn, join, tuple(earlier))]

    def _hold(self, conn: ConnEvent, join: Join) -> list[Record]:
        oldest = self._held.hold(conn, join, conn.end_ns + HOLD_NS)
        return [self._failed_record(oldest)] if oldest is not None else []

    def _failed_record(self, held: Held) -> Record:
        *earlier, last = sorted(held.conns, key=lambda conn: conn.end_ns)
        return self._record(last, held.join, tuple(earlier))

    def _record(
        self,
        conn: ConnEvent,
        join: Join | None,
        earlier: tuple[ConnEvent, ...],
        tcp: Tcp | None = None,
    ) -> Record:
        if join is not None and conn.flags & ConnFlag.LOOKUP_LOST:
            # its own lookup may be the one that was lost
            said = self._asked(conn)
            join = join if said is not None and said.name == join.lookup.folded else None
        hellos = None
        if has_hellos(conn):
            key = (conn.sk, conn.connect_ns)
            hellos = self._hellos.take(*key) if conn.end_ns else self._hellos.get(*key)
        plain = None
        if len(self.plain):
            plain = self.plain.protocol(conn)
            if conn.end_ns:
                self.plain.forget(conn)
        literal, in_doubt = join is not None and join.lookup.is_literal, False
        if join is None and not conn.flags & ConnFlag.INBOUND:
            literal, in_doubt = self._unnamed(conn)
        return record_of(
            conn,
            facts=self.facts,
            clock=self.clock,
            who=self._who(conn),
            join=join,
            literal=literal,
            in_doubt=in_doubt,
            asked=http_asked(conn, hellos),
            hellos=hellos,
            earlier=earlier,
            lost=self._losses.before(conn),
            lost_hello=self._losses.hello(conn),
            plain=plain,
            tcp=tcp,
            again=self._sockets.again(conn),
        )

    # Whether the program gave the address as such, and whether the connection may have come from a
    # lookup, but which one is not known.
    def _unnamed(self, conn: ConnEvent) -> tuple[bool, bool]:
        process = (conn.pid, conn.start_ns)
        known = process in self._lookups
        in_doubt = process in self._dns and self._dns.has_answer(conn)
        if not in_doubt and (known or self._lookups.may_help(conn.pid, conn.ppid)):
            in_doubt = self._lookups.has_answer(conn)
        return known and self._lookups.literal_asked(conn), in_doubt

    def _who(self, conn: ConnEvent) -> Identity:
        return self._identities.identify(
            pid=conn.pid,
            start_ns=conn.start_ns,
            comm=conn.comm,
            exe_ino=conn.exe_ino,
            exe_dev=conn.exe_dev,
            cgroup_id=conn.cgroup_id,
        )

    # Whom its own bytes ask for.
    def _asked(self, conn: ConnEvent) -> Asked | None:
        if not says_whom(conn):
            return None
        hellos = self._hellos.get(conn.sk, conn.connect_ns)
        return sni_asked(conn, hellos) or http_asked(conn, hellos)

    # -- what waited --------------------------------------------------------------------------

    def _settle_in_order(self, fresh: Iterable[tuple[ConnEvent, _Open]]) -> list[Record]:
        """Join open connections and put-off ones, in the order in which they began."""
        records: list[Record] = []
        deferred, self._deferred = self._deferred, []
        deferred.sort(key=lambda conn: conn.connect_ns)
        waiting: Iterator[tuple[ConnEvent, _Open | None]] = heapq.merge(
            fresh, ((conn, None) for conn in deferred), key=lambda item: item[0].connect_ns
        )
        doubtful: list[tuple[ConnEvent, _Open | None]] = []
        for conn, opened in waiting:
            if conn.flags & ConnFlag.INBOUND and opened is not None:
                opened.joined = True
                continue
            found = AMBIGUOUS if opened is None else self._join(conn)
            if isinstance(found, Ambiguous):
                doubtful.append((conn, opened))
            else:
                records += self._settled(conn, opened, found)
        conns = [conn for conn, _ in doubtful]
        self._lookups.doubtful(conns)
        for place, (conn, opened) in enumerate(doubtful):
            found = self._join(conn, conns[place:])
            assert not isinstance(found, Ambiguous)
            records += self._settled(conn, opened, found)
        return records

    def _settled(self, conn: ConnEvent, opened: _Open | None, join: Join | None) -> list[Record]:
        if opened is None:
            return self._finish_conn(conn, join, ())
        self._lookups.connected(conn)
        if join is not None:
            join.took(_key(conn), established=bool(conn.established_ns))
        # without a lookup one that may still fail is asked again: its ClientHello may tell
        opened.join = join
        opened.joined = join is not None or bool(conn.established_ns)
        return []

    def _claim_held(self) -> None:
        """Give failed attempts to the open connection that they led to."""
        if not self._held:
            return
        for opened in self._open.values():
            if opened.join is not None and opened.trial.established_ns:
                opened.earlier += tuple(self._held.take(opened.trial, opened.join))

    def _expire(self, now_ns: int) -> list[Record]:
        records = []
        trying = (
            {
                group_of(opened.trial, opened.join)
                for opened in self._open.values()
                if opened.join is not None and not opened.trial.established_ns
            }
            if self._held
            else set()
        )
        for held in self._held.due(now_ns, trying, HOLD_NS):
            records.append(self._failed_record(held))
        records += [self._lookup_failed(lookup) for lookup in self._failed_lookups.due(now_ns)]
        for lookup in self._dns.failures(now_ns):
            record = self._lookup_failed(lookup)
            # it asks for others, whose own records say that it failed
            if (record.exe or "").rpartition("/")[2] != RESOLVED:
                records.append(record)
        return records

    def _announce(self, conns: Sequence[ConnEvent]) -> list[Record]:
        records = []
        for conn in conns:
            opened = self._open.get((conn.sk, conn.connect_ns))
            if opened is None or not opened.joined:
                continue
            opened.announced = True
            records.append(self._record(conn, opened.join, opened.earlier))
        return records

    def _process_ended(self, event: ExitEvent) -> None:
        process = event.pid, event.start_ns
        self._kin.ended(event.pid)
        self._lookups.ended(process, event.ts_ns)
        self._dns.process_ended(process, event.ts_ns)
        if process in self._lookups or process in self._dns:
            self._lookup_since_snapshot = True  # for what it leaves open
            self._ended.append((process, event.ts_ns))
        while self._ended and event.ts_ns - self._ended[0][1] > FORGET_NS:
            ended, at_ns = self._ended.popleft()
            self._lookups.replaced(ended)
            if self._lookups.is_needed(ended):
                self._ended.append((ended, event.ts_ns))
                continue
            self._lookups.forget(ended, at_ns)
            self._dns.forget(ended, at_ns)
        deadline = event.ts_ns + EXIT_HOLD_NS
        self._held.process_ended(process, deadline)
        self._failed_lookups.process_ended((event.pid, event.start_ns), deadline)
