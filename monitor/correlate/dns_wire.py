"""Names from DNS messages on the wire, for connections that no getaddrinfo() explains.

Messages are kept as bytes and parsed only when a connection of the same process asks for a name
that nothing better gives, or when a lookup failed: dnspython takes 11 MB, and most hosts never
need it here.

Theory of operation of failures. All questions of one process for one name (A, AAAA, their
repetitions, the same over TCP) are one lookup. It failed when each was answered and none with
records, and nothing followed for HOLD_NS; or when one stayed without an answer for GIVE_UP_NS or
until its process ended. Names that differ only by what follows them are tries of a search list:
one lookup too, by its shortest name, or by the one that was found (see ``search``).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from conmon.names import EAI_AGAIN, EAI_NODATA, EAI_NONAME
from monitor.correlate.choice import RIVALS_NS, Evicted
from monitor.correlate.dns_message import first_question, parse_answer
from monitor.correlate.lookup import Ask, Join, Lookup, Match, make_wire_lookup
from monitor.correlate.lookups import FRESH_NS
from monitor.correlate.text import address_key
from monitor.correlate.undecided import (
    SAME_LOOKUP_NS,
    Process,
    Undecided,
    UndecidedTable,
)
from monitor.decode import ConnEvent, DnsEvent, DnsFlag, Task

__all__ = ["DnsTable", "parse_answer"]

MAX_QUESTIONS: Final = 16_384  # waiting for their answer
PER_PROCESS: Final = 512  # answers kept of one process
TOTAL: Final = 4096  # ... and of all
TOTAL_BYTES: Final = 2 << 20
MAX_UNDECIDED: Final = 8192  # lookups that may yet fail
MAX_OF_SERVERS: Final = 256
MAX_FAILING: Final = 8  # of one process: as many lookups go on at one time
MAX_STREAMS: Final = 256  # directions of TCP connections ...
MAX_STREAM_BYTES: Final = 16_384  # ... and what one of them may hold back
_RESPONSE_BIT: Final = 0x80
_TRUNCATED_BIT: Final = 0x02
_NXDOMAIN: Final = 3
_QUESTION_BYTES: Final = 12 + 255 + 4  # header, the longest name, type and class


@dataclass(slots=True, eq=False)
class _Exchange:
    """A question and its answer."""

    task: Task
    asked_ns: int
    answered_ns: int
    raw: bytes
    size: int
    asked: bytes
    """The name in its question, as it stands there, in lower case."""
    begun_ns: int
    """When the lookup's first question was asked, other names of the search list included."""
    kind: int = 0
    name: str | None = None
    addresses: list[tuple[int, bytes]] | None = None
    keys: frozenset[bytes] = frozenset()
    stub: bool = False
    unsettled: bool = False
    """The server could not say, or not so long a thing: the question is asked again."""
    lookup: Lookup | None = None
    """What this is a part of."""

    def parse(self) -> None:
        if self.addresses is None:
            self.name, self.addresses = parse_answer(self.raw)
            if self.raw[2] & _TRUNCATED_BIT:  # asked again over TCP
                self.addresses = []
            self.keys = frozenset(address_key(*address) for address in self.addresses)
            self.raw = b""


@dataclass(slots=True)
class _Stream:
    """One direction of a TCP connection to port 53."""

    next_seq: int
    held: bytes = b""


@dataclass(slots=True)
class _Asked:
    task: Task
    asked_ns: int
    undecided: Undecided | None


class DnsTable:
    """DNS exchanges by the process that asked, oldest forgotten first."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[int, int], _Asked] = OrderedDict()
        # least recently answered first
        self._answered: OrderedDict[Process, deque[_Exchange]] = OrderedDict()
        self._count = 0
        self._bytes = 0
        self._evicted: dict[Process, Evicted] = {}
        self._evicted_all_ns = 0  # the newest answer of a process of which none is kept any more
        self._undecided = UndecidedTable(most=MAX_UNDECIDED)
        self._of_servers = UndecidedTable(most=MAX_OF_SERVERS)
        # the newest without records, of which a next try may follow
        self._failing: OrderedDict[Process, deque[Undecided]] = OrderedDict()
        self._streams: OrderedDict[tuple[int, bool], _Stream] = OrderedDict()

    def __contains__(self, process: Process) -> bool:
        return process in self._answered

    def add(self, event: DnsEvent) -> None:
        """Take in a question or an answer; what is neither is let go."""
        for data in self._messages(event):
            if len(data) < 12 or bool(data[2] & _RESPONSE_BIT) != bool(
                event.flags & DnsFlag.RECEIVED
            ):
                continue
            key = (event.sk, data[0] << 8 | data[1])
            if event.flags & DnsFlag.RECEIVED:
                self._answer(key, event, data)
            else:
                self._question(key, event, data)

    def _messages(self, event: DnsEvent) -> Iterator[bytes]:
        if not event.flags & DnsFlag.STREAM:
            yield event.data
            return
        key = (event.sk, bool(event.flags & DnsFlag.RECEIVED))
        stream = self._streams.get(key)
        if stream is None or stream.next_seq != event.seq:  # begun, or the socket is another's
            stream = self._streams[key] = _Stream(event.seq)
            if len(self._streams) > MAX_STREAMS:
                self._streams.popitem(last=False)
        stream.next_seq = (event.seq + len(event.data)) & 0xFFFFFFFF
        held = stream.held + event.data
        while len(held) >= 2 and len(held) >= 2 + (length := held[0] << 8 | held[1]):
            yield held[2 : 2 + length]
            held = held[2 + length :]
        if event.flags & DnsFlag.CUT or len(held) > MAX_STREAM_BYTES:
            del self._streams[key]  # where the next message begins is not known
        else:
            stream.held = held

    def _question(self, key: tuple[int, int], event: DnsEvent, data: bytes) -> None:
        undecided = None
        question = first_question(data)
        if question is not None and not event.flags & DnsFlag.INSIDE:
            undecided = self._undecided_of(event, question[0], data)
            if undecided.is_anew(question[1]):
                before_it = self._try_before(event, question[0], undecided)
                undecided.begin(question[0], event.ts_ns, before_it)
            undecided.waiting.add(key)
            undecided.ask(question[1], event.ts_ns)
        before = self._asked.pop(key, None)
        earlier = before.undecided if before is not None else None
        if earlier is not None and earlier is not undecided:
            # its socket's memory and number are used again: what comes is another's answer
            earlier.left(key)
            self._undecided.changed(earlier)
        if undecided is not None:
            self._undecided.changed(undecided)
        self._asked[key] = _Asked(event.task, event.ts_ns, undecided)
        if len(self._asked) > MAX_QUESTIONS:
            oldest, asked = self._asked.popitem(last=False)
            if asked.undecided is not None:
                self._undecided.forget_question(asked.undecided, oldest)

    def _undecided_of(self, event: DnsEvent, question: bytes, data: bytes) -> Undecided:
        task = event.task
        process = (task.pid, task.start_ns)
        # what a server asks to answer others is no failure of its own
        server = bool(event.flags & DnsFlag.SERVER)
        table = self._of_servers if server else self._undecided
        undecided = table.get(process, question)
        if undecided is None or not undecided.follows(event.ts_ns):
            undecided = Undecided(
                task, event.ts_ns, event.ts_ns, data[:_QUESTION_BYTES], server=server
            )
            table.put(process, question, undecided)
        undecided.last_ns = event.ts_ns
        undecided.stub = bool(event.flags & DnsFlag.STUB)
        return undecided

    def _try_before(self, event: DnsEvent, name: bytes, undecided: Undecided) -> Undecided | None:
        process = (event.task.pid, event.task.start_ns)
        return next(
            (
                x
                for x in reversed(self._failing.get(process, ()))
                if x is not undecided and x.is_tried_again(name, event.ts_ns)
            ),
            None,
        )

    def _note_failing(self, undecided: Undecided) -> None:
        process = (undecided.task.pid, undecided.task.start_ns)
        failing = self._failing.get(process)
        if failing is None:
            failing = self._failing[process] = deque(maxlen=MAX_FAILING)
            if len(self._failing) > MAX_UNDECIDED:
                self._failing.popitem(last=False)
        else:
            self._failing.move_to_end(process)
        if undecided not in failing:
            failing.append(undecided)

    def _answer(self, key: tuple[int, int], event: DnsEvent, data: bytes) -> None:
        asked = self._asked.pop(key, None)
        if asked is None:
            return
        undecided = asked.undecided
        question = first_question(data)
        kind = question[1] if question else 0
        asked_ns = asked.asked_ns
        if undecided is not None:
            asked_ns = min(asked_ns, undecided.asked_ns.get(kind, asked_ns))
            if not data[2] & _TRUNCATED_BIT:
                undecided.asked_ns.pop(kind, None)
            undecided.waiting.discard(key)
            undecided.unanswered = False
            undecided.last_ns = event.ts_ns
            rcode = data[3] & 15
            if not rcode and (data[6:8] != b"\0\0" or data[2] & _TRUNCATED_BIT):
                undecided.found()
            elif not rcode:
                undecided.ret = undecided.ret or EAI_NODATA
            else:
                undecided.ret = EAI_NONAME if rcode == _NXDOMAIN else EAI_AGAIN
            if not undecided.answered:
                self._note_failing(undecided)
            self._undecided.changed(undecided)
        process = (asked.task.pid, asked.task.start_ns)
        exchange = _Exchange(
            asked.task,
            asked_ns,
            event.ts_ns,
            data,
            len(data),
            question[0] if question else b"",
            min(asked_ns, undecided.begun_ns) if undecided is not None else asked_ns,
            kind,
            unsettled=bool(data[2] & _TRUNCATED_BIT) or data[3] & 15 not in (0, _NXDOMAIN),
            stub=bool(event.flags & DnsFlag.STUB),
        )
        self._keep(process, exchange)

    def _keep(self, process: Process, exchange: _Exchange) -> None:
        answers = self._answered.get(process)
        if answers is None:
            answers = self._answered[process] = deque()
        else:
            self._answered.move_to_end(process)
        answers.append(exchange)
        self._count += 1
        self._bytes += exchange.size
        if len(answers) > PER_PROCESS:
            self._let_go(process, answers.popleft())
        while self._count > TOTAL or self._bytes > TOTAL_BYTES:
            if len(self._answered) == 1:
                self._let_go(process, answers.popleft())
                continue
            oldest, its = self._answered.popitem(last=False)
            self._evicted_all_ns = max(self._evicted_all_ns, its[-1].answered_ns)
            for evicted in its:
                self._let_go(oldest, evicted)
            del self._evicted[oldest]

    def _let_go(self, process: Process, exchange: _Exchange) -> None:
        self._evicted.setdefault(process, Evicted()).add(exchange.asked, exchange.answered_ns)
        self._count -= 1
        self._bytes -= exchange.size

    # -- lookups that failed ------------------------------------------------------------------

    def deadline_ns(self) -> int | None:
        """When :meth:`failures` may have something at the earliest."""
        return self._undecided.deadline_ns()

    def failures(self, now_ns: int) -> list[Lookup]:
        """Return the lookups that have failed by now, and let go of what is decided."""
        return [_failed_lookup(tries) for tries in self._undecided.failures(now_ns)]

    @property
    def dropped(self) -> int:
        """Lookups of which nobody will know whether they failed: there were too many at a time."""
        return self._undecided.dropped

    def process_ended(self, process: Process, now_ns: int) -> None:
        """What a process left without an answer has failed."""
        self._undecided.process_ended(process, now_ns)

    def forget(self, process: Process, ended_ns: int) -> None:
        """Drop what a process was answered that ended, unless others of its threads went on."""
        self._failing.pop(process, None)
        answers = self._answered.get(process)
        if answers is None or answers[-1].answered_ns > ended_ns:
            return
        del self._answered[process]
        self._evicted.pop(process, None)
        self._count -= len(answers)
        self._bytes -= sum(x.size for x in answers)

    # -- names of connections -----------------------------------------------------------------

    def join(
        self, conn: ConnEvent, asked: Ask, process: Process | None = None, by_ns: int = 0
    ) -> Join | None:
        """The newest exchange of the connection's process that gave its address, as a lookup; None
        where none did, or where several names did and the connection asks for none of them: a
        wrong name would be worse.

        Args:
            asked: whom its bytes ask for.
            process: one that it was forked from ...
            by_ns: ... and when.
        """
        own = process is None
        process = process or (conn.pid, conn.start_ns)
        known = self._known(conn, process, by_ns or conn.connect_ns)
        key = address_key(conn.family, conn.raddr)
        newest = {(x.name, x.kind): x for x in known if x.addresses}
        fits = [
            x
            for x in known
            if key in x.keys and not _is_replaced(x, newest[x.name, x.kind], key, conn.connect_ns)
        ]
        if not fits:
            return None
        evicted = self._evicted.get(process)
        evicted_ns = evicted.but_for(fits[-1].asked) if evicted is not None else 0
        evicted_ns = max(evicted_ns, self._evicted_all_ns)
        alone = len({x.name for x in fits}) == 1
        sure = alone and conn.connect_ns - evicted_ns > RIVALS_NS
        spent = conn.connect_ns - fits[-1].answered_ns > FRESH_NS
        settled = False
        if not sure or spent:
            said = asked()
            name = said.name if said is not None else None
            named = [x for x in fits if x.name == name]
            if said is not None and not name and said.key == key and spent:
                return None  # it asks for the address as such
            other = said is not None and name is not None and said.source == "sni"
            if not named and (not sure or other):
                return None
            settled = bool(named) and not alone and said is not None and said.source == "http"
            fits = named or fits
        lookup = _lookup_of(_parts_of(fits[-1], known), fits[-1])
        match: Match = "host"
        if own:
            match = "thread" if lookup.task.tid == conn.tid else "process"
        return Join(lookup, match, "http" if settled else "lookup")

    def has_answer(self, conn: ConnEvent) -> bool:
        """Whether its process was answered with its address before."""
        key = address_key(conn.family, conn.raddr)
        known = self._known(conn, (conn.pid, conn.start_ns), conn.connect_ns)
        return any(key in x.keys for x in known)

    def _known(self, conn: ConnEvent, process: Process, by_ns: int) -> list[_Exchange]:
        known = [
            x
            for x in self._answered.get(process, ())
            if x.answered_ns <= by_ns and (x.task.pid == conn.pid or x.task.uid == conn.uid)
        ]
        for exchange in known:
            exchange.parse()
        return known


# Whether a newer answer for the same name has the address no more. One that another thread got at
# about the same time leaves the older one its own.
def _is_replaced(older: _Exchange, newest: _Exchange, key: bytes, connect_ns: int) -> bool:
    if key in newest.keys or newest.asked_ns < older.answered_ns:
        return False
    aged = connect_ns - older.answered_ns > RIVALS_NS
    return aged or newest.task.tid == older.task.tid


# One lookup is one object, which grows with answers that come late: attempts at its addresses find
# each other by it.
def _lookup_of(parts: list[_Exchange], newest: _Exchange) -> Lookup:
    known = next((x.lookup for x in parts if x.lookup is not None), None)
    if known is None or any(x.lookup is None for x in parts):
        made = make_wire_lookup(
            newest.task,
            newest.name or "",
            start_ns=min(x.begun_ns for x in parts),
            end_ns=min((x.answered_ns for x in parts if x.addresses), default=newest.answered_ns),
            later_end_ns=max(x.answered_ns for x in parts),
            answers=[answer for x in parts for answer in x.addresses or ()],
            stub=newest.stub,
        )
        if known is None:
            known = made
        else:
            known.grow_to(made)
        for x in parts:
            x.lookup = known
    return known


# The exchanges of one lookup: A and AAAA, and what was asked again because nothing came of it. The
# same question again after it was answered is another lookup.
def _parts_of(newest: _Exchange, known: list[_Exchange]) -> list[_Exchange]:
    parts = [newest]
    answered = {newest.kind}
    at = known.index(newest)
    before_ns = 0  # the lookup before this one had its answer
    for x in known[:at]:
        same = x.name == newest.name and x.kind == newest.kind
        if same and x.addresses and x.answered_ns < newest.asked_ns:
            before_ns = x.answered_ns
    for x in (*known[at + 1 :], *reversed(known[:at])):
        if x.name != newest.name or abs(x.asked_ns - newest.asked_ns) > SAME_LOOKUP_NS:
            continue
        if x.asked_ns < before_ns:
            continue
        if x.kind in answered and not x.unsettled:
            if x.asked_ns < newest.asked_ns:
                break
            continue
        parts.append(x)
        if not x.unsettled:
            answered.add(x.kind)
    return sorted(parts, key=lambda x: x.asked_ns)


def _failed_lookup(tries: list[Undecided]) -> Lookup:
    first = min(tries, key=lambda x: len(x.raw))
    name, _ = parse_answer(first.raw)
    waiting = any(x.is_pending for x in tries)
    return make_wire_lookup(
        first.task,
        name or "",
        start_ns=min(x.first_ns for x in tries),
        # when a program stopped waiting is not to be seen
        end_ns=None if waiting else max(x.last_ns for x in tries),
        ret=EAI_AGAIN if waiting else first.ret,
        answers=[],
        stub=first.stub,
    )
