"""Connections counted per process and host, over windows of time, within bounds.

Theory of operation. A leaf is one process speaking to one host: as one user, by one name and in one
unit, for a process may become another's and another program. A record is counted in its leaf's
tally of the current slice of time and nowhere else. When a slice ends it is merged into the
leaves' totals since the start, and kept:

==========  ===========  ===========================================
slices      each         kept
==========  ===========  ===========================================
fine        10 s         for five minutes, then merged into a coarse
coarse      5 min        for a little over an hour
total       everything   since the daemon started, per leaf
==========  ===========  ===========================================

A question about the time since T adds up the slices since T; about longer than an hour ago, or
about everything, the totals and the current slice. The least recently active leaves give way when
there are too many: what the totals and the slices hold of them becomes part of their process's
leaf for all hosts, where the process has others, and else of "other", of their own user, so that no
slice knows more leaves than there are now. What an ended slice holds of a
leaf is never changed, only replaced: it can be added up while records come in.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

from conmon.names import fold_host
from conmon.record import Record
from monitor.stats.query import OpenConns, StatsAnswer, StatsQuery, Who, text_of
from monitor.stats.tally import PHASES, Tally

__all__ = ["Stats"]

FINE_NS: Final = 10_000_000_000
FINE_FOR_NS: Final = 300_000_000_000
COARSE_NS: Final = 300_000_000_000
COARSE_FOR_NS: Final = 3_900_000_000_000
_LONGEST_NS: Final = COARSE_FOR_NS  # so old is the end of the last coarse slice that is kept
MAX_HOSTS_OF_ONE: Final = 64
MAX_SPARED: Final = 8
MAX_UIDS: Final = 1000  # whose "other" is told apart
MAX_UIDS_OF_SLICE: Final = 250  # likewise, in each of some 45 slices

_ProcessKey = tuple[int | None, int | None]
_LeafKey = tuple[_ProcessKey, str | None, int | None, str | None, str | None, str | None]
"""Process, host, uid, comm, unit, container."""


class _Leaf:
    """One process and host. ``total`` holds every slice that has ended."""

    __slots__ = ("key", "since_ns", "total", "who")

    def __init__(self, key: _LeafKey, who: Who, since_ns: int) -> None:
        self.key = key
        self.who = who
        self.since_ns = since_ns  # the beginning of the first slice that may know it
        self.total = Tally()


class _Slice:
    """What ended in one span of time. ``other``: of leaves that there was no room for, by uid."""

    __slots__ = ("begin_ns", "other", "tallies")

    def __init__(self, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self.tallies: dict[_Leaf, Tally] = {}
        self.other: dict[int | None, Tally] = {}

    def fold(self, uid: int | None, tally: Tally) -> None:
        """Count what is no longer told apart."""
        _of_uid(self.other, uid, MAX_UIDS_OF_SLICE).merge(tally)


_Counted = tuple[_Leaf, Tally]
_Tallies = dict[_Leaf, Tally]


class Stats:
    """Statistics since a moment. All times are nanoseconds since 1970.

    Args:
        started_ns: when the daemon started.
        max_processes, max_hosts: how many are told apart.
    """

    def __init__(
        self, *, started_ns: int, max_processes: int = 1000, max_hosts: int = 1000
    ) -> None:
        self.started_ns = started_ns
        self.max_processes = max_processes
        self.max_hosts = max_hosts
        self.folded = 0
        """Leaves that became part of "other"."""
        self._leaves: OrderedDict[_LeafKey, _Leaf] = OrderedDict()
        self._of_process: Counter[_ProcessKey] = Counter()
        self._of_host: Counter[str] = Counter()
        self._other: dict[int | None, Tally] = {}
        self._current = _Slice(_floor(started_ns, FINE_NS))
        self._fine: deque[_Slice] = deque()
        self._coarse: deque[_Slice] = deque()

    @property
    def process_count(self) -> int:
        """Processes that are told apart now."""
        return len(self._of_process)

    @property
    def host_count(self) -> int:
        """Hosts that are told apart now."""
        return len(self._of_host)

    # -- in -----------------------------------------------------------------------------------

    def add(self, record: Record, process_start_ns: int | None, now_ns: int) -> None:
        """Count a record that ended.

        Args:
            process_start_ns: of its process; None where not known.
        """
        self._turn(now_ns)
        leaf = self._leaf(record, process_start_ns)
        tallies = self._current.tallies
        tally = tallies.get(leaf)
        if tally is None:
            tally = tallies[leaf] = Tally()
        tally.add(record)

    def _leaf(self, record: Record, start_ns: int | None) -> _Leaf:
        process = (record.pid, start_ns)
        host = record.host if record.host is None else fold_host(record.host)
        who = (record.uid, record.comm, record.unit, record.container)
        key = (process, host, *who)
        leaf = self._leaves.get(key)
        if leaf is not None:
            self._leaves.move_to_end(key)
            return leaf
        if host is not None and self._of_process[process] >= MAX_HOSTS_OF_ONE:
            self.folded += 1
            return self._crawler((process, "*", *who), record, start_ns)
        self._make_room(process, host)
        return self._begin(key, _who(record, start_ns, host))

    # A crawler's: told apart as one process's, but not by host.
    def _crawler(self, key: _LeafKey, record: Record, start_ns: int | None) -> _Leaf:
        leaf = self._leaves.get(key)
        if leaf is None:
            self._make_room(key[0], None)
            return self._begin(key, _who(record, start_ns, None, folded=True))
        self._leaves.move_to_end(key)
        return leaf

    def _begin(self, key: _LeafKey, who: Who) -> _Leaf:
        leaf = self._leaves[key] = _Leaf(key, who, self._current.begin_ns)
        self._of_process[key[0]] += 1
        if who.host is not None:
            self._of_host[who.host] += 1
        return leaf

    def _make_room(self, process: _ProcessKey, host: str | None) -> None:
        spared = 0
        while self._leaves and (
            (process not in self._of_process and len(self._of_process) >= self.max_processes)
            or (
                host is not None
                and host not in self._of_host
                and len(self._of_host) >= self.max_hosts
            )
            or len(self._leaves) >= self.max_processes + self.max_hosts
        ):
            key, leaf = self._leaves.popitem(last=False)
            if leaf.who.folded and self._of_process[key[0]] > 1 and spared < MAX_SPARED:
                self._leaves[key] = leaf  # its process was active with another
                spared += 1
                continue
            self.folded += 1
            _discount(self._of_process, leaf.key[0])
            if leaf.who.host is not None:
                _discount(self._of_host, leaf.who.host)
            if leaf.who.host is not None and self._of_process[leaf.key[0]]:
                self._fold_into_process(leaf)
                continue
            _of_uid(self._other, leaf.who.uid, MAX_UIDS).merge(leaf.total)
            for piece in self._slices_since(leaf.since_ns):
                tally = piece.tallies.pop(leaf, None)
                if tally is not None:
                    piece.fold(leaf.who.uid, tally)

    # Its process is more active than this: only the host is no longer told apart.
    def _fold_into_process(self, leaf: _Leaf) -> None:
        process, _, uid, comm, unit, container = leaf.key
        key = (process, "*", uid, comm, unit, container)
        into = self._leaves.get(key)
        if into is None:
            into = self._begin(key, leaf.who._replace(host=None, folded=True))
        into.since_ns = min(into.since_ns, leaf.since_ns)
        into.total.merge(leaf.total)
        into.total.compact()
        for piece in self._slices_since(leaf.since_ns):
            tally = piece.tallies.pop(leaf, None)
            if tally is not None:
                known = piece.tallies.get(into)
                piece.tallies[into] = tally if known is None else _sum(known, tally)

    def _slices_since(self, since_ns: int) -> Iterator[_Slice]:
        """Yield, newest first, the slices that end after a moment."""
        yield self._current
        for piece in reversed(self._fine):
            if piece.begin_ns < since_ns:
                return
            yield piece
        for piece in reversed(self._coarse):
            if piece.begin_ns + COARSE_NS <= since_ns:
                return
            yield piece

    # -- time ---------------------------------------------------------------------------------

    def _turn(self, now_ns: int) -> None:
        """End the current slice if its time is over."""
        current = self._current
        # a clock that was set back goes on in the slice it is in
        if now_ns < current.begin_ns + FINE_NS:
            return
        self._current = _Slice(_floor(now_ns, FINE_NS))
        if current.tallies or current.other:
            for leaf, tally in current.tallies.items():
                leaf.total.merge(tally)
                leaf.total.compact()
                tally.compact()
            for uid, tally in current.other.items():
                _of_uid(self._other, uid, MAX_UIDS).merge(tally)
                tally.compact()
            self._fine.append(current)
        self._age(now_ns)

    def _age(self, now_ns: int) -> None:
        while self._fine and self._fine[0].begin_ns + FINE_NS <= now_ns - FINE_FOR_NS - FINE_NS:
            piece = self._fine.popleft()
            begin_ns = _floor(piece.begin_ns, COARSE_NS)
            if not self._coarse or self._coarse[-1].begin_ns != begin_ns:
                self._coarse.append(_Slice(begin_ns))
            self._merge_slice(self._coarse[-1], piece)
        while self._coarse and self._coarse[0].begin_ns + COARSE_NS <= now_ns - COARSE_FOR_NS:
            self._coarse.popleft()

    def _merge_slice(self, into: _Slice, piece: _Slice) -> None:
        for leaf, tally in piece.tallies.items():
            known = into.tallies.get(leaf)
            if known is not None:
                # another one, since a question may be adding up what was there
                tally = _sum(known, tally)
            into.tallies[leaf] = tally
        for uid, tally in piece.other.items():
            into.fold(uid, tally)

    # -- out ----------------------------------------------------------------------------------

    def processes(
        self, query: StatsQuery, open_now: Sequence[OpenConns], now_ns: int
    ) -> StatsAnswer:
        """Add up what was asked for. See :meth:`collect`."""
        return self.collect(query, open_now, now_ns).answer()

    def collect(self, query: StatsQuery, open_now: Sequence[OpenConns], now_ns: int) -> Collected:
        """Gather what was asked for; what is left to do then needs nothing of this object.

        Args:
            query: which connections, how grouped, since when.
            open_now: all connections that are open; those that fit are counted.
        """
        self._turn(now_ns)
        since_ns, counted, ended, others = self._window(query.since_ns, now_ns)
        found = Collected(query, since_ns, ended)
        found.add(counted)
        # those begun before are open, but not of this window
        found.add_open(open_now, 1 if query.since_ns is None else since_ns)
        for uid, tally in others:
            if any(wanted not in (None, uid) for wanted in (query.uid_only, query.uid)):
                continue
            if query.filters_who:
                found.untold += tally.ended
            else:
                found.other.tally.merge(tally)
        return found

    def _window(
        self, since_ns: int | None, now_ns: int
    ) -> tuple[int, Iterable[_Counted], list[_Tallies], list[tuple[int | None, Tally]]]:
        """Return where it begins; what still changes, and what does not; and of no leaf."""
        current = self._current
        if since_ns is None or since_ns <= self.started_ns or since_ns < now_ns - _LONGEST_NS:
            totals = ((leaf, leaf.total) for leaf in self._leaves.values())
            others = [*self._other.items(), *current.other.items()]
            return self.started_ns, chain(totals, current.tallies.items()), [], others
        begin_ns = _floor(since_ns, FINE_NS)
        slices = [piece for piece in self._fine if piece.begin_ns >= begin_ns]
        if begin_ns < now_ns - FINE_FOR_NS - FINE_NS:
            begin_ns = _floor(since_ns, COARSE_NS)
            slices = [*self._fine, *(p for p in self._coarse if p.begin_ns >= begin_ns)]
        # copied as a whole: a tuple for each would set the garbage collector to work
        ended = [piece.tallies.copy() for piece in slices]
        if begin_ns <= current.begin_ns:
            slices.append(current)
        others = [item for piece in slices for item in piece.other.items()]
        counted = current.tallies.items() if begin_ns <= current.begin_ns else ()
        return max(self.started_ns, begin_ns), counted, ended, others


class Collected:
    """What one question asks for. :meth:`answer` needs no lock, as :class:`Stats` does."""

    def __init__(self, query: StatsQuery, since_ns: int, ended: list[_Tallies]) -> None:
        self.other = _Row(None)
        self.untold = 0
        self._query = query
        self._since_ns = since_ns
        self._ended = ended
        self._rows: dict[Any, _Row] = {}

    def add(self, counted: Iterable[_Counted]) -> None:
        """Count what leaves have."""
        query = self._query
        any_host = query.any_host() if query.host is not None else None
        key_of = _GROUPS[query.by]
        rows = self._rows
        for leaf, tally in counted:
            who = leaf.who
            if not query.wants(who):
                if any_host is not None and who.folded and any_host.wants(who):
                    self.untold += tally.ended
                continue
            if query.by == "host" and who.folded:
                self.other.tally.merge(tally)
                continue
            key = key_of(who)
            row = rows.get(key)
            if row is None:
                row = rows[key] = _Row(who)
            elif leaf.since_ns >= row.since_ns:
                row.who = who  # what the process is now
            row.since_ns = max(row.since_ns, leaf.since_ns)
            row.tally.merge(tally)
            row.processes.add((who.pid, who.process_start_ns))

    def add_open(self, open_now: Sequence[OpenConns], from_ns: int) -> None:
        """Count what is open, and as opened what began since a moment."""
        key_of = _GROUPS[self._query.by]
        for conn in open_now:
            if not self._query.wants(conn):
                continue
            key = key_of(conn)
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = _Row(conn)
            row.processes.add((conn.pid, conn.process_start_ns))
            row.open += len(conn.began_ns)
            row.sent += conn.sent
            row.received += conn.received
            row.opened += sum(began_ns >= from_ns for began_ns in conn.began_ns)

    def answer(self) -> StatsAnswer:
        """Add up, sort and find quantiles, which takes longer than gathering. Once only."""
        for tallies in self._ended:
            self.add(tallies.items())
        self._ended = []
        query = self._query
        ordered = _ordered(self._rows.values(), query.sort)
        shown = ordered if query.limit is None else ordered[: query.limit]
        return StatsAnswer(
            query.by,
            self._since_ns,
            [_row_dict(row, query.by) for row in shown],
            _row_dict(self.other, None) if self.other.tally.ended else None,
            len(ordered),
            self.untold,
        )


class _Row:
    __slots__ = ("open", "opened", "processes", "received", "sent", "since_ns", "tally", "who")

    def __init__(self, who: Who | OpenConns | None) -> None:
        self.who = who
        self.since_ns = 0
        self.tally = Tally()
        self.processes: set[tuple[int | None, int | None]] = set()
        self.open = 0
        self.opened = 0
        self.sent = 0
        self.received = 0


_GROUPS: Final[dict[str, Callable[[Who | OpenConns], Any]]] = {
    "process": lambda who: (who.pid, who.process_start_ns),
    "comm": lambda who: who.comm,
    "unit": lambda who: who.unit,
    "container": lambda who: who.container,
    "uid": lambda who: who.uid,
    "host": lambda who: who.host,
}


def _ordered(rows: Iterable[_Row], sort: str) -> list[_Row]:
    if sort in PHASES:
        phase = PHASES.index(sort)
        return sorted(rows, key=lambda row: row.tally.p95(phase), reverse=True)
    if sort == "comm":
        return sorted(rows, key=lambda row: (row.who.comm or "") if row.who else "")
    if sort == "pid":
        return sorted(rows, key=lambda row: (row.who.pid or 0) if row.who else 0)
    keys: dict[str, Callable[[_Row], int]] = {
        "opened": lambda row: row.tally.ended + row.opened,
        "failed": lambda row: row.tally.failed,
        "open": lambda row: row.open,
        "bytes": lambda row: (
            row.tally.bytes_sent + row.tally.bytes_received + row.sent + row.received
        ),
    }
    return sorted(rows, key=keys[sort], reverse=True)


def _row_dict(row: _Row, by: str | None) -> dict[str, Any]:
    who = row.who
    tally = row.tally

    def fixed(*groupings: str) -> bool:
        return who is not None and by in groupings

    start_ns = who.process_start_ns if who is not None else None
    return {
        "pid": who.pid if who and fixed("process") else None,
        "started": text_of(start_ns) if start_ns is not None and fixed("process") else None,
        "comm": who.comm if who and fixed("process", "comm") else None,
        "exe": who.exe if who and fixed("process") else None,
        "unit": who.unit if who and fixed("process", "unit") else None,
        "container": who.container if who and fixed("process", "container") else None,
        "uid": who.uid if who and fixed("process", "uid") else None,
        "host": who.host if who and fixed("host") else None,
        "processes": len(row.processes) if who is not None else None,
        "opened": tally.ended + row.opened,
        "failed": tally.failed,
        "failures": dict(tally.failures or {}),
        "open": row.open,
        "bytes_sent": tally.bytes_sent + row.sent,
        "bytes_received": tally.bytes_received + row.received,
        **tally.latencies(),
    }


def _who(record: Record, start_ns: int | None, host: str | None, *, folded: bool = False) -> Who:
    return Who(
        record.pid, start_ns, record.comm, record.exe, record.unit, record.container, record.uid,
        host, folded,
    )  # fmt: skip


def _sum(one: Tally, other: Tally) -> Tally:
    both = Tally()
    both.merge(one)
    both.merge(other)
    both.compact()
    return both


def _floor(moment_ns: int, step_ns: int) -> int:
    return moment_ns - moment_ns % step_ns


def _of_uid(tallies: dict[int | None, Tally], uid: int | None, most: int) -> Tally:
    if uid not in tallies and len(tallies) >= most:
        uid = None
    tally = tallies.get(uid)
    if tally is None:
        tally = tallies[uid] = Tally()
    return tally


def _discount(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
