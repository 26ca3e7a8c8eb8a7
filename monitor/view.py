"""What the daemon answers: its state as others may see it.

Every method runs in a thread of the query socket's server. The daemon's own thread holds the lock
whenever it is not waiting, so whoever holds it may read and use everything.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import monitor
from conmon.record import Record
from monitor.api.answer import to_json
from monitor.api.parameters import Filters, ParameterError
from monitor.correlate import Clock, Correlator
from monitor.decode import peek_keys
from monitor.faults import Faults
from monitor.keep import Keep
from monitor.kernel.kernel import Kernel
from monitor.kernel.prober import Prober
from monitor.leftovers import Leftovers
from monitor.opennow import OpenNow, OpenRow
from monitor.recent import first_id
from monitor.stats import StatsQuery

if TYPE_CHECKING:
    from monitor.api.access import Asker
    from monitor.api.answer import Feed
    from monitor.api.metrics import Gauges
    from monitor.api.server import Server
    from monitor.deep import Deep
    from monitor.kernel.identities import ProcIdentities
    from monitor.kernel.older import Older

__all__ = ["View"]

_ROWS_AT_A_TIME: Final = 100  # the lock is given up between
_OLDER_UNSEEN: Final = "not all connections that are older than conmond can be listed"
_LIBRARY_KINDS: Final = {
    "getaddrinfo": "libc",
    "gethostbyname_r": "libc",
    "gethostbyname2_r": "libc",
    "SSL_do_handshake": "openssl",
    "gnutls_handshake": "gnutls",
    "SSL_ForceHandshake": "nss",
    "wolfSSL_connect": "wolfssl",
    "mbedtls_ssl_handshake": "mbedtls",
}


@dataclass(slots=True)
class View:
    """Answers for :class:`monitor.api.routes.Routes`.

    Args:
        catch_up: reads what the kernel side has reported; to be called with the lock held.
    """

    lock: threading.RLock
    kernel: Kernel
    core: Correlator
    identities: ProcIdentities
    prober: Prober
    clock: Clock
    keep: Keep
    started_ns: int
    catch_up: Callable[[], None]
    unseen: list[str]
    server: Server | None = None
    older: Older | None = None
    leftovers: Leftovers | None = None
    deep_sessions: Deep | None = None
    faults: Faults | None = None
    _open: OpenNow = field(init=False)
    _boot_offset_ns: int = field(init=False)
    _boot: str = field(init=False)

    def __post_init__(self) -> None:
        self._boot_offset_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._boot = self.core.facts.boot
        self._open = OpenNow(
            kernel=self.kernel,
            core=self.core,
            identities=self.identities,
            clock=self.clock,
            boot_offset_ns=self._boot_offset_ns,
            older=self.older,
        )

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def process_start_ns(self, start_ns: int) -> int:
        """A process's start, from CLOCK_BOOTTIME to nanoseconds since 1970."""
        return start_ns + self._boot_offset_ns

    def stale(self) -> bool:
        """See :class:`monitor.api.routes.Source`."""
        return self.older is not None and self.older.stale

    def freshen(self) -> None:
        """See :class:`monitor.api.routes.Source`."""
        older = self.older
        if older is None:
            return
        with self.lock:
            older.start()
        older.wait()

    # -- statistics ---------------------------------------------------------------------------

    def processes(self, query: StatsQuery) -> dict[str, Any]:
        """See :class:`monitor.api.routes.Source`."""
        with self.lock:
            self.catch_up()
            now_ns = self.now_ns()
            collected = self.keep.stats.collect(query, self._open.groups(), now_ns)
            lost = sum(self._lost().values())
        return {"v": 1, "at": _text(now_ns), "lost": lost, **collected.answer().to_dict()}

    # -- connections --------------------------------------------------------------------------

    def connections(
        self, filters: Filters, most: int | None, *, newest_first: bool
    ) -> Iterator[bytes]:
        """See :class:`monitor.api.routes.Source`."""
        with self.lock:
            self.catch_up()
            rows, total = self._open.rows(filters, most, newest=newest_first)
            at = _text(self.now_ns())
        return self._connection_pieces(rows, total, at, filters, most)

    def _connection_pieces(
        self, rows: list[OpenRow], total: int, at: str, filters: Filters, most: int | None
    ) -> Iterator[bytes]:
        yield b'{"v":1,"at":"%s","connections":[' % at.encode()
        need_record = filters.need_record
        if need_record:
            total = 0
        separator = b""
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            lines = []
            with self.lock:
                chunk = rows[start : start + _ROWS_AT_A_TIME]
                live = self._open.live(chunk)
                for row in chunk:
                    described = self._open.describe(row, live.get(row.sk))
                    if described is None:
                        total -= not need_record
                        continue
                    record, tcp_state, older = described
                    if need_record:
                        if not filters.match(record):
                            continue
                        total += 1
                        if most is not None and total > most:
                            continue
                    lines.append(_open_row(record, tcp_state, older))
            # without lines, too: the server gives others their turn between
            yield separator + b",".join(lines) if lines else b""
            separator = b"," if lines else separator
        yield b'],"total":%d}\n' % total

    # -- records ------------------------------------------------------------------------------

    def records(
        self,
        filters: Filters,
        *,
        since_ns: int | None,
        until_ns: int | None,
        most: int,
        before: str | None,
        oldest_first: bool,
    ) -> Iterator[bytes]:
        """See :class:`monitor.api.routes.Source`."""
        with self.lock:
            self.catch_up()
        history = self.keep.history
        if history is not None and history.status().enabled:
            from monitor.history import HistoryQuery

            page = history.query(
                HistoryQuery(
                    since_ns=since_ns,
                    until_ns=until_ns,
                    limit=most,
                    before=before,
                    order="oldest" if oldest_first else "newest",
                    failed=filters.failed,
                    unused=filters.unused,
                    slow_us=filters.slow_us,
                    pid=filters.pid,
                    comm=filters.comm,
                    exe=filters.exe,
                    unit=filters.unit,
                    container=filters.container,
                    uid=filters.uid,
                    host=filters.host,
                    uid_only=filters.uid_only,
                )
            )
            return _record_pieces("history", page.bodies, page.next, page.damaged)
        if before is not None:
            raise ParameterError("there is no history, so all records came with the first answer")
        with self.lock:
            newest = list(self.keep.recent.newest_first())
        wanted = [
            record
            for record, ended_ns in newest
            if filters.match(record)
            and (since_ns is None or ended_ns >= since_ns)
            and (until_ns is None or ended_ns < until_ns)
        ]
        if oldest_first:
            wanted.reverse()
        return _record_pieces("memory", [self.keep.render(r) for r in wanted[:most]], None)

    def record(self, identifier: str, uid_only: int | None, *, history: bool) -> bytes | None:
        """See :class:`monitor.api.routes.Source`."""
        kind, number = identifier[9:10], first_id(identifier[9:])
        cookie = 0
        if identifier.startswith(f"{self._boot}-") and kind not in ("t", "n"):
            try:
                cookie = int(number, 16)
            except ValueError:
                return None
        return self._by_id(identifier, cookie, uid_only, history)

    def _by_id(
        self, identifier: str, cookie: int, uid_only: int | None, history: bool
    ) -> bytes | None:
        if history:
            body = self._from_history(identifier, uid_only)
            # there is none of what is older than conmond, unless its socket was connected again
            return body or (self._older_by_cookie(cookie, uid_only) if cookie else None)
        sk = self._open.find(cookie) if cookie else None
        with self.lock:
            self.catch_up()
            record = self._open.at(sk, cookie) if sk is not None else None
            if record is None or record.id != identifier:
                record = self.keep.recent.get(identifier)
        return self._shown(record, uid_only) if record is not None else None

    def take(self, cookie: int, uid_only: int | None, *, history: bool) -> bytes | None:
        """See :class:`monitor.api.routes.Source`."""
        if not 0 < cookie < 1 << 64:
            return None
        identifier = f"{self._boot}-{cookie:x}"
        if history:
            older = self._older_by_cookie(cookie, uid_only)
            return older or self._from_history(identifier, uid_only, newest=True)
        sk = self._open.find(cookie)
        with self.lock:
            self.catch_up()
            # A socket may be connected again after a failure: what is open goes before what ended.
            record = self._open.at(sk, cookie) if sk is not None else None
            record = record or self.keep.recent.of_socket(identifier)
        return self._shown(record, uid_only) if record is not None else None

    def _older_by_cookie(self, cookie: int, uid_only: int | None) -> bytes | None:
        self.freshen()
        with self.lock:
            record = self._open.older_by_cookie(cookie)
        return self._shown(record, uid_only) if record is not None else None

    def _shown(self, record: Record, uid_only: int | None) -> bytes | None:
        if uid_only is not None and record.uid != uid_only:
            return None
        return self.keep.render(record)

    def _from_history(
        self, identifier: str, uid_only: int | None, *, newest: bool = False
    ) -> bytes | None:
        history = self.keep.history
        return history.get(identifier, uid_only, newest=newest) if history is not None else None

    # -- the daemon itself --------------------------------------------------------------------

    def doctor(self, *, sees_all: bool) -> dict[str, Any]:
        """See :class:`monitor.api.routes.Source`."""
        with self.lock:
            self.catch_up()
            lost = self._lost()
            ended_unseen = self.leftovers.total() if self.leftovers is not None else 0
            hooks = [
                {"name": name, "attached": why is None, "kind": kind, "why": why}
                for name, kind, why in self.kernel.hooks()
            ]
            maps = self.kernel.map_fill()
            opened = self._open_count(maps) if sees_all else None
            libraries = self._libraries() if sees_all else None
            stats = self.keep.stats
            sizes = {
                "processes": stats.process_count,
                "max_processes": stats.max_processes,
                "hosts": stats.host_count,
                "max_hosts": stats.max_hosts,
                "folded": stats.folded,
            }
            records = self.keep.records
            unseen = self._unseen(sees_all=sees_all)
        now_ns = self.now_ns()
        cpu_s = self._cpu_s()
        age_s = max(1e-9, (now_ns - self.started_ns) / 1e9)
        resident, pss = self._memory()
        return {
            "v": 1,
            "version": monitor.__version__,
            "kernel": os.uname().release,
            "started": _text(self.started_ns),
            "ready": True,
            "pid": os.getpid(),
            "privileged": sees_all,
            "hooks": hooks,
            "libraries": libraries,
            "lookups_seen": self.prober.report.lookups_seen,
            "lockdown": _lockdown(),
            "probe_counts": dict(self.prober.report.counts) if sees_all else None,
            "maps": [
                {"name": name, "entries": entries if sees_all else None, "max_entries": most}
                for name, (entries, most) in maps.items()
            ],
            "lost": lost if sees_all else None,
            "lost_total": sum(lost.values()) if sees_all else None,
            "faults": (self.faults.count if self.faults is not None else 0) if sees_all else None,
            "ended_unseen": ended_unseen if sees_all else None,
            "records": records if sees_all else None,
            "open": opened,
            "history": self._history_status(sees_all),
            "stats": sizes if sees_all else None,
            "clients": self._clients() if sees_all else None,
            "cost": {
                "cpu_seconds": round(cpu_s, 3),
                "cpu_percent": round(100 * cpu_s / age_s, 3),
                "pss_bytes": pss,
                "rss_bytes": resident,
            },
            "unseen": unseen,
        }

    # What the kernel side lost, and the correlator.
    def _lost(self) -> dict[str, int]:
        return {**self.kernel.lost(), "dns_full": self.core.lookups_dropped}

    # Which libraries others use, and why their sockets cannot be listed, is theirs to know.
    def _unseen(self, *, sees_all: bool) -> list[str]:
        found = [*self.unseen, *(self.prober.report.unprobed if sees_all else ())]
        if self.kernel.live_failed:
            found.append(self.kernel.live_failed)
        if self.older is not None and self.older.failed:
            found.append(self.older.failed if sees_all else _OLDER_UNSEEN)
        return found

    def metrics(self) -> bytes:
        """See :class:`monitor.api.routes.Source`."""
        from monitor.api import metrics

        with self.lock:
            self.catch_up()
            return metrics.render(self.keep.meter, self._gauges())

    def deep(self, pid: int, asker: Asker, seconds: float, most_percent: float) -> Feed:
        """See :class:`monitor.api.routes.Source`."""
        from monitor.deep import Deep

        with self.lock:  # two may ask at once, and one alone is ticked and ended
            if self.deep_sessions is None:
                self.deep_sessions = Deep(self.kernel, self.core, self.clock, self.lock)
            sessions = self.deep_sessions
        return sessions.begin(pid, asker, seconds, most_percent)

    # Older ones as they were listed last: this is asked for again and again, and by a machine.
    def _open_count(self, maps: Mapping[str, tuple[int, int]]) -> int:
        count = maps["conn_by_sk"][0]
        older = set(self.older.cookies) if self.older is not None else None
        if older:
            for batch in self.kernel.connection_batches():
                # an old socket that was connected once more is in the map, too
                older.difference_update(cookie for _, cookie, _, _ in peek_keys(batch))
            count += len(older)
        return count

    # Of the daemon and its prober.
    def _cpu_s(self) -> float:
        return time.process_time() + self.prober.report.cpu_ns / 1e9

    def _memory(self) -> tuple[int, int | None]:
        resident, pss = _memory("self")
        if self.prober.pid is not None:
            with suppress(OSError):
                more, more_pss = _memory(str(self.prober.pid))
                resident += more
                pss = pss + more_pss if pss is not None and more_pss is not None else None
        return resident, pss

    def _gauges(self) -> Gauges:
        from monitor.api.metrics import Gauges

        maps = self.kernel.map_fill()
        history = self.keep.history.status() if self.keep.history is not None else None
        resident, pss = self._memory()
        clients = self._clients()
        return Gauges(
            version=monitor.__version__,
            kernel=os.uname().release,
            open=self._open_count(maps),
            lost=self._lost(),
            maps=maps,
            history_records=history.records if history is not None else None,
            history_bytes=history.bytes if history is not None else None,
            history_dropped=history.dropped if history is not None else 0,
            started_s=self.started_ns / 1e9,
            cpu_s=self._cpu_s(),
            resident_bytes=resident,
            pss_bytes=pss,
            clients=clients["open"],
            clients_refused=clients["refused"],
            clients_cut_off=clients["cut_off"],
        )

    def _libraries(self) -> list[dict[str, Any]]:
        found = []
        for status in self.prober.report.targets:
            kinds = [_LIBRARY_KINDS[name] for name in status.attached]
            found.append(
                {
                    "path": status.path,
                    "kind": kinds[0] if kinds else None,
                    "inode": f"{os.major(status.dev)}:{os.minor(status.dev)}:{status.inode}",
                    "functions": list(status.attached),
                    "users": status.users,
                    "probed": bool(status.attached),
                    "why": status.error,
                }
            )
        return found

    def _history_status(self, sees_all: bool) -> dict[str, Any] | None:
        history = self.keep.history
        if history is None:
            return None
        status = history.status()
        return {
            "enabled": status.enabled,
            "path": str(status.path) if sees_all else None,
            "records": status.records if sees_all else None,
            "bytes": status.bytes if sees_all else None,
            "oldest": _text(status.oldest_ns) if sees_all and status.oldest_ns else None,
            "dropped": status.dropped if sees_all else None,
            "error": status.error if sees_all else None,
        }

    def _clients(self) -> dict[str, int]:
        server = self.server
        if server is None:
            return {"open": 0, "max": 0, "refused": 0, "cut_off": 0}
        return {
            "open": server.open_clients,
            "max": server.limits.max_clients,
            "refused": server.refused,
            "cut_off": server.cut_off,
        }


def _open_row(record: Record, tcp_state: str | None, older: bool) -> bytes:
    row = record.to_dict()
    row["tcp_state"] = tcp_state
    row["before_daemon"] = older
    return to_json(row).rstrip()


def _record_pieces(
    source: str, bodies: list[bytes], following: str | None, damaged: int = 0
) -> Iterator[bytes]:
    yield b'{"v":1,"source":"%s","records":[' % source.encode()
    for start in range(0, len(bodies), _ROWS_AT_A_TIME):
        chunk = b",".join(body.rstrip() for body in bodies[start : start + _ROWS_AT_A_TIME])
        yield (b"," if start else b"") + chunk
    yield b'],"damaged":%d,"next":' % damaged + to_json(following).rstrip() + b"}\n"


def _text(wall_ns: int) -> str:
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"


def _memory(pid: str) -> tuple[int, int | None]:
    """Resident and proportional memory of a process, bytes."""
    resident = pss = None
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("Rss:"):
                    resident = int(line.split()[1]) * 1024
                elif line.startswith("Pss:"):
                    pss = int(line.split()[1]) * 1024
    except OSError:
        pss = None
    if resident is None:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, pss


def _lockdown() -> str | None:
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii") as file:
            text = file.read()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None
