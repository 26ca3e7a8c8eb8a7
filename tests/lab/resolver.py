"""A DNS server that answers each name exactly as, and exactly when, it is told to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.lab.clock import be_punctual
from tests.lab.netns import Namespace

TTL = 0  # nothing may be cached: every test asks anew
PLAIN_UDP_LIMIT = 512


@dataclass(frozen=True, kw_only=True)
class Name:
    """What the resolver says about one name.

    Args:
        a, aaaa: addresses, answered in this order.
        delay_s: from the question's arrival to the answer.
        rcode: a DNS error to give instead of addresses.
        silent: never answer.
    """

    a: tuple[str, ...] = ()
    aaaa: tuple[str, ...] = ()
    delay_s: float = 0.0
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    silent: bool = False


@dataclass(frozen=True)
class Query:
    """One question seen, CLOCK_MONOTONIC; ``answered_ns`` is None for a silent name."""

    name: str
    rdtype: str
    transport: str
    asked_ns: int
    answered_ns: int | None


class Resolver:
    """DNS over UDP and TCP on ``address`` in ``space``, port 53 unless said.

    ``zone`` maps lower-case names without the final dot; a name that is not in it does not
    exist. It may be changed while the resolver runs.
    """

    def __init__(
        self, space: Namespace, address: str, zone: Mapping[str, Name], port: int = 53
    ) -> None:
        self.zone = dict(zone)
        self.queries: list[Query] = []
        self._space = space
        self._address = address
        self._port = port
        self._start()

    def _start(self) -> None:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET

        def open_sockets() -> tuple[socket.socket, socket.socket]:
            udp = socket.socket(family, socket.SOCK_DGRAM)
            udp.bind((self._address, self._port))
            tcp = socket.socket(family, socket.SOCK_STREAM)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((self._address, self._port))
            tcp.listen(64)
            return udp, tcp

        self._udp, self._tcp = self._space.call(open_sockets)
        self._threads = [
            threading.Thread(target=self._serve_udp, daemon=True),
            threading.Thread(target=self._serve_tcp, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def waited_us(self, name: str) -> float:
        """How long the newest lookup of ``name`` took here: A and AAAA, asked to answered."""
        newest: dict[str, Query] = {}
        for query in self.queries:
            if query.name == name and query.answered_ns is not None:
                newest[query.rdtype] = query
        first = min(query.asked_ns for query in newest.values())
        return max((query.answered_ns or 0) - first for query in newest.values()) / 1e3

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens on port 53 for the length of a ``with`` block."""
        self.close()
        try:
            yield
        finally:
            self._start()

    def close(self) -> None:
        for sock in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
            sock.close()
        for thread in self._threads:
            thread.join(timeout=2)

    def _serve_udp(self) -> None:
        be_punctual()
        while True:
            try:
                wire, peer = self._udp.recvfrom(4096)
            except OSError:
                return
            if not wire:
                return
            # A thread per question: A and AAAA come together and must wait together.
            threading.Thread(
                target=self._answer_udp, args=(wire, peer, time.monotonic_ns()), daemon=True
            ).start()

    def _answer_udp(self, wire: bytes, peer: tuple[str, int], asked_ns: int) -> None:
        be_punctual()
        question = dns.message.from_wire(wire)
        reply = self._answer(question, "udp", asked_ns)
        if reply is None:
            return
        packed = reply.to_wire(max_size=65535)
        limit = question.payload if question.edns >= 0 else PLAIN_UDP_LIMIT
        if len(packed) > limit:
            cut = dns.message.make_response(question, recursion_available=True)
            cut.flags |= dns.flags.TC
            packed = cut.to_wire()
        with contextlib.suppress(OSError):
            self._udp.sendto(packed, peer)

    def _serve_tcp(self) -> None:
        be_punctual()
        while True:
            try:
                sock, _ = self._tcp.accept()
            except OSError:
                return
            threading.Thread(target=self._answer_tcp, args=(sock,), daemon=True).start()

    def _answer_tcp(self, sock: socket.socket) -> None:
        be_punctual()
        with sock, contextlib.suppress(OSError), sock.makefile("rb") as stream:
            while len(prefix := stream.read(2)) == 2:
                wire = stream.read(struct.unpack("!H", prefix)[0])
                reply = self._answer(dns.message.from_wire(wire), "tcp", time.monotonic_ns())
                if reply is not None:
                    packed = reply.to_wire(max_size=65535)
                    sock.sendall(struct.pack("!H", len(packed)) + packed)

    def _answer(
        self, question: dns.message.Message, transport: str, asked_ns: int
    ) -> dns.message.Message | None:
        asked = question.question[0]
        text = asked.name.to_text(omit_final_dot=True).lower()
        rdtype = dns.rdatatype.to_text(asked.rdtype)
        known = self.zone.get(text, Name(rcode=dns.rcode.NXDOMAIN))
        reply = dns.message.make_response(question, recursion_available=True)
        reply.set_rcode(known.rcode)
        addresses = {"A": known.a, "AAAA": known.aaaa}.get(rdtype, ())
        if addresses and known.rcode == dns.rcode.NOERROR:
            reply.answer.append(
                dns.rrset.from_text_list(asked.name, TTL, "IN", rdtype, list(addresses))
            )
        if not known.silent:
            time.sleep(max(0.0, asked_ns / 1e9 + known.delay_s - time.monotonic()))
        self.queries.append(
            Query(text, rdtype, transport, asked_ns, None if known.silent else time.monotonic_ns())
        )
        return None if known.silent else reply
