"""Query parameters to filters: what a stranger may ask for, checked. Pure."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from conmon.names import COMM_BYTES, fits_exe, fold_host
from conmon.record import Record
from conmon.waits import waited_us
from monitor.errors import MonitorError

__all__ = [
    "FILTER_NAMES",
    "Filters",
    "ParameterError",
    "cursor",
    "duration_ns",
    "flag",
    "limit",
    "moment_ns",
    "parse_filters",
    "parse_query",
]

MAX_PARAMETERS: Final = 32
MAX_TEXT: Final = 512
MAX_STARS: Final = 16  # of a pattern: each may be looked for in the whole of a long path
_UNITS_NS: Final = {
    "": 1_000_000_000,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([a-z]{0,2})", re.ASCII)
_CURSOR: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
_CURSOR_END: Final = 1 << 62  # likewise in monitor/history/query.py
_LONGEST_NS: Final = 100 * 365 * _UNITS_NS["d"]

FILTER_NAMES: Final = (
    "pid",
    "comm",
    "exe",
    "unit",
    "container",
    "uid",
    "host",
    "failed",
    "unused",
    "slow",
)


class ParameterError(MonitorError):
    """A query parameter that is not one, or has no such value."""


class Filters(NamedTuple):
    """Which records are wanted; None: any."""

    pid: int | None = None
    comm: str | None = None
    exe: tuple[str, ...] = ()
    """Patterns, as :func:`conmon.names.fits_exe` reads them; all of them fit."""
    unit: str | None = None
    container: str | None = None
    """The id or the beginning of it."""
    uid: int | None = None
    host: str | None = None
    """As :func:`conmon.names.fold_host` makes it."""
    failed: bool = False
    unused: bool = False
    """TLS was set up, and nothing asked."""
    slow_us: int | None = None
    """A phase that took at least so long, or a wait in vain."""
    uid_only: int | None = None
    """All that the asker may see; None: everything."""

    @property
    def need_record(self) -> bool:
        """Whether more than user and process decide."""
        return self._replace(pid=None, uid=None, uid_only=None) != Filters()

    @property
    def any_process(self) -> bool:
        """Whether connections of every process and user may be wanted."""
        return self.pid is None and self.uid is None and self.uid_only is None

    def match_process(self, pid: int | None, uid: int) -> bool:
        """Whether connections of this process and user may be wanted."""
        return (
            (self.uid_only is None or uid == self.uid_only)
            and (self.pid is None or pid == self.pid)
            and (self.uid is None or uid == self.uid)
        )

    def match(self, record: Record) -> bool:
        """Whether a record is wanted."""
        return (
            (self.uid_only is None or record.uid == self.uid_only)
            and (self.pid is None or record.pid == self.pid)
            and (self.comm is None or record.comm == self.comm)
            and all(fits_exe(pattern, record.exe) for pattern in self.exe)
            and (self.unit is None or _unit_matches(self.unit, record.unit))
            and (
                self.container is None
                or (record.container is not None and record.container.startswith(self.container))
            )
            and (self.uid is None or record.uid == self.uid)
            and (self.host is None or _is_host(self.host, record.host))
            and (not self.failed or record.state == "failed")
            and (not self.unused or is_unused(record))
            and (self.slow_us is None or slowest_us(record) >= self.slow_us)
        )


def is_unused(record: Record) -> bool:
    """Whether TLS was set up, and nothing asked."""
    return record.tls is not None and record.tls.result == "unused"


def slowest_us(record: Record) -> int:
    """The longest phase of a record, or its wait in vain; -1 where none is known."""
    phases = (
        record.dns_us, record.sockconn_us, record.tls_us, record.txn_resp_us, record.greeting_us,
        waited_us(record),
    )  # fmt: skip
    return max((us for us in phases if us is not None), default=-1)


def _is_host(wanted: str, host: str | None) -> bool:
    return host is not None and fold_host(host) == wanted


def _unit_matches(wanted: str, unit: str | None) -> bool:
    return unit is not None and (unit == wanted or unit == f"{wanted}.service")


def parse_query(query: str) -> dict[str, str]:
    """Take the part of a URL after ``?`` apart.

    Raises:
        ParameterError: not a query, one too long, or a name given twice.
    """
    try:
        pairs = parse_qsl(
            query,
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError as exc:
        raise ParameterError("the query after ? cannot be read") from exc
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise ParameterError(f"{_quoted(name)} is given twice")
        if len(value) > MAX_TEXT:
            raise ParameterError(f"{_quoted(name)} is longer than {MAX_TEXT} characters")
        given[name] = value
    return given


def parse_filters(given: Mapping[str, str], others: tuple[str, ...] = ()) -> Filters:
    """Read the filters among the parameters.

    Args:
        given: of :func:`parse_query`.
        others: names that the caller reads itself.
    Raises:
        ParameterError: an unknown name or a value that is none of its kind.
    """
    for name in given:
        if name not in FILTER_NAMES and name not in others:
            known = ", ".join((*FILTER_NAMES, *others))
            raise ParameterError(f"{_quoted(name)} is not a parameter here; these are: {known}")
    comm, patterns = given.get("comm"), [given["exe"]] if "exe" in given else []
    if patterns and patterns[0].count("*") > MAX_STARS:
        raise ParameterError(f"exe has more than {MAX_STARS} *")
    if comm is not None and len(comm.encode("utf-8", "replace")) > COMM_BYTES:
        # the kernel cuts a name; its file has the whole
        patterns.append(glob.escape(comm))
        comm = None
    return Filters(
        pid=_number("pid", given.get("pid"), 0xFFFF_FFFF),
        comm=comm,
        exe=tuple(patterns),
        unit=given.get("unit"),
        container=given.get("container"),
        uid=_number("uid", given.get("uid"), 0xFFFF_FFFF),
        host=fold_host(given["host"]) if "host" in given else None,
        failed=flag(given, "failed"),
        unused=flag(given, "unused"),
        slow_us=duration_ns("slow", given["slow"]) // 1000 if "slow" in given else None,
    )


def duration_ns(name: str, text: str) -> int:
    """Read ``200ms``, ``5m`` or a number of seconds.

    Raises:
        ParameterError: it is no duration, or one of over a century.
    """
    found = _DURATION.fullmatch(text)
    if found is None or found[2] not in _UNITS_NS:
        raise ParameterError(f"{name} must be a duration such as 200ms, 5s, 1m, 2h or 7d")
    nanoseconds = int(float(found[1]) * _UNITS_NS[found[2]])
    if nanoseconds > _LONGEST_NS:
        raise ParameterError(f"{name} is longer than a century")
    return nanoseconds


def moment_ns(name: str, text: str, now_ns: int) -> int:
    """Read a moment: a duration, which is so long ago, or RFC 3339; nanoseconds since 1970.

    Raises:
        ParameterError: neither.
    """
    if _DURATION.fullmatch(text):
        return max(0, now_ns - duration_ns(name, text))
    from datetime import UTC, datetime  # 0.5 MB that few questions need

    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = moment.timestamp()
    except (ValueError, OverflowError) as exc:
        raise ParameterError(
            f"{name} must be a duration such as 5m, or a time such as 2026-01-31T12:00:00Z"
        ) from exc
    return max(0, int(seconds * 1e6)) * 1000


def limit(given: Mapping[str, str], default: int | None, most: int) -> int | None:
    """Read ``limit``; 0 asks for as many as there may be.

    Raises:
        ParameterError: it is no number.
    """
    number = _number("limit", given.get("limit"), 10**9)
    if number is None:
        return default
    return min(number, most) if number else most


def cursor(given: Mapping[str, str], name: str) -> str | None:
    """Read where a page begins, as the answer before said in ``next``; None: at the beginning.

    Raises:
        ParameterError: no answer said that.
    """
    text = given.get(name)
    if text is not None and (_CURSOR.fullmatch(text) is None or int(text) >= _CURSOR_END):
        raise ParameterError(f"{name} must be what an earlier answer gave as next")
    return text


def flag(given: Mapping[str, str], name: str) -> bool:
    """Read a yes or no.

    Raises:
        ParameterError: neither.
    """
    text = given.get(name, "0").lower()
    if text not in ("0", "1", "true", "false", ""):
        raise ParameterError(f"{name} must be 1 or 0")
    return text not in ("0", "false")


def _number(name: str, text: str | None, most: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise ParameterError(f"{name} must be a whole number from 0 to {most}")
    return int(text)


def _quoted(name: str) -> str:
    return ascii(name[:40])
