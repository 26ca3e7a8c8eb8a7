"""What may be asked of the statistics, and what is answered."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from conmon.names import fits_exe
from monitor.stats.values import RELATIVE_ERROR

__all__ = ["OpenConns", "StatsAnswer", "StatsQuery", "Who"]


class Who(NamedTuple):
    """One process and one host that it spoke to."""

    pid: int | None
    process_start_ns: int | None
    comm: str | None
    exe: str | None
    unit: str | None
    container: str | None
    uid: int | None
    host: str | None
    folded: bool = False
    """Several hosts, no longer told apart."""


@dataclass(slots=True)
class OpenConns:
    """The connections that one process has open to one host now."""

    pid: int | None
    process_start_ns: int | None
    comm: str | None
    exe: str | None
    unit: str | None
    container: str | None
    uid: int | None
    host: str | None
    began_ns: array[int] = field(default_factory=lambda: array("q"))
    """When each began, nanoseconds since 1970; 0: before the daemon."""
    sent: int = 0
    """Payload bytes so far, of those that it is known of."""
    received: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsQuery:
    """Which connections are counted, and how they are grouped.

    ``since_ns``: nanoseconds since 1970; None: since the daemon started. ``container`` matches the
    beginning of an id, ``unit`` also a service's name without its suffix. ``uid_only``: all that
    the asker may see.
    """

    by: str = "process"
    since_ns: int | None = None
    pid: int | None = None
    comm: str | None = None
    exe: tuple[str, ...] = ()
    unit: str | None = None
    container: str | None = None
    uid: int | None = None
    host: str | None = None
    uid_only: int | None = None
    sort: str = "opened"
    limit: int | None = None

    @property
    def filters_who(self) -> bool:
        """Whether some are left out for more than their user, so that what is summed up as "other"
        may be of them or not."""
        chosen = (self.pid, self.comm, self.unit, self.container, self.host)
        return bool(self.exe) or any(value is not None for value in chosen)

    def any_host(self) -> StatsQuery:
        """The same, whatever the host."""
        return replace(self, host=None)

    def wants(self, who: Who | OpenConns) -> bool:
        """Whether a process and host are counted."""
        return (
            (self.uid_only is None or who.uid == self.uid_only)
            and (self.pid is None or who.pid == self.pid)
            and (self.comm is None or who.comm == self.comm)
            and all(fits_exe(pattern, who.exe) for pattern in self.exe)
            and (self.unit is None or who.unit in (self.unit, f"{self.unit}.service"))
            and (
                self.container is None
                or (who.container is not None and who.container.startswith(self.container))
            )
            and (self.uid is None or who.uid == self.uid)
            and (self.host is None or who.host == self.host)
        )


class StatsAnswer(NamedTuple):
    """Rows in the order asked for."""

    by: str
    since_ns: int
    """Where the window really begins."""
    rows: list[dict[str, Any]]
    other: dict[str, Any] | None
    """Everything that is no longer told apart; None where there is nothing."""
    total: int
    """Rows there would be without the limit."""
    untold: int = 0
    """Connections that are no longer told apart, so that whether they are of those that a filter
    chose is not known. Without a filter they are in ``other``."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "since": text_of(self.since_ns),
            "by": self.by,
            "quantile_error": RELATIVE_ERROR,
            "total": self.total,
            "processes": self.rows,
            "other": self.other,
            "untold": self.untold,
        }


def text_of(wall_ns: int) -> str:
    """RFC 3339, UTC, microseconds."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"
