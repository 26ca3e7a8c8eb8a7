"""Collects what a connection took, as its own program sees it, and makes the record of it.

Nothing in here touches a socket's traffic: whoever looks up, connects and sends calls in with the
times. All times are nanoseconds of :func:`now_ns`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .ciphers import CIPHER_NAMES, cipher_name
from .heads import parse_heads
from .names import DNS_NONE, DNS_OK, plain_address
from .reasons import connect_failure, lookup_failure, tls_failure
from .record import Attempt, Record, Tcp, Tls, Turns

__all__ = ["Lookup", "Measurement", "now_ns", "socket_cookie"]

now_ns = time.perf_counter_ns

_MAX_ATTEMPTS = 64
_HEAD = 512  # bytes of each side that tell the protocol
_SO_COOKIE = 57
# What an attempt without an errno of its own says in the record's ``error``, as in the daemon.
_RESULT_ERROR = {"timeout": "ETIMEDOUT", "abandoned": "ECANCELED"}
_TCP_INFO_BYTES = 248
_numbers = itertools.count(1)


class Lookup:
    """One call of a resolver."""

    __slots__ = ("addresses", "begin_ns", "disposition", "end_ns", "error", "host", "literal")

    def __init__(self, host: str, begin_ns: int) -> None:
        self.host = host
        self.begin_ns = begin_ns
        self.end_ns = begin_ns
        self.addresses: tuple[str, ...] = ()
        self.error: str | None = None
        self.disposition = DNS_OK
        self.literal = is_literal(host)

    def done(self, found: Sequence[Any], at_ns: int) -> None:
        """It returned ``getaddrinfo()``'s list."""
        self.end_ns = at_ns
        self.addresses = tuple(dict.fromkeys(plain_address(entry[4][0]) for entry in found))

    def failed(self, exc: OSError, at_ns: int) -> None:
        """It raised."""
        self.end_ns = at_ns
        self.error, self.disposition = lookup_failure(exc)


class _Try:
    __slots__ = ("begin_ns", "end_ns", "error", "raddr", "result", "rport")

    def __init__(self, raddr: str, rport: int, begin_ns: int) -> None:
        self.raddr, self.rport, self.begin_ns = raddr, rport, begin_ns
        self.end_ns: int | None = None
        self.result: str | None = None
        self.error: str | None = None


class Measurement:
    """One connection."""

    def __init__(self) -> None:
        self.made_ns = now_ns()
        self._wall_ns = time.time_ns() - self.made_ns
        self._number = next(_numbers)
        self._tid = threading.get_native_id() if hasattr(threading, "get_native_id") else None
        self.lookup: Lookup | None = None
        self.lookup_match: str | None = None
        self.tries: list[_Try] = []
        self.won: _Try | None = None
        self.cookie: int | None = None
        self.laddr: tuple[str, int] | None = None
        self.tls_begin_ns: int | None = None
        self.tls_end_ns: int | None = None
        self.tls: Tls | None = None
        self.first_tx_ns: int | None = None
        self.first_rx_ns: int | None = None
        self.response_ns: int | None = None
        self._turn_ns: int | None = None
        self._turn_count = self._turn_sum_ns = self._turn_max_ns = 0
        self._sent_last = False
        self._tx_head = b""
        self._rx_head = b""
        self.protocol: dict[str, Any] | None = None
        self.tcp: Tcp | None = None
        self.end_ns: int | None = None
        self.error: str | None = None
        self.failed = False

    # -- what happened ------------------------------------------------------------------------

    def looked_up(self, lookup: Lookup, match: str = "thread") -> None:
        """The connection is to an address of this lookup, or there is none for want of one."""
        self.lookup, self.lookup_match = lookup, match
        if lookup.error is not None:
            self.fail(lookup.error, lookup.end_ns)

    def attempt(self, raddr: str, rport: int, at_ns: int) -> int:
        """connect() is called; the number is for :meth:`attempted`."""
        if len(self.tries) < _MAX_ATTEMPTS:
            self.tries.append(_Try(plain_address(raddr), rport, at_ns))
        return len(self.tries) - 1

    def attempted(self, number: int, exc: BaseException | None, at_ns: int) -> None:
        """It succeeded, or why it did not; a time-out of the caller's own is one, too."""
        one = self.tries[number]
        if one.result is not None:
            return
        one.end_ns = at_ns
        if exc is None:
            one.result = "ok"
            self.won = one
        else:
            failure = connect_failure(exc)
            one.result, one.error = failure.result, failure.error

    def abandoned(self, number: int, at_ns: int) -> None:
        """It was given up for another one."""
        one = self.tries[number]
        if one.result is None:
            one.end_ns, one.result = at_ns, "abandoned"

    def connected(self, sock: socket.socket) -> None:
        """This socket is the one that won."""
        self.cookie = socket_cookie(sock)
        try:
            name = sock.getsockname()
            self.laddr = (plain_address(name[0]), name[1])
        except (OSError, IndexError, TypeError):
            self.laddr = None

    def tls_begun(self, at_ns: int) -> None:
        """The handshake's first call."""
        if self.tls_begin_ns is None:
            self.tls_begin_ns = at_ns

    def tls_done(self, tls: ssl.SSLSocket | ssl.SSLObject, at_ns: int) -> None:
        """The handshake is done."""
        if self.tls_end_ns is not None:
            return
        self.tls_end_ns = at_ns
        chosen = tls.selected_alpn_protocol()
        cipher = tls.cipher()
        self.tls = Tls(
            source="openssl",
            version=tls.version(),
            cipher=_iana(cipher[0]) if cipher else None,
            sni=_sni(tls.server_hostname),
            alpn=(chosen,) if chosen else None,
            alpn_chosen=True if chosen else None,
            resumed=tls.session_reused,
            result="ok",
        )

    def tls_failed(
        self,
        exc: BaseException,
        at_ns: int,
        sni: str | None,
        tls: ssl.SSLSocket | ssl.SSLObject | None = None,
    ) -> None:
        """The handshake failed; ``tls`` may still tell the version that was agreed on."""
        if self.tls_end_ns is not None:
            return
        failure = tls_failure(exc)
        self.tls_end_ns = at_ns
        version = None
        with contextlib.suppress(Exception):  # of a socket that is closed by now
            version = tls.version() if tls is not None else None
        self.tls = Tls(
            source="openssl",
            version=version,
            sni=_sni(sni),
            result=failure.result,
            alert=failure.alert,
        )
        self.fail(failure.error or "EPROTO", at_ns)

    def sent(self, data: bytes, at_ns: int) -> None:
        """Payload begins to be sent; ``data`` is its beginning."""
        if self.first_tx_ns is None:
            self.first_tx_ns = at_ns
        if len(self._tx_head) < _HEAD and self.first_rx_ns is None:
            self._tx_head += data[: _HEAD - len(self._tx_head)]
        if not self._sent_last:
            self._sent_last = True
            self._turn_ns = at_ns

    def received(self, data: bytes, at_ns: int) -> None:
        """Payload has come; ``data`` is its beginning."""
        if self.first_rx_ns is None:
            self.first_rx_ns = at_ns
        if self.response_ns is None and self.first_tx_ns is not None:
            self.response_ns = at_ns
        if len(self._rx_head) < _HEAD:
            self._rx_head += data[: _HEAD - len(self._rx_head)]
        if self._sent_last and self._turn_ns is not None:
            took = at_ns - self._turn_ns
            self._turn_count += 1
            self._turn_sum_ns += took
            self._turn_max_ns = max(self._turn_max_ns, took)
        self._sent_last = False

    def fail(self, error: str | None, at_ns: int) -> None:
        """The connection failed for good."""
        self.failed = True
        self.error = self.error or error
        self.end_ns = at_ns

    def look_at(self, sock: socket.socket) -> None:
        """Read the kernel's figures, while the socket is still open (Linux)."""
        self.tcp = _tcp_of(sock)

    def closed(self, at_ns: int, error: str | None = None) -> None:
        """The connection ended."""
        if self.end_ns is None:
            self.end_ns = at_ns
            self.error = self.error or error

    # -- the record ---------------------------------------------------------------------------

    def record(self) -> Record:
        """Return the record as things stand."""
        lookup, won = self.lookup, self.won
        last = won or (self.tries[-1] if self.tries else None)
        first_ns = self.tries[0].begin_ns if self.tries else None
        begins = [self.made_ns, *([first_ns] if first_ns is not None else [])]
        if lookup is not None and not lookup.literal:
            begins.append(lookup.begin_ns)
        named = lookup is not None and not lookup.literal
        raddr = last.raddr if last else None
        ended = self.end_ns is not None
        family = None if raddr is None else "ipv6" if ":" in raddr else "ipv4"
        tls_us = None
        if self.tls is not None and self.tls.result == "ok" and self.tls_begin_ns is not None:
            tls_us = _us(self.tls_begin_ns, self.tls_end_ns)
        greeting = None
        if (
            won is not None
            and self.first_rx_ns is not None
            and (self.first_tx_ns is None or self.first_rx_ns < self.first_tx_ns)
        ):
            greeting = _us(won.end_ns, self.first_rx_ns)
        turns = None
        if won is not None and (self.first_tx_ns is not None or self.first_rx_ns is not None):
            turns = Turns(self._turn_count, self._turn_sum_ns // 1000, self._turn_max_ns // 1000)
        error = self.error
        if error is None and self.failed and last is not None:
            error = last.error or _RESULT_ERROR.get(last.result or "")
        txn_resp_us = _us(self.first_tx_ns, self.response_ns)
        who = _process()
        return Record(
            id=self._id(),
            start=_text(min(begins) + self._wall_ns),
            state="failed" if self.failed else "closed" if ended else "open",
            pid=os.getpid(),
            tid=self._tid,
            comm=_comm(),
            exe=who.get("exe"),
            uid=who.get("uid"),
            netns=who.get("netns"),
            host=lookup.host if lookup is not None and named else None,
            host_source="lookup" if named else None,
            laddr=self.laddr[0] if self.laddr else None,
            lport=self.laddr[1] or None if self.laddr else None,
            raddr=raddr,
            rport=last.rport or None if last else None,
            family=family,
            peer=won.raddr if won else None,
            dns=lookup.addresses if lookup is not None and named else None,
            dns_us=_us(lookup.begin_ns, lookup.end_ns) if lookup is not None and named else None,
            dns_disp=_dns_disp(lookup),
            dns_source=_dns_source(lookup),
            dns_age_us=_us(lookup.end_ns, first_ns)
            if lookup is not None and named and first_ns is not None
            else None,
            dns_match=self.lookup_match if named and self.tries else None,
            sockconn_us=_us(won.begin_ns, won.end_ns) if won else None,
            attempts=tuple(
                Attempt(
                    one.raddr,
                    one.rport,
                    _us(one.begin_ns, one.end_ns),
                    _us(first_ns, one.begin_ns),
                    one.result,
                    one.error,
                )
                for one in self.tries
            ),
            tls_us=tls_us,
            tls=self.tls,
            txn_resp_us=txn_resp_us,
            txn_source="plain" if txn_resp_us is not None else None,
            greeting_us=greeting,
            turns=turns,
            prot_specific=self.protocol or self._parsed(),
            tcp=self.tcp,
            duration_us=_us(won.begin_ns, self.end_ns) if won else None,
            error=error,
        )

    def _parsed(self) -> dict[str, Any] | None:
        if not self._rx_head:
            return None
        return parse_heads(self._tx_head, self._rx_head)

    def _id(self) -> str:
        boot = _boot()
        if self.cookie is not None and boot is not None:
            return f"{boot}-{self.cookie:x}"  # the daemon's id of the same connection
        return f"{boot or 'here'}-u{os.getpid():x}-{self._number:x}"


def is_literal(host: str) -> bool:
    """Whether a text is an address and no name."""
    bare = host.partition("%")[0]
    for family in (socket.AF_INET, getattr(socket, "AF_INET6", None)):
        if family is None:
            continue
        try:
            socket.inet_pton(family, bare)
            return True
        except (OSError, ValueError, UnicodeError):
            continue
    return False


def socket_cookie(sock: socket.socket) -> int | None:
    """Return SO_COOKIE, which names a socket to the daemon; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    except (OSError, AttributeError):
        return None
    return int.from_bytes(raw, sys.byteorder) or None


def _tcp_of(sock: socket.socket) -> Tcp | None:
    option = getattr(socket, "TCP_INFO", None)
    if option is None or not sys.platform.startswith("linux"):
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO_BYTES)
        rtt, rttvar = struct.unpack_from("=II", info, 68)
        (retransmits,) = struct.unpack_from("=I", info, 100)
        (received,) = struct.unpack_from("=Q", info, 128)
        sent, again = struct.unpack_from("=QQ", info, 200)
    except (OSError, struct.error):
        return None
    # The kernel counts a received FIN as one byte.
    if received and info[0] in (8, 9, 11):
        received -= 1
    return Tcp(rtt or None, rttvar if rtt else None, retransmits, sent - again, received)


def _us(begin_ns: int | None, end_ns: int | None) -> int | None:
    if begin_ns is None or end_ns is None:
        return None
    return max(0, end_ns - begin_ns) // 1000


def _dns_disp(lookup: Lookup | None) -> int | None:
    if lookup is None:
        return None  # C code may have looked it up
    return DNS_NONE if lookup.literal else lookup.disposition


def _dns_source(lookup: Lookup | None) -> str | None:
    if lookup is None:
        return None
    return "literal" if lookup.literal else "getaddrinfo"


def _sni(name: str | None) -> str | None:
    return None if name is None or is_literal(name) else name


@lru_cache(maxsize=64)
def _iana(openssl_name: str) -> str:
    # TLS 1.3's names are the registry's; OpenSSL has its own for those of before.
    if openssl_name.startswith("TLS_"):
        return openssl_name
    for cipher in ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).get_ciphers():
        if cipher["name"] == openssl_name:
            number = int(cipher["id"]) & 0xFFFF
            return cipher_name(number) if number in CIPHER_NAMES else openssl_name
    return openssl_name


def _text(wall_ns: int) -> str:
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"


@lru_cache(maxsize=1)
def _boot() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(8)
    except OSError:
        return None


def _comm() -> str | None:
    return _comm_of(os.getpid(), threading.get_ident())


@lru_cache(maxsize=256)
def _comm_of(_pid: int, _thread: int) -> str | None:
    try:
        with open("/proc/thread-self/comm", encoding="utf-8", errors="backslashreplace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None


def _process() -> dict[str, Any]:
    return _process_of(os.getpid())


@lru_cache(maxsize=4)
def _process_of(pid: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"exe": os.path.realpath(sys.executable) if sys.executable else None}
    if hasattr(os, "getuid"):
        facts["uid"] = os.getuid()
    try:
        facts["netns"] = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        facts["netns"] = None
    return facts
