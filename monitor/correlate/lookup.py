"""A name that was asked for, its answer, and how a connection came from it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from monitor.correlate.text import (
    AF_INET,
    AF_INET6,
    address_key,
    address_text,
    is_ipv4_text,
    printable_text,
)
from monitor.decode import LookupEvent, LookupFlag, Task

__all__ = [
    "Ask",
    "Asked",
    "Join",
    "Lookup",
    "Match",
    "fold",
    "make_lookup",
    "make_wire_lookup",
    "sni_name",
]

TWIN_NS: Final = 100_000_000  # between the calls for the two families of a name


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
    direct: bool = False
    """A connection has followed from it whose address nobody gave as such in between."""
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

    def add_twin(self, other: Lookup) -> None:
        """Take in the other family's call."""
        self.start_ns = min(self.start_ns, other.start_ns)
        self.later_end_ns = max(self.end_ns, other.end_ns)
        self.end_ns = min(self.end_ns, other.end_ns)
        self.addresses = tuple(dict.fromkeys((*self.addresses, *other.addresses)))
        self.keys |= other.keys
        self.cut = self.cut or other.cut
        self.hint_family = 0

    def grow_to(self, other: Lookup) -> None:
        """Take in what is known of the same lookup since more of it was answered."""
        self.start_ns, self.end_ns = other.start_ns, other.end_ns
        self.later_end_ns = other.later_end_ns
        self.addresses, self.keys = other.addresses, other.keys


Match = Literal["thread", "process", "host"]
"""``host``: by another process of this host, a relative that looks names up for it."""


@dataclass(frozen=True, slots=True)
class Join:
    """A lookup, and how it was matched: the record's ``dns_match``."""

    lookup: Lookup
    match: Match
    source: Literal["lookup", "http"] = "lookup"
    """The record's ``host_source``: what told this name from others with the address."""
    stored: bool = False
    """The program kept its address, and gave that when it connected."""

    @property
    def named(self) -> Lookup | None:
        """The lookup; None where it was of an address as such."""
        return None if self.lookup.is_literal else self.lookup

    def took(self, key: bytes, *, established: bool) -> None:
        """A connection has begun from it, to that address."""
        lookup = self.lookup
        lookup.tried.add(key)
        lookup.direct = lookup.direct or not self.stored
        if established:
            lookup.used = True
            lookup.kept = lookup.kept or self.match != "host"


class Asked(NamedTuple):
    """Whom a connection's own bytes ask for: SNI, or an HTTP request's Host or :authority."""

    source: Literal["sni", "http"]
    host: str
    """A name as DNS compares it, or the text of an address."""
    name: str | None
    """None where it is an address."""
    key: bytes = b""
    """... which is this one."""


Ask = Callable[[], Asked | None]
"""Reads it out of the bytes, where they are there."""


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
    later_end_ns: int = 0,
    ret: int = 0,
    stub: bool = False,
) -> Lookup:
    """A lookup as DNS messages tell it.

    Args:
        end_ns: when the first answer came; None where nobody answered.
        later_end_ns: when the last one did.
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
        later_end_ns=later_end_ns,
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
