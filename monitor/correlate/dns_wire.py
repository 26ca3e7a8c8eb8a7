"""Names from DNS messages on the wire, for connections that no getaddrinfo() explains.

Messages are kept as bytes and parsed only when a connection of the same process asks for a name
that nothing better gives: dnspython takes 11 MB, and most hosts never need it here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

from monitor.correlate.lookups import Lookup, make_wire_lookup
from monitor.correlate.text import AF_INET, AF_INET6, address_key
from monitor.decode import ConnEvent, DnsEvent, Task

__all__ = ["DnsTable", "parse_answer"]

MAX_QUESTIONS: Final = 4096  # waiting for their answer
PER_PROCESS: Final = 32  # answers kept of one process
MAX_PROCESSES: Final = 512
# A and AAAA of one lookup are asked together or one after the other.
SAME_LOOKUP_NS: Final = 5_000_000_000
_RESPONSE_BIT: Final = 0x80
_MAX_RECORDS: Final = 128


@dataclass(slots=True, eq=False)
class _Exchange:
    """A question and its answer."""

    task: Task
    asked_ns: int
    answered_ns: int
    raw: bytes
    name: str | None = None
    addresses: list[tuple[int, bytes]] | None = None
    lookup: Lookup | None = None  # made of this and what followed ...
    lookup_parts: int = 0  # ... of so many

    def parse(self) -> None:
        if self.addresses is None:
            self.name, self.addresses = parse_answer(self.raw)
            self.raw = b""


class DnsTable:
    """DNS exchanges by the process that asked, oldest forgotten first."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[int, int], tuple[Task, int]] = OrderedDict()
        self._answered: OrderedDict[tuple[int, int], deque[_Exchange]] = OrderedDict()

    def __contains__(self, process: tuple[int, int]) -> bool:
        return process in self._answered

    def add(self, event: DnsEvent) -> None:
        """Take in a question or an answer; what is neither is let go."""
        data = event.data
        if len(data) < 12 or bool(data[2] & _RESPONSE_BIT) != event.received:
            return
        key = (event.sk, data[0] << 8 | data[1])
        if not event.received:
            self._asked[key] = (event.task, event.ts_ns)
            if len(self._asked) > MAX_QUESTIONS:
                self._asked.popitem(last=False)
            return
        asked = self._asked.pop(key, None)
        if asked is None:
            return
        task, asked_ns = asked
        process = (task.pid, task.start_ns)
        answers = self._answered.get(process)
        if answers is None:
            answers = self._answered[process] = deque(maxlen=PER_PROCESS)
            if len(self._answered) > MAX_PROCESSES:
                self._answered.popitem(last=False)
        answers.append(_Exchange(task, asked_ns, event.ts_ns, data))

    def lookup(self, conn: ConnEvent) -> Lookup | None:
        """The newest exchange of the connection's process that gave its address, as a lookup; None
        where none did, or where several names did: a wrong name would be worse."""
        answers = self._answered.get((conn.pid, conn.start_ns))
        if answers is None:
            return None
        key = address_key(conn.family, conn.raddr)
        known = [x for x in answers if x.answered_ns <= conn.connect_ns]
        for exchange in known:
            exchange.parse()
        fits = [x for x in known if any(address_key(f, a) == key for f, a in x.addresses or ())]
        if len({x.name for x in fits}) != 1:
            return None
        newest = fits[-1]
        parts = [
            x
            for x in known
            if x.name == newest.name and abs(x.asked_ns - newest.asked_ns) < SAME_LOOKUP_NS
        ]
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
        )


def parse_answer(data: bytes) -> tuple[str | None, list[tuple[int, bytes]]]:
    """Read name and addresses out of a DNS response.

    Returns:
        The name asked for, without the dot at its end, and (family, 16 bytes) of each address in
        its order; (None, []) for what cannot be read or answers no address question.
    """
    import dns.exception
    import dns.message
    import dns.rdatatype

    try:
        message = dns.message.from_wire(data, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError, IndexError):
        return None, []
    if len(message.question) != 1:
        return None, []
    wanted = {dns.rdatatype.A: AF_INET, dns.rdatatype.AAAA: AF_INET6}
    if message.question[0].rdtype not in wanted:
        return None, []
    addresses = []
    for rrset in message.answer[:_MAX_RECORDS]:
        family = wanted.get(rrset.rdtype)
        if family is not None:
            for record in list(rrset)[:_MAX_RECORDS]:
                addresses.append((family, record.to_digestable().ljust(16, b"\0")))
    return message.question[0].name.to_text(omit_final_dot=True), addresses
