"""The connections that are open now: those whose begin was seen, and those older than the daemon.

Every method but :meth:`OpenNow.find` is to be called with the daemon's lock held.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from conmon.names import plain_address
from conmon.record import Record, Tcp
from monitor.api.parameters import Filters
from monitor.correlate import Clock, Correlator
from monitor.decode import ConnPeek, Phase, decode_conn, peek_conns, peek_keys
from monitor.kernel.kernel import Kernel
from monitor.stats import OpenConns

if TYPE_CHECKING:
    from monitor.kernel.identities import ProcIdentities
    from monitor.kernel.live import LiveFigures
    from monitor.kernel.older import Older, OlderConn

__all__ = ["OpenNow", "OpenRow"]

_SORTED_AT_ONCE: Final = 1024
_NOTED_STATES: Final = (1, 2)  # ESTABLISHED, until either side closes, and SYN_SENT
# Phase 0 is being made at this moment; later ones have ended.
OPEN: Final = (Phase.CALLING, Phase.SYN_SENT, Phase.ESTABLISHED)
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Numbers of include/net/tcp_states.h, in the words that ss and sock_diag's users know.
_TCP_STATES: Final = (
    None, "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
    "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
)  # fmt: skip


class OpenRow(NamedTuple):
    """One connection, not yet put in words."""

    connect_ns: int
    """0: before the daemon."""
    sk: int
    cookie: int
    older: OlderConn | None = None


class _First:
    """The oldest or newest of many, of whom not all are kept.

    Args:
        most: how many; None is all.
    """

    def __init__(self, most: int | None, *, newest: bool) -> None:
        self.total = 0
        self._most = most
        self._newest = newest
        self._kept: list[tuple[int, int, int]] = []

    def add(self, some: list[tuple[int, int, int]]) -> None:
        """Take in some, whose first member is a time."""
        self.total += len(some)
        self._kept += some
        # sorting ints costs less than a heap does, where it is not done for each
        if self._most is not None and len(self._kept) > 2 * self._most + _SORTED_AT_ONCE:
            self._kept = self.rows()

    def rows(self) -> list[tuple[int, int, int]]:
        """Return them in order."""
        self._kept.sort(reverse=self._newest)
        return self._kept[: self._most]


@dataclass(slots=True)
class OpenNow:
    """What is open, from the kernel side's map and from sock_diag.

    Args:
        boot_offset_ns: from CLOCK_BOOTTIME to nanoseconds since 1970.
        older: lists what is older; None where nobody asks.
    """

    kernel: Kernel
    core: Correlator
    identities: ProcIdentities
    clock: Clock
    boot_offset_ns: int
    older: Older | None

    def rows(
        self, filters: Filters, most: int | None, *, newest: bool = False
    ) -> tuple[list[OpenRow], int]:
        """Return those of the wanted processes and users, the oldest first, and how many.

        Args:
            filters: what else they decide is left to the caller, and with it ``most``.
            most: how many rows are wanted.
            newest: the newest first instead.
        """
        older = {conn.cookie: conn for conn in self._older()}
        cut = most if not filters.need_record else None
        first = _First(cut, newest=newest)
        wanted = filters.match_process
        for batch in self.kernel.connection_batches():
            if filters.any_process:
                keys = peek_keys(batch)
                first.add([(at, sk, cookie) for sk, cookie, at, phase in keys if phase in OPEN])
            else:
                first.add(
                    [
                        (fields[10], fields[8], fields[9])
                        for fields in peek_conns(batch)
                        if fields[12] in OPEN and wanted(fields[4], fields[6])
                    ]
                )
            if older:
                for _, cookie, _, _ in peek_keys(batch):
                    older.pop(cookie, None)  # an old socket that was connected once more
        rows = [OpenRow(*row) for row in first.rows()]
        before = [
            OpenRow(0, 0, conn.cookie, conn)
            for conn in older.values()
            if filters.match_process(conn.pid, conn.uid)
        ]
        rows = rows + before if newest else before + rows
        return rows[:cut], first.total + len(before)

    def live(self, rows: list[OpenRow]) -> dict[int, LiveFigures]:
        """Return what their sockets say now, for :meth:`describe`."""
        return self.kernel.live_figures([(row.sk, row.cookie) for row in rows if row.older is None])

    def describe(
        self, row: OpenRow, live: LiveFigures | None
    ) -> tuple[Record, str | None, bool] | None:
        """Return the record, the kernel's word for its state, and whether it is older.

        None: it has ended since it was listed.
        """
        if row.older is not None:
            return self._older_record(row.older), _tcp_state(row.older.tcp_state), True
        data = self.kernel.connection(row.sk)
        if data is None:
            return None
        event = decode_conn(data)
        if event.connect_ns != row.connect_ns or event.phase not in OPEN:
            return None  # its memory is another's by now, or it has ended
        if live is None:
            # of later states not all are noted, and what does not answer may be gone
            state = event.tcp_state if event.tcp_state in _NOTED_STATES else 0
            return self.core.describe(event, None), _tcp_state(state), False
        return self.core.describe(event, _tcp_of(live)), _tcp_state(live.tcp_state), False

    def find(self, cookie: int) -> int | None:
        """Return by what an open socket is known whose begin was seen; None where there is none.

        All that are open are looked through, so this alone is done without the daemon's lock.
        """
        return self.kernel.find_connection(cookie)

    def at(self, sk: int, cookie: int) -> Record | None:
        """Return the record of a socket that was found; None: it has ended meanwhile."""
        data = self.kernel.connection(sk)
        if data is None:
            return None
        event = decode_conn(data)
        if event.cookie != cookie or event.phase not in OPEN:
            return None
        live = self.kernel.live_figures([(sk, cookie)]).get(sk)
        return self.core.describe(event, _tcp_of(live) if live is not None else None)

    def older_by_cookie(self, cookie: int) -> Record | None:
        """Likewise, of one that is older than the daemon."""
        for conn in self._older():
            if conn.cookie == cookie:
                return self._older_record(conn)
        return None

    def groups(self) -> list[OpenConns]:
        """Return all, summed up by process and host."""
        groups: dict[object, OpenConns] = {}
        starts: dict[int, int] = {}
        offset_ns = self.clock.offset_ns
        open_host = self.core.open_host
        older = {conn.cookie: conn for conn in self._older()}
        for batch in self.kernel.connection_batches():
            seen = [fields for fields in peek_conns(batch) if fields[12] in OPEN]
            live = self.kernel.live_bytes([(fields[8], fields[9]) for fields in seen])
            live += [(0, 0)] * (len(seen) - len(live))
            for fields, (sent, received) in zip(seen, live, strict=True):
                start_ns, cgroup_id, _, _, pid, _, uid, comm, sk, cookie, connect_ns, _, _ = fields
                if older:
                    older.pop(cookie, None)
                host = open_host((sk, connect_ns))
                key = (pid, start_ns, comm, cgroup_id, uid, host)
                group = groups.get(key)
                if group is None:
                    starts[pid] = start_ns
                    group = groups[key] = self._group(ConnPeek._make(fields), host)
                group.began_ns.append(connect_ns + offset_ns)
                group.sent += sent
                group.received += received
        for conn in older.values():
            older_key = (conn.pid, conn.start_ticks, conn.comm, conn.cgroup_id, conn.uid)
            group = groups.get(older_key)
            if group is None:
                group = groups[older_key] = self._older_group(conn, starts)
            group.began_ns.append(0)
            group.sent += conn.bytes_sent or 0
            group.received += conn.bytes_received or 0
        return list(groups.values())

    def _group(self, peek: ConnPeek, host: str | None) -> OpenConns:
        who = self.identities.identify(
            pid=peek.pid,
            start_ns=peek.start_ns,
            comm=peek.comm,
            exe_ino=peek.exe_ino,
            exe_dev=peek.exe_dev,
            cgroup_id=peek.cgroup_id,
        )
        return OpenConns(
            pid=peek.pid,
            process_start_ns=peek.start_ns + self.boot_offset_ns,
            comm=who.comm,
            exe=who.exe,
            unit=who.unit,
            container=who.container,
            uid=peek.uid,
            host=host,
        )

    # -- older than the daemon ----------------------------------------------------------------

    def _older(self) -> Collection[OlderConn]:
        return self.older.listed() if self.older is not None else ()

    def _older_group(self, conn: OlderConn, starts: dict[int, int]) -> OpenConns:
        unit, container = self.identities.unit_of(conn.cgroup_id, conn.pid)
        start_ns = None
        if conn.pid is not None and conn.start_ticks is not None:
            # /proc tells it in hundredths of a second, the kernel side exactly
            start_ns = starts.get(conn.pid, 0)
            if start_ns // _TICK_NS != conn.start_ticks:
                start_ns = conn.start_ticks * _TICK_NS
            start_ns += self.boot_offset_ns
        return OpenConns(
            pid=conn.pid,
            process_start_ns=start_ns,
            comm=conn.comm,
            exe=conn.exe,
            unit=unit,
            container=container,
            uid=conn.uid,
            host=None,
        )

    def _older_record(self, conn: OlderConn) -> Record:
        unit, container = self.identities.unit_of(conn.cgroup_id, conn.pid)
        raddr = plain_address(conn.raddr)
        return Record(
            id=f"{self.core.facts.boot}-{conn.cookie:x}",
            pid=conn.pid,
            comm=conn.comm,
            exe=conn.exe,
            uid=conn.uid,
            unit=unit,
            container=container,
            netns=conn.netns,
            laddr=plain_address(conn.laddr),
            lport=conn.lport,
            raddr=raddr,
            rport=conn.rport,
            family="ipv6" if ":" in raddr else "ipv4",
            peer=raddr,
            tcp=Tcp(
                conn.rtt_us, conn.rttvar_us, conn.retransmits, conn.bytes_sent, conn.bytes_received
            ),
        )


def _tcp_of(live: LiveFigures) -> Tcp:
    return Tcp(
        live.rtt_us or None,
        live.rttvar_us if live.rtt_us else None,
        live.retransmits,
        live.bytes_sent,
        live.bytes_received,
    )


def _tcp_state(number: int) -> str | None:
    return _TCP_STATES[number] if number < len(_TCP_STATES) else None
