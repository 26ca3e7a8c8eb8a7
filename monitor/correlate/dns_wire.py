"""Names from DNS messages on the wire, for connections that no getaddrinfo() explains.

Messages are kept as bytes and parsed only when a connection of the same process asks for a name
that nothing better gives, or when a lookup failed: dnspython takes 11 MB, and most hosts never
need it here.

Theory of operation of failures. All questions of one process for one name (A, AAAA, their
repetitions, the same over TCP) are one lookup. It failed when each was answered and none with
records, and nothing followed for HOLD_NS; or when one stayed without an answer for GIVE_UP_NS or
until its process ended. Names that differ only by what follows them are tries of a search list:
one lookup too, by its shortest name.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from conmon.names import EAI_AGAIN, EAI_NODATA, EAI_NONAME
from monitor.correlate.lookups import (
    FRESH_NS,
    RIVALS_NS,
    Evicted,
    Lookup,
    fold,
    make_wire_lookup,
)
from monitor.correlate.text import AF_INET, AF_INET6, address_key
from monitor.decode import ConnEvent, DnsEvent, DnsFlag, Task

__all__ = ["DnsTable", "parse_answer"]

MAX_QUESTIONS: Final = 4096  # waiting for their answer
PER_PROCESS: Final = 512  # answers kept of one process
TOTAL: Final = 4096  # ... and of all
TOTAL_BYTES: Final = 2 << 20
MAX_UNDECIDED: Final = 1024  # lookups that may yet fail
MAX_STREAMS: Final = 256  # directions of TCP connections ...
MAX_STREAM_BYTES: Final = 16_384  # ... and what one of them may hold back
# A and AAAA of one lookup are asked together or one after the other.
SAME_LOOKUP_NS: Final = 5_000_000_000
NEXT_TRY_NS: Final = 100_000_000  # from one name of a search list to the next
HOLD_NS: Final = 400_000_000
GIVE_UP_NS: Final = 15_000_000_000  # glibc's longest wait for one server is 10 s
_RESPONSE_BIT: Final = 0x80
_TRUNCATED_BIT: Final = 0x02
_A, _AAAA = 1, 28
_MAX_RECORDS: Final = 128
_MAX_NAME: Final = 255
# type and class IN, and length, of an A and an AAAA record
_ADDRESS_RECORDS: Final = {(b"\0\1\0\1", 4): AF_INET, (b"\0\x1c\0\1", 16): AF_INET6}
_NXDOMAIN: Final = 3
_NEVER: Final = 1 << 63


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
    kind: int = 0
    name: str | None = None
    addresses: list[tuple[int, bytes]] | None = None
    keys: frozenset[bytes] = frozenset()
    stub: bool = False
    unsettled: bool = False
    """The server could not say, or not so long a thing: the question is asked again."""
    lookup: Lookup | None = None  # made of this and what followed ...
    lookup_parts: int = 0  # ... of so many

    def parse(self) -> None:
        if self.addresses is None:
            self.name, self.addresses = parse_answer(self.raw)
            if self.raw[2] & _TRUNCATED_BIT:  # asked again over TCP
                self.addresses = []
            self.keys = frozenset(address_key(*address) for address in self.addresses)
            self.raw = b""


@dataclass(slots=True, eq=False)
class _Undecided:
    """All questions of a process for one name."""

    task: Task
    first_ns: int
    last_ns: int
    raw: bytes
    waiting: set[tuple[int, int]] = field(default_factory=set)
    ret: int = 0
    """EAI_ code of an answer without records."""
    stub: bool = False
    """The server is systemd-resolved's stub."""
    answered: bool = False
    """One came with records, or says to ask again over TCP."""
    asked_ns: dict[int, int] = field(default_factory=dict)
    """When each type was first asked for of those without an answer yet."""

    def follows(self, ts_ns: int) -> bool:
        """Whether a question at that time is part of it."""
        # who got no answer asks again, after 5 s and more
        repeated = self.waiting and not self.answered
        return ts_ns - self.last_ns <= (GIVE_UP_NS if repeated else SAME_LOOKUP_NS)

    def ask(self, kind: int, ts_ns: int) -> None:
        """Take in a question."""
        if self.answered and kind not in self.asked_ns:
            self.asked_ns.clear()  # another lookup of the name
        self.asked_ns.setdefault(kind, ts_ns)

    def due_ns(self) -> int:
        """When it is decided at the latest."""
        return self.last_ns + (GIVE_UP_NS if self.waiting or self.answered else HOLD_NS)


@dataclass(slots=True)
class _Stream:
    """One direction of a TCP connection to port 53."""

    next_seq: int
    held: bytes = b""


@dataclass(slots=True)
class _Asked:
    task: Task
    asked_ns: int
    undecided: _Undecided | None


_Process = tuple[int, int]


class DnsTable:
    """DNS exchanges by the process that asked, oldest forgotten first."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[int, int], _Asked] = OrderedDict()
        # least recently answered first
        self._answered: OrderedDict[_Process, deque[_Exchange]] = OrderedDict()
        self._deadline_ns: int | None = None  # None: to be found
        self._count = 0
        self._bytes = 0
        self._evicted: dict[_Process, Evicted] = {}
        self._evicted_all_ns = 0  # the newest answer of a process of which none is kept any more
        self._undecided: OrderedDict[tuple[_Process, bytes], _Undecided] = OrderedDict()
        self._streams: OrderedDict[tuple[int, bool], _Stream] = OrderedDict()

    def __contains__(self, process: _Process) -> bool:
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
        self._deadline_ns = None
        undecided = None
        question = _first_question(data)
        if question is not None and not event.flags & (DnsFlag.INSIDE | DnsFlag.SERVER):
            undecided = self._undecided_of(event, question[0], data)
            undecided.waiting.add(key)
            undecided.ask(question[1], event.ts_ns)
        before = self._asked.pop(key, None)
        if before is not None and before.undecided is not None:
            before.undecided.waiting.discard(key)
            if undecided is not None:
                undecided.waiting.add(key)
        self._asked[key] = _Asked(event.task, event.ts_ns, undecided)
        if len(self._asked) > MAX_QUESTIONS:
            oldest, asked = self._asked.popitem(last=False)
            if asked.undecided is not None:
                asked.undecided.waiting.discard(oldest)
                asked.undecided.answered = True  # whether it was, is not known

    def _undecided_of(self, event: DnsEvent, question: bytes, data: bytes) -> _Undecided:
        task = event.task
        name = ((task.pid, task.start_ns), question)
        undecided = self._undecided.get(name)
        if undecided is None or not undecided.follows(event.ts_ns):
            undecided = self._undecided[name] = _Undecided(task, event.ts_ns, event.ts_ns, data)
            if len(self._undecided) > MAX_UNDECIDED:
                self._undecided.popitem(last=False)
        undecided.last_ns = event.ts_ns
        undecided.stub = bool(event.flags & DnsFlag.STUB)
        return undecided

    def _answer(self, key: tuple[int, int], event: DnsEvent, data: bytes) -> None:
        asked = self._asked.pop(key, None)
        if asked is None:
            return
        undecided = asked.undecided
        question = _first_question(data)
        kind = question[1] if question else 0
        asked_ns = asked.asked_ns
        self._deadline_ns = None
        if undecided is not None:
            asked_ns = min(asked_ns, undecided.asked_ns.get(kind, asked_ns))
            if not data[2] & _TRUNCATED_BIT:
                undecided.asked_ns.pop(kind, None)
            undecided.waiting.discard(key)
            undecided.last_ns = event.ts_ns
            rcode = data[3] & 15
            if not rcode and (data[6:8] != b"\0\0" or data[2] & _TRUNCATED_BIT):
                undecided.answered = True
            elif not rcode:
                undecided.ret = undecided.ret or EAI_NODATA
            else:
                undecided.ret = EAI_NONAME if rcode == _NXDOMAIN else EAI_AGAIN
        process = (asked.task.pid, asked.task.start_ns)
        exchange = _Exchange(
            asked.task,
            asked_ns,
            event.ts_ns,
            data,
            len(data),
            question[0] if question else b"",
            kind,
            unsettled=bool(data[2] & _TRUNCATED_BIT) or data[3] & 15 not in (0, _NXDOMAIN),
            stub=bool(event.flags & DnsFlag.STUB),
        )
        self._keep(process, exchange)

    def _keep(self, process: _Process, exchange: _Exchange) -> None:
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

    def _let_go(self, process: _Process, exchange: _Exchange) -> None:
        self._evicted.setdefault(process, Evicted()).add(exchange.asked, exchange.answered_ns)
        self._count -= 1
        self._bytes -= exchange.size

    # -- lookups that failed ------------------------------------------------------------------

    def deadline_ns(self) -> int | None:
        """When :meth:`failures` may have something at the earliest."""
        if self._deadline_ns is None:
            self._deadline_ns = min(
                (
                    max(x.due_ns() for _, x in tries)
                    for tries in self._tries()
                    if not any(x.answered for _, x in tries)
                ),
                default=_NEVER,
            )
        return None if self._deadline_ns == _NEVER else self._deadline_ns

    def failures(self, now_ns: int) -> list[Lookup]:
        """Return the lookups that have failed by now, and let go of what is decided."""
        failed: list[Lookup] = []
        if not self._undecided:
            return failed
        self._deadline_ns = None
        for tries in self._tries():
            if all(x.due_ns() <= now_ns for _, x in tries):
                for key, _ in tries:
                    del self._undecided[key]
                if not any(x.answered for _, x in tries):
                    failed.append(_failed_lookup([x for _, x in tries]))
        return failed

    # The undecided, those of one lookup together.
    def _tries(self) -> list[list[tuple[tuple[_Process, bytes], _Undecided]]]:
        groups: list[list[tuple[tuple[_Process, bytes], _Undecided]]] = []
        for key, undecided in sorted(self._undecided.items(), key=lambda item: item[0]):
            process, name = key
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
                    continue
            groups.append([(key, undecided)])
        return groups

    def process_ended(self, process: _Process, now_ns: int) -> None:
        """What a process left without an answer has failed."""
        for (owner, _), undecided in self._undecided.items():
            if owner == process and undecided.waiting:
                self._deadline_ns = None
                undecided.last_ns = min(undecided.last_ns, now_ns - GIVE_UP_NS)

    def forget(self, process: _Process, ended_ns: int) -> None:
        """Drop what a process was answered that ended, unless others of its threads went on."""
        answers = self._answered.get(process)
        if answers is None or answers[-1].answered_ns > ended_ns:
            return
        del self._answered[process]
        self._evicted.pop(process, None)
        self._count -= len(answers)
        self._bytes -= sum(x.size for x in answers)

    # -- names of connections -----------------------------------------------------------------

    def lookup(self, conn: ConnEvent, sni: Callable[[], str | None]) -> Lookup | None:
        """The newest exchange of the connection's process that gave its address, as a lookup; None
        where none did, or where several names did and SNI is none of them: a wrong name would be
        worse."""
        process = (conn.pid, conn.start_ns)
        answers = self._answered.get(process)
        if answers is None:
            return None
        key = address_key(conn.family, conn.raddr)
        known = [x for x in answers if x.answered_ns <= conn.connect_ns]
        for exchange in known:
            exchange.parse()
        fits = [x for x in known if key in x.keys]
        if not fits:
            return None
        evicted = self._evicted.get(process)
        evicted_ns = evicted.but_for(fits[-1].asked) if evicted is not None else 0
        evicted_ns = max(evicted_ns, self._evicted_all_ns)
        sure = len({x.name for x in fits}) == 1 and conn.connect_ns - evicted_ns > RIVALS_NS
        spent = conn.connect_ns - fits[-1].answered_ns > FRESH_NS
        if not sure or spent:
            asked = sni()
            named = [x for x in fits if x.name == asked]
            if not named and (not sure or asked is not None):
                return None
            fits = named or fits
        newest = fits[-1]
        parts = _parts_of(newest, known)
        # One lookup is one object: attempts at its addresses find each other by it.
        first = parts[0]
        if first.lookup is None or first.lookup_parts != len(parts):
            first.lookup_parts = len(parts)
            first.lookup = self._make(newest, parts)
        return first.lookup

    @staticmethod
    def _make(newest: _Exchange, parts: list[_Exchange]) -> Lookup:
        return make_wire_lookup(
            newest.task,
            newest.name or "",
            start_ns=min(x.asked_ns for x in parts),
            end_ns=max(x.answered_ns for x in parts),
            answers=[answer for x in parts for answer in x.addresses or ()],
            stub=newest.stub,
        )


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


def _failed_lookup(tries: list[_Undecided]) -> Lookup:
    first = min(tries, key=lambda x: len(x.raw))
    name, _ = parse_answer(first.raw)
    waiting = any(x.waiting for x in tries)
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


def _first_question(data: bytes) -> tuple[bytes, int] | None:
    """The name of the only question, in lower case, and its type if that is of an address."""
    if data[4:6] != b"\0\1":
        return None
    at = 12
    while at < len(data) and data[at]:
        if data[at] > 63:
            return None
        at += 1 + data[at]
    kind = data[at + 1 : at + 3]
    if len(kind) < 2 or kind[1] not in (_A, _AAAA) or kind[0]:
        return None
    return data[12 : at + 1].lower(), kind[1]


def parse_answer(data: bytes) -> tuple[str | None, list[tuple[int, bytes]]]:
    """Read name and addresses out of a DNS response.

    Returns:
        The name asked for, without the dot at its end, and (family, 16 bytes) of each address in
        its order; (None, []) for what cannot be read or answers no address question.
    """
    import dns.exception
    import dns.name

    if data[4:6] != b"\0\1":  # one question
        return None, []
    try:
        # the library reads a chain of labels to its end before it finds the name too long
        name, length = dns.name.from_wire(data[: 12 + _MAX_NAME], 12)
    except (dns.exception.DNSException, ValueError, IndexError):
        return None, []
    at = 12 + length + 4
    if at > len(data) or data[at - 4 : at - 2] not in (b"\0\1", b"\0\x1c"):
        return None, []
    addresses = _addresses(data, at)
    if addresses is None:
        return None, []
    # some resolvers mix capitals in, to be told from forgers
    return fold(name.to_text()), addresses


# The addresses among the answers that begin there; None where they are not as they should be. By
# hand, since a library makes an object of each record, 37 us: 13 ms for what 4 KB may hold.
def _addresses(data: bytes, at: int) -> list[tuple[int, bytes]] | None:
    addresses: list[tuple[int, bytes]] = []
    for _ in range(data[6] << 8 | data[7]):
        while at < len(data) and 0 < data[at] < 64:  # an owner's name is only stepped over
            at += 1 + data[at]
        if at >= len(data) or 64 <= data[at] < 192:
            return None
        at += 2 if data[at] else 1
        if at + 10 > len(data):
            return None
        kind, size = data[at : at + 4], data[at + 8] << 8 | data[at + 9]
        at += 10 + size
        if at > len(data):
            return None
        family = _ADDRESS_RECORDS.get((kind, size))
        if family is not None and len(addresses) < _MAX_RECORDS:
            addresses.append((family, data[at - size : at].ljust(16, b"\0")))
    return addresses
