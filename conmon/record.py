"""The conmon record: what one connection was, who made it, and what each stage of it took.

Field names are the JSON keys, in their order. None is "not known", never 0 or "". Times are in
microseconds. docs/record.schema.json states the same for other languages.

Records are named tuples because tens of thousands a second are made: a frozen dataclass costs
twice as much. Only the names are a contract: positions and length change as keys are added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

from .errors import RecordError

__all__ = ["FORMAT_VERSION", "MAX_JSON_CHARS", "Attempt", "Record", "Tcp", "Tls", "Turns"]

FORMAT_VERSION = 1
"""The value of ``v``. It changes only when a key changes its meaning, not when one is added."""

MAX_JSON_CHARS = 1 << 20
"""Longest text taken for a record: 96 addresses and a hundred attempts need under 32 KiB; a
command line of the longest kind is what the rest is for."""

_LWS_INTERVAL_MAX = 0xFFFF_FFFF  # lws counts in uint32_t, 71 minutes


class Attempt(NamedTuple):
    """One connect() made for a connection."""

    raddr: str | None = None
    rport: int | None = None
    us: int | None = None  # SYN_SENT to its end, good or bad
    offset_us: int | None = None  # its begin, since the first attempt's
    result: str | None = None  # ok refused timeout unreachable reset abandoned denied failed
    errno: str | None = None  # name; None where it did not fail


class Tls(NamedTuple):
    """The TLS handshake."""

    source: str | None = None  # openssl gnutls nss go ... wire: where the time was taken
    version: str | None = None  # "TLSv1.3"
    cipher: str | None = None  # IANA name
    sni: str | None = None
    alpn: tuple[str, ...] | None = None  # what was offered; the one chosen where that was seen
    alpn_chosen: bool | None = None  # True: alpn holds the one chosen
    resumed: bool | None = None
    result: str | None = None  # ok unused alert rejected closed reset timeout failed
    alert: str | None = None  # the RFC's name: "handshake_failure"


class Turns(NamedTuple):
    """The request and response turns that a connection carried."""

    count: int  # type: ignore[assignment]  # hides tuple.count(), which has no use here
    sum_us: int | None = None
    max_us: int | None = None


class Tcp(NamedTuple):
    """The kernel's own figures when the connection closed; of an open one, as they stood."""

    rtt_us: int | None = None
    rttvar_us: int | None = None
    retransmits: int | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None


class Record(NamedTuple):
    """One connection, self-contained: it refers to nothing that may close or change.

    Make one with keyword arguments; change one with ``record._replace(state="closed")``.
    """

    v: int = FORMAT_VERSION
    id: str | None = None
    start: str | None = None  # RFC 3339 UTC, microseconds
    state: str = "open"  # open closed failed
    role: str = "client"  # client server
    pid: int | None = None
    tid: int | None = None
    comm: str | None = None
    exe: str | None = None
    cmdline: tuple[str, ...] | None = None  # left out of the JSON where None
    uid: int | None = None
    unit: str | None = None
    container: str | None = None
    container_pid: int | None = None  # the pid as the container sees it
    netns: int | None = None  # inode
    host: str | None = None
    host_source: str | None = None  # lookup sni http
    laddr: str | None = None
    lport: int | None = None
    raddr: str | None = None
    rport: int | None = None
    family: str | None = None  # ipv4 ipv6
    transport: str = "tcp"
    peer: str | None = None
    dns: tuple[str, ...] | None = None
    dns_us: int | None = None
    dns_disp: int | None = None  # conmon.names.DNS_*
    dns_source: str | None = None  # getaddrinfo wire resolved literal
    dns_age_us: int | None = None
    dns_match: str | None = None  # thread process host
    sockconn_us: int | None = None
    attempts: tuple[Attempt, ...] = ()
    tls_us: int | None = None
    tls: Tls | None = None
    txn_resp_us: int | None = None
    txn_source: str | None = None  # plain records h2_records
    greeting_us: int | None = None
    turns: Turns | None = None
    prot_specific: dict[str, Any] | None = None  # protocol resp method version host
    tcp: Tcp | None = None
    duration_us: int | None = None
    error: str | None = None  # errno or EAI_ name
    lost_before: bool = False

    def __hash__(self) -> int:
        # prot_specific is a dict, which a tuple's own hash trips over.
        return hash((self.id, self.start, self.state, self.pid, self.host))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON types, every key in its order; changing it changes no record.

        ``json.loads(record.to_json()) == record.to_dict()``. Fit for ``orjson.dumps()``, which
        refuses lone surrogates where ``to_json()`` escapes them.
        """
        data: dict[str, Any] = dict(zip(_KEYS, self))
        if self.cmdline is None:
            del data["cmdline"]
        else:
            data["cmdline"] = list(self.cmdline)
        if self.dns is not None:
            data["dns"] = list(self.dns)
        data["attempts"] = [dict(zip(_ATTEMPT_KEYS, attempt)) for attempt in self.attempts]
        tls = self.tls
        if tls is not None:
            tls_data: dict[str, Any] = dict(zip(_TLS_KEYS, tls))
            data["tls"] = tls_data
            if tls.alpn is not None:
                tls_data["alpn"] = list(tls.alpn)
        if self.turns is not None:
            data["turns"] = dict(zip(_TURNS_KEYS, self.turns))
        if self.prot_specific is not None:
            data["prot_specific"] = dict(self.prot_specific)
        if self.tcp is not None:
            data["tcp"] = dict(zip(_TCP_KEYS, self.tcp))
        return data

    def to_json(self) -> str:
        """Return the record as one line of JSON, printable ASCII alone.

        Whatever a stranger put in a name comes out escaped: control characters, DEL and lone
        surrogates included, so the line is safe in a log, a terminal and any encoding. All comes
        back as it was, save that JSON takes two surrogates which happen to pair for one character.
        """
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False)

    def to_lws(self) -> dict[str, Any]:
        """Return what libwebsockets' own JSON for ``struct lws_conmon`` holds, and no more.

        Its keys, order and ways with the unknown: 0, ``[]``, and ``"(unset)"`` for a peer;
        ``prot_specific`` is there only once an HTTP response was seen. Addresses have no zone,
        times stop at the most its 32 bits hold.
        """
        data: dict[str, Any] = {
            "peer": "(unset)" if self.peer is None else _without_zone(self.peer),
            "dns_us": _lws_interval(self.dns_us),
            "dns_disp": self.dns_disp or 0,
            "sockconn_us": _lws_interval(self.sockconn_us),
            "tls_us": _lws_interval(self.tls_us),
            "txn_resp_us": _lws_interval(self.txn_resp_us),
            "dns": [_without_zone(address) for address in self.dns or ()],
        }
        specific = self.prot_specific or {}
        if specific.get("protocol") == "http" and specific.get("resp") is not None:
            data["prot_specific"] = {"protocol": "http", "resp": specific["resp"]}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Build a record from what ``to_dict()`` gave, or from parsed JSON of any source.

        Keys that this version does not know are ignored and those missing are not known, so
        records pass both ways between versions; ``v`` and ``state`` must be there.

        Raises:
            RecordError: a key of the wrong type or out of range, or a format with another ``v``.
        """
        if not isinstance(data, Mapping):
            raise RecordError(f"a record must be a JSON object, not {_kind(data)}")
        return cls(**_read_fields("", data, _RECORD_READERS, required=("v", "state")))

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Build a record from a line of JSON, as ``from_dict()`` does. Safe on hostile input.

        Raises:
            RecordError: not JSON, not UTF-8, over ``MAX_JSON_CHARS``, or not a record.
        """
        if len(text) > MAX_JSON_CHARS:
            raise RecordError(f"a record is at most {MAX_JSON_CHARS} characters, not {len(text)}")
        try:
            if not isinstance(text, str):
                text = text.decode("utf-8")
            data = json.loads(text, parse_int=_bounded_int, parse_constant=_refuse_constant)
        except RecordError:
            raise
        except RecursionError as exc:
            raise RecordError("the JSON is nested too deeply for a record") from exc
        except ValueError as exc:  # UnicodeDecodeError and JSONDecodeError are both
            raise RecordError(f"a record must be JSON in UTF-8: {exc}") from exc
        return cls.from_dict(data)


_KEYS = Record._fields
_ATTEMPT_KEYS = Attempt._fields
_TLS_KEYS = Tls._fields
_TURNS_KEYS = Turns._fields
_TCP_KEYS = Tcp._fields


def _lws_interval(us: int | None) -> int:
    return min(us or 0, _LWS_INTERVAL_MAX)


def _without_zone(address: str) -> str:
    return address.partition("%")[0]


# Reading. A reader takes the key's path, for the error, and its value, and returns what the
# record holds. It converts nothing: "1" is no integer, 1 no boolean, 0 no None.

_Reader = Callable[[str, Any], Any]


def _bounded_int(digits: str) -> int | float:
    # Converting takes quadratic time, so a long one is not converted: infinity is no integer to
    # any reader, whose error then names the key.
    return int(digits) if len(digits) <= 20 else math.inf


def _refuse_constant(name: str) -> Any:
    raise RecordError(f"a record must be JSON, which has no {name}")


def _kind(value: object) -> str:
    for kind, name in (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number"),
        (str, "a string"),
        (Mapping, "an object"),
        ((list, tuple), "a list"),
    ):
        if isinstance(value, kind):
            return name
    return "null" if value is None else f"a {type(value).__name__}"


def _integer(low: int, high: int) -> _Reader:
    def read(path: str, value: Any) -> int:
        if type(value) is not int:
            raise RecordError(f'"{path}" must be an integer, not {_kind(value)}')
        if not low <= value <= high:
            raise RecordError(f'"{path}" must be from {low} to {high}')
        return value

    return read


def _text(path: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RecordError(f'"{path}" must be a string, not {_kind(value)}')
    return value


def _flag(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RecordError(f'"{path}" must be true or false, not {_kind(value)}')
    return value


def _one_of(*choices: str) -> _Reader:
    def read(path: str, value: Any) -> str:
        text = _text(path, value)
        if text not in choices:
            raise RecordError(f'"{path}" must be one of: {", ".join(choices)}')
        return text

    return read


def _list_of(reader: _Reader) -> _Reader:
    def read(path: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise RecordError(f'"{path}" must be a list, not {_kind(value)}')
        return tuple(reader(f"{path}[{index}]", item) for index, item in enumerate(value))

    return read


def _or_null(reader: _Reader) -> _Reader:
    def read(path: str, value: Any) -> Any:
        return None if value is None else reader(path, value)

    return read


def _object(
    build: Callable[..., Any], readers: dict[str, _Reader], required: tuple[str, ...] = ()
) -> _Reader:
    def read(path: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise RecordError(f'"{path}" must be an object, not {_kind(value)}')
        return build(**_read_fields(f"{path}.", value, readers, required))

    return read


def _read_fields(
    prefix: str, data: Mapping[str, Any], readers: dict[str, _Reader], required: tuple[str, ...]
) -> dict[str, Any]:
    for key in required:
        if key not in data:
            raise RecordError(f'"{prefix}{key}" is missing')
    return {
        key: reader(f"{prefix}{key}", data[key]) for key, reader in readers.items() if key in data
    }


def _version(path: str, value: Any) -> int:
    version: int = _COUNT(path, value)
    if version != FORMAT_VERSION:
        raise RecordError(f'"{path}" is {version}, and this program reads format {FORMAT_VERSION}')
    return version


_COUNT = _integer(0, 2**63 - 1)
_MAYBE_COUNT = _or_null(_COUNT)  # microseconds, bytes, segments
_MAYBE_PORT = _or_null(_integer(1, 0xFFFF))
_MAYBE_ID = _or_null(_integer(0, 0xFFFF_FFFF))  # pid, uid, namespace inode: 32 bits in the kernel
_MAYBE_TEXT = _or_null(_text)
_MAYBE_FLAG = _or_null(_flag)
_MAYBE_TEXTS = _or_null(_list_of(_text))

_ATTEMPT_READERS: dict[str, _Reader] = {
    "raddr": _MAYBE_TEXT,
    "rport": _MAYBE_PORT,
    "us": _MAYBE_COUNT,
    "offset_us": _MAYBE_COUNT,
    "result": _MAYBE_TEXT,
    "errno": _MAYBE_TEXT,
}
_TLS_READERS: dict[str, _Reader] = {
    "source": _MAYBE_TEXT,
    "version": _MAYBE_TEXT,
    "cipher": _MAYBE_TEXT,
    "sni": _MAYBE_TEXT,
    "alpn": _MAYBE_TEXTS,
    "alpn_chosen": _MAYBE_FLAG,
    "resumed": _MAYBE_FLAG,
    "result": _MAYBE_TEXT,
    "alert": _MAYBE_TEXT,
}
_TURNS_READERS: dict[str, _Reader] = {
    "count": _COUNT,
    "sum_us": _MAYBE_COUNT,
    "max_us": _MAYBE_COUNT,
}
_PROT_SPECIFIC_READERS: dict[str, _Reader] = {
    "protocol": _text,
    "resp": _MAYBE_COUNT,
    "method": _MAYBE_TEXT,
    "version": _MAYBE_TEXT,
    "host": _MAYBE_TEXT,
}
_TCP_READERS: dict[str, _Reader] = dict.fromkeys(Tcp._fields, _MAYBE_COUNT)

# Sets that a later version may add to (dns_source, result, transport ...) are plain text here.
_RECORD_READERS: dict[str, _Reader] = {
    "v": _version,
    "id": _MAYBE_TEXT,
    "start": _MAYBE_TEXT,
    "state": _one_of("open", "closed", "failed"),
    "role": _one_of("client", "server"),
    "pid": _MAYBE_ID,
    "tid": _MAYBE_ID,
    "comm": _MAYBE_TEXT,
    "exe": _MAYBE_TEXT,
    "cmdline": _MAYBE_TEXTS,
    "uid": _MAYBE_ID,
    "unit": _MAYBE_TEXT,
    "container": _MAYBE_TEXT,
    "container_pid": _MAYBE_ID,
    "netns": _MAYBE_ID,
    "host": _MAYBE_TEXT,
    "host_source": _MAYBE_TEXT,
    "laddr": _MAYBE_TEXT,
    "lport": _MAYBE_PORT,
    "raddr": _MAYBE_TEXT,
    "rport": _MAYBE_PORT,
    "family": _MAYBE_TEXT,
    "transport": _text,
    "peer": _MAYBE_TEXT,
    "dns": _MAYBE_TEXTS,
    "dns_us": _MAYBE_COUNT,
    "dns_disp": _or_null(_integer(0, 3)),
    "dns_source": _MAYBE_TEXT,
    "dns_age_us": _MAYBE_COUNT,
    "dns_match": _MAYBE_TEXT,
    "sockconn_us": _MAYBE_COUNT,
    "attempts": _list_of(_object(Attempt, _ATTEMPT_READERS)),
    "tls_us": _MAYBE_COUNT,
    "tls": _or_null(_object(Tls, _TLS_READERS)),
    "txn_resp_us": _MAYBE_COUNT,
    "txn_source": _MAYBE_TEXT,
    "greeting_us": _MAYBE_COUNT,
    "turns": _or_null(_object(Turns, _TURNS_READERS, required=("count",))),
    "prot_specific": _or_null(_object(dict, _PROT_SPECIFIC_READERS, required=("protocol",))),
    "tcp": _or_null(_object(Tcp, _TCP_READERS)),
    "duration_us": _MAYBE_COUNT,
    "error": _MAYBE_TEXT,
    "lost_before": _flag,
}
