"""Bytes from the kernel to events. Mirrors bpf/event.h and nothing else.

Events are named tuples, not dataclasses: a frozen dataclass of this width takes ten times as
long to make, and one is made for every connection of the host (docs/design/001).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

from monitor.errors import DecodeError

__all__ = [
    "CONN_BYTES",
    "COUNTERS",
    "Answer",
    "ConnEvent",
    "ConnFlag",
    "ConnPeek",
    "DnsEvent",
    "DnsFlag",
    "Event",
    "ExecEvent",
    "ExitEvent",
    "ForkEvent",
    "HelloEvent",
    "Kind",
    "Library",
    "LookupEvent",
    "LookupFlag",
    "Phase",
    "PlainEvent",
    "RecordFlag",
    "Task",
    "TlsRecord",
    "conn_size",
    "decode",
    "decode_conn",
    "peek_conns",
    "peek_keys",
]


class Kind(IntEnum):
    """enum event_kind."""

    CONN = 1
    LOOKUP = 2
    HELLO = 3
    EXEC = 4
    EXIT = 5
    DNS = 6
    PLAIN = 7
    FORK = 8


# What is asked of every event is a plain int: up to Python 3.11 a member of an Enum takes five
# times as long to fetch, and `&` with one of an IntFlag runs Python code.
class Phase:
    """enum conn_phase."""

    CALLING: Final = 1
    SYN_SENT: Final = 2
    ESTABLISHED: Final = 3
    FAILED: Final = 4
    CLOSED: Final = 5


class ConnFlag:
    """enum conn_flag."""

    RX_FIN: Final = 1 << 0
    RX_RST: Final = 1 << 1
    TX_FIN: Final = 1 << 2
    TX_RST: Final = 1 << 3
    TLS: Final = 1 << 4
    RX_GAP: Final = 1 << 5
    TX_GAP: Final = 1 << 6
    SYNC_FAIL: Final = 1 << 7
    PACKETS: Final = 1 << 8
    SSL_RETURNED: Final = 1 << 9
    LOCAL_CLOSE: Final = 1 << 10
    TLS_LATE: Final = 1 << 11
    UDP: Final = 1 << 12
    QUIC: Final = 1 << 13
    INBOUND: Final = 1 << 14
    H2: Final = 1 << 15
    HALF_CLOSE: Final = 1 << 16
    TX_LATE: Final = 1 << 17
    END_UNSEEN: Final = 1 << 18
    LOOKUP_LOST: Final = 1 << 19
    FOLDED: Final = 1 << 20
    HTTP: Final = 1 << 21


class RecordFlag:
    """enum tls_record_flag."""

    RX: Final = 1
    FIRST: Final = 2


class LookupFlag:
    """enum lookup_flag."""

    LONG: Final = 1
    UNREADABLE: Final = 2
    LEFT: Final = 4


class DnsFlag:
    """enum dns_flag."""

    RECEIVED: Final = 1
    CUT: Final = 2
    STREAM: Final = 4
    INSIDE: Final = 8
    SERVER: Final = 16
    STUB: Final = 32


class Library(IntEnum):
    """enum tls_library."""

    NONE = 0
    OPENSSL = 1
    GNUTLS = 2
    NSS = 3
    WOLFSSL = 4
    MBEDTLS = 5


# enum counter, in its order
COUNTERS: Final = (
    "lost_conn",
    "lost_lookup",
    "lost_hello",
    "lost_exec",
    "lost_exit",
    "conn_full",
    "lookup_full",
    "retries",
    "conns",
    "stale",
    "bytes",
    "lost_dns",
    "lost_plain",
    "undeleted",
)


class Task(NamedTuple):
    """struct task_info: who, as the kernel saw the calling thread."""

    start_ns: int
    """Process start, CLOCK_BOOTTIME; with pid it names one process."""
    cgroup_id: int
    exe_ino: int
    exe_dev: int
    """Kernel encoding: major << 20 | minor."""
    pid: int
    tid: int
    ppid: int
    uid: int
    netns: int
    comm: bytes
    """As the kernel has it, NULs stripped; any bytes."""


class TlsRecord(NamedTuple):
    """struct tls_record."""

    at_us: int
    """Since ConnEvent.connect_ns."""
    len: int
    type: int
    flags: int


class Answer(NamedTuple):
    """struct answer."""

    family: int
    port: int
    scope_id: int
    addr: bytes
    """16 bytes; IPv4 in the first four."""


class ConnEvent(NamedTuple):
    """struct conn_event: a connection that ended, or one read from the map while open.

    Times are CLOCK_MONOTONIC nanoseconds and 0 where not seen, as the kernel wrote them; ports
    are host order; addresses 16 bytes in network order, IPv4 in the first four. ``log`` is raw
    (struct tls_record, packed): see :meth:`records` and :meth:`request_head`.
    """

    kind: int
    size: int
    start_ns: int
    cgroup_id: int
    exe_ino: int
    exe_dev: int
    pid: int
    tid: int
    ppid: int
    uid: int
    netns: int
    comm: bytes
    sk: int
    cookie: int
    connect_ns: int
    established_ns: int
    end_ns: int
    first_tx_ns: int
    first_rx_ns: int
    first_resp_ns: int
    hello_ns: int
    turn_start_ns: int
    turn_sum_ns: int
    turn_max_ns: int
    ssl: int
    ssl_first_ns: int
    ssl_done_ns: int
    bytes_sent: int
    bytes_received: int
    turn_count: int
    rtt_us: int
    rttvar_us: int
    retransmits: int
    ssl_ret: int
    ssl_calls: int
    flags: int
    tx_next: int
    rx_next: int
    tx_record: int
    rx_record: int
    log_merged: int
    log_last: int
    family: int
    lport: int
    rport: int
    sk_err: int
    hello_tx_left: int
    hello_rx_left: int
    phase: int
    tcp_state: int
    ssl_library: int
    last_dir: int
    alert_tx: int
    alert_rx: int
    tx_head_len: int
    rx_head_len: int
    log_len: int
    hello_rx_seen: int
    tx_partial: int
    rx_partial: int
    laddr: bytes
    raddr: bytes
    tx_head: bytes
    rx_head: bytes
    log: bytes

    def records(self) -> list[TlsRecord]:
        """The TLS records noted on the wire, in order of time."""
        return [TlsRecord._make(fields) for fields in _RECORD.iter_unpack(self.log)]

    def request_head(self) -> bytes:
        """The first bytes of a plain HTTP request (``ConnFlag.HTTP``), as far as they are in here:
        of a long one a hello event has them."""
        head = self.log[: self.log_merged]
        return self.tx_head[: self.log_last] + head if self.log_last else head


class LookupEvent(NamedTuple):
    """struct lookup_event: a call of getaddrinfo(), or of gethostbyname() and its kin, that
    returned."""

    task: Task
    start_ns: int
    end_ns: int
    ret: int
    hint_family: int
    hint_flags: int
    answer_total: int
    flags: int
    name: bytes
    service: bytes
    answers: tuple[Answer, ...]


class HelloEvent(NamedTuple):
    """struct hello_event: bytes of a ClientHello or ServerHello, or what stands in their place."""

    sk: int
    connect_ns: int
    ts_ns: int
    seq: int
    received: bool
    number: int
    data: bytes


class ExecEvent(NamedTuple):
    """struct exec_event."""

    task: Task
    ts_ns: int
    path: bytes | None
    """As /proc/PID/exe shows it; None where it was too long or not readable."""


class ExitEvent(NamedTuple):
    """struct exit_event."""

    ts_ns: int
    start_ns: int
    pid: int


class ForkEvent(NamedTuple):
    """struct fork_event."""

    ts_ns: int
    start_ns: int
    parent_start_ns: int
    pid: int
    parent: int


class DnsEvent(NamedTuple):
    """struct dns_event: a DNS message, or a piece of a TCP stream of them (``DnsFlag.STREAM``)."""

    task: Task
    """Who sent it; of an answer nothing is known."""
    sk: int
    ts_ns: int
    flags: int
    seq: int
    data: bytes


class PlainEvent(NamedTuple):
    """struct plain_event: what a TLS library read or wrote in the clear."""

    sk: int
    connect_ns: int
    object: int
    enter_ns: int
    exit_ns: int
    offset: int
    pid: int
    total: int
    received: bool
    turned: bool
    data: bytes


Event = (
    DnsEvent | ConnEvent | LookupEvent | HelloEvent | ExecEvent | ExitEvent | ForkEvent | PlainEvent
)

_HEADER: Final = struct.Struct("=II")
_TASK: Final = struct.Struct("=QQQIIIIII16s")
_RECORD: Final = struct.Struct("=IHBB")
_ANSWER: Final = struct.Struct("=HHI16s")
_CONN: Final = struct.Struct(
    "=II QQQIIIIII16s QQQQQ QQQQQQQ QQQQQ IIIIiIIIIII HHHHHHHH BBBBBBBBBBBB 16s16s32s32s 24x"
)
_LOOKUP: Final = struct.Struct("=QQiHHHHI256s32s")
_HELLO: Final = struct.Struct("=QQQIHBB")
_EXEC: Final = struct.Struct("=QII")
_EXIT: Final = struct.Struct("=QQII")
_FORK: Final = struct.Struct("=QQQII")
_DNS: Final = struct.Struct("=QQHHI")
_PLAIN: Final = struct.Struct("=QQQQQQIIHBBI")

_PHASE_AT: Final = struct.calcsize("=II QQQIIIIII16s QQQQQ QQQQQQQ QQQQQ IIIIiIIIIII HHHHHHHH")

_LOG_LEN_AT: Final = _PHASE_AT + 8
_LOG_LEN: Final = ConnEvent._fields.index("log_len")

CONN_BYTES: Final = 656  # sizeof(struct conn_event), padding included
# struct task_info but for tid and netns; then sk, cookie, connect_ns, established_ns
_PEEK_HEAD: Final = f"={_HEADER.size}x QQQII 4x II 4x 16s QQQQ"
_PEEK: Final = struct.Struct(
    f"{_PEEK_HEAD} {_PHASE_AT - struct.calcsize(_PEEK_HEAD)}x B {CONN_BYTES - _PHASE_AT - 1}x"
)
# Of the same, sk, cookie, connect_ns and phase: fetching little costs little, of ten thousand.
_KEYS_AT: Final = struct.calcsize(_PEEK_HEAD) - 4 * 8
_PEEK_KEYS: Final = struct.Struct(
    f"={_KEYS_AT}x QQQ {_PHASE_AT - _KEYS_AT - 3 * 8}x B {CONN_BYTES - _PHASE_AT - 1}x"
)

_AFTER_TASK: Final = _HEADER.size + _TASK.size
_PATH_LEN: Final = 256  # in the form that most fit; else
_PATH_LONG: Final = 4096


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _task(data: memoryview) -> Task:
    fields = _TASK.unpack_from(data, _HEADER.size)
    return Task._make((*fields[:-1], _text(fields[-1])))


def decode_conn(data: memoryview | bytes) -> ConnEvent:
    """Decode one ``struct conn_event``, from the ring or from the map ``conn_by_sk``.

    Args:
        data: at least the fixed part; native byte order.
    Raises:
        DecodeError: too short.
    Source: bpf/event.h.
    """
    try:
        fields = _CONN.unpack_from(data)
    except struct.error as exc:
        raise DecodeError(f"a conn event of {len(data)} bytes") from exc
    end = _CONN.size + _RECORD.size * min(fields[_LOG_LEN], 32)
    log = bytes(data[_CONN.size : end]) if fields[_LOG_LEN] else b""
    if len(log) % _RECORD.size:
        raise DecodeError(f"a conn event of {len(data)} bytes")
    return ConnEvent._make((*fields, log))


def conn_size(data: memoryview) -> int:
    """How much of a ``struct conn_event`` is filled: the rest is room in its log."""
    return _CONN.size + _RECORD.size * min(data[_LOG_LEN_AT], 32)


class ConnPeek(NamedTuple):
    """What tells whether a ``struct conn_event`` is worth decoding."""

    start_ns: int
    cgroup_id: int
    exe_ino: int
    exe_dev: int
    pid: int
    ppid: int
    uid: int
    comm: bytes
    """As in the event: NULs and all."""
    sk: int
    cookie: int
    connect_ns: int
    established_ns: int
    phase: int


def peek_conns(data: memoryview) -> Iterator[tuple[Any, ...]]:
    """Read only what tells whether the whole is worth decoding, of many side by side.

    Args:
        data: entries of the map ``conn_by_sk``, ``CONN_BYTES`` each.
    Returns:
        The fields of a :class:`ConnPeek` each; not yet one, for a host may have tens of thousands
        and this takes a twentieth of decoding them.

    Source: bpf/event.h.
    """
    return _PEEK.iter_unpack(data)


def peek_keys(data: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """As :func:`peek_conns`, but ``sk``, ``cookie``, ``connect_ns`` and ``phase`` alone: half its
    cost.
    """
    return _PEEK_KEYS.iter_unpack(data)


def _lookup(data: memoryview) -> LookupEvent:
    start, end, ret, family, hints, total, count, flags, name, service = _LOOKUP.unpack_from(
        data, _AFTER_TASK
    )
    at = _AFTER_TASK + _LOOKUP.size
    answers = tuple(
        Answer._make(fields) for fields in _ANSWER.iter_unpack(data[at : at + count * _ANSWER.size])
    )
    return LookupEvent(
        _task(data), start, end, ret, family, hints, total, flags, _text(name), _text(service),
        answers,
    )  # fmt: skip


def _hello(data: memoryview) -> HelloEvent:
    sk, connect_ns, ts_ns, seq, length, received, number = _HELLO.unpack_from(data, _HEADER.size)
    at = _HEADER.size + _HELLO.size
    return HelloEvent(
        sk, connect_ns, ts_ns, seq, bool(received), number, bytes(data[at : at + length])
    )


def _exec(data: memoryview) -> ExecEvent:
    ts_ns, path_start, path_cut = _EXEC.unpack_from(data, _AFTER_TASK)
    at = _AFTER_TASK + _EXEC.size
    length = _PATH_LONG if len(data) >= at + _PATH_LONG else _PATH_LEN
    path = bytes(data[at + path_start : at + length])
    return ExecEvent(_task(data), ts_ns, None if path_cut or not path else path)


def _exit(data: memoryview) -> ExitEvent:
    ts_ns, start_ns, pid, _ = _EXIT.unpack_from(data, _HEADER.size)
    return ExitEvent(ts_ns, start_ns, pid)


def _fork(data: memoryview) -> ForkEvent:
    return ForkEvent._make(_FORK.unpack_from(data, _HEADER.size))


def _dns(data: memoryview) -> DnsEvent:
    sk, ts_ns, length, flags, seq = _DNS.unpack_from(data, _AFTER_TASK)
    at = _AFTER_TASK + _DNS.size
    return DnsEvent(_task(data), sk, ts_ns, flags, seq, bytes(data[at : at + length]))


def _plain(data: memoryview) -> PlainEvent:
    sk, connect_ns, object_, enter_ns, exit_ns, offset, pid, total, length, received, turned, _ = (
        _PLAIN.unpack_from(data, _HEADER.size)
    )
    at = _HEADER.size + _PLAIN.size
    return PlainEvent(
        sk, connect_ns, object_, enter_ns, exit_ns, offset, pid, total, bool(received),
        bool(turned), bytes(data[at : at + length]),
    )  # fmt: skip


_DECODERS: Final[dict[int, Callable[[memoryview], Event]]] = {
    Kind.CONN: decode_conn,
    Kind.LOOKUP: _lookup,
    Kind.HELLO: _hello,
    Kind.EXEC: _exec,
    Kind.EXIT: _exit,
    Kind.DNS: _dns,
    Kind.PLAIN: _plain,
    Kind.FORK: _fork,
}


def decode(data: memoryview) -> Event:
    """Decode one record of the ring ``events``.

    Args:
        data: the record, native byte order; longer than the event is fine (fixed reservations).
    Raises:
        DecodeError: an unknown kind, or shorter than its kind needs.
    Source: bpf/event.h.
    """
    try:
        kind, _ = _HEADER.unpack_from(data)
        return _DECODERS[kind](data)
    except (struct.error, KeyError) as exc:
        raise DecodeError(f"an event of {len(data)} bytes that cannot be read") from exc
