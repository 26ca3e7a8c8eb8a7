"""What the command line hands to the daemon: the settings, and where records go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

from conmon.record import Record

__all__ = [
    "DEFAULT_CONFIG",
    "DEFAULT_SOCKET",
    "DEFAULT_STATE_DIR",
    "Config",
    "HistoryOptions",
    "Options",
    "ProbeSettings",
    "RecordSink",
    "Serve",
    "StatsLimits",
]

DEFAULT_CONFIG: Final = "/etc/conmond/config.toml"
DEFAULT_SOCKET: Final = "/run/conmond/conmond.sock"
DEFAULT_STATE_DIR: Final = "/var/lib/conmond"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """The query socket.

    ``insist``: without it there is no point in running; otherwise a path that another daemon
    listens on is only said. ``rate``: requests a second of one uid. ``metrics_listen``: address
    and port for /metrics over TCP.
    """

    path: str = DEFAULT_SOCKET
    insist: bool = False
    group: str = "conmond"
    max_clients: int = 64
    rate: float = 200.0
    metrics_listen: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsLimits:
    """How many are told apart in the statistics; the rest is summed up."""

    max_processes: int = 1000
    max_hosts: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryOptions:
    """Where records are kept, and for how long."""

    folder: str = DEFAULT_STATE_DIR
    max_age_s: float = 7 * 86_400
    max_bytes: int = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """What may be probed in libraries and programs.

    ``libraries``: ``all``, ``names`` (lookup functions alone) or ``none``. ``exclude``: rules such
    as ``exe=/opt/*``; monitor/kernel/exclusions.py.
    """

    libraries: Literal["all", "names", "none"] = "all"
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the daemon is to run.

    ``live``: hand out each record once, with ``state`` open, when its set-up is complete, besides
    the one at its end. ``inbound``: accepted connections too. ``cmdlines``: records tell their
    process's arguments. ``duration_s``: stop by itself after so long; None is until a signal.
    ``serve``: the query socket; None: there is none. ``history``: likewise.
    """

    live: bool = False
    inbound: bool = False
    cmdlines: bool = False
    duration_s: float | None = None
    serve: Serve | None = Serve()
    stats: StatsLimits = StatsLimits()
    history: HistoryOptions | None = HistoryOptions()
    probe: ProbeSettings = ProbeSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a configuration file says (monitor/config.py); where it is silent, the default."""

    socket: str = DEFAULT_SOCKET
    state_dir: str = DEFAULT_STATE_DIR
    group: str = "conmond"
    record_cmdline: bool = False
    record_inbound: bool = False
    history_enabled: bool = True
    history_max_age: float = 7 * 86_400
    """Seconds."""
    history_max_size: int = 1_000_000_000
    stats_max_processes: int = 1000
    stats_max_hosts: int = 1000
    api_max_clients: int = 64
    api_max_requests_per_second: int = 200
    metrics_listen: tuple[str, int] | None = None
    probe_libraries: Literal["all", "names", "none"] = "all"
    probe_exclude: tuple[str, ...] = ()


class RecordSink(Protocol):
    """Where the daemon puts records. No method blocks, and none raises over the state of stdout.

    In an event loop: register ``fileno()``, where it is not None, for EPOLLERR always and for
    EPOLLOUT while ``wants_write``; call ``flush()`` on either, and after each batch of records.
    """

    @property
    def dropped(self) -> int:
        """Records thrown away so far because the reader did not keep up."""

    @property
    def closed(self) -> bool:
        """The reader has gone, and no record can reach anyone any more."""

    @property
    def wants_write(self) -> bool:
        """Something waits for the reader to take what was written before."""

    def fileno(self) -> int | None:
        """The descriptor to watch; None where nothing ever needs watching (a file, --quiet)."""

    def write(self, record: Record) -> None:
        """Take one record; it may be on its way only at the next ``flush()``."""

    def flush(self) -> None:
        """Pass on what can be passed on now."""
