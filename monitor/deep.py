"""`deep`: plaintext of one process's TLS, read for a bounded time and told as it comes.

A session belongs to the request that asked for it: it ends when its time is up, when the process
or the daemon ends, when it costs the process more than was allowed, when the process is no longer
its reader's to look into, or when nobody reads its answer any more. What it tells are lines of
JSON: ``begin``, a ``turn`` for each request and answer, ``cost`` once a second, ``end``.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass, field
from typing import Any, Final

from monitor.api.access import Asker
from monitor.api.answer import Feed, to_json
from monitor.correlate import Clock, Correlator
from monitor.correlate.plain import Turn
from monitor.decode import ConnEvent, PlainEvent, decode_conn
from monitor.errors import MonitorError
from monitor.kernel.deep import DeepProbes, DeepTarget
from monitor.kernel.kernel import Kernel

__all__ = ["Deep", "DeepBusy", "DeepForbidden", "DeepGone"]

MAX_SESSIONS: Final = 4  # one of them is root's
MAX_OF_USER: Final = 2
_TICK_NS: Final = 1_000_000_000
_MOST_LINES: Final = 20_000  # waiting for a reader; beyond, turns are counted and not told


_UNKNOWN: Final = {"id": None, "host": None, "raddr": None, "rport": None}
_MOST_HOSTS: Final = 4096

_Connection = tuple[int, int]  # sk and connect_ns


class DeepForbidden(MonitorError):
    """The process is another user's."""


class DeepGone(MonitorError):
    """There is no such process."""


class DeepBusy(MonitorError):
    """It is read already, or too many are."""


@dataclass(slots=True)
class _Session:
    target: DeepTarget
    feed: Feed
    pidfd: int
    uid: int | None
    """Of who reads it."""
    started_ns: int
    until_ns: int
    most_percent: float
    call_ns: float
    process_cpu_s: float
    turns: int = 0
    untold: int = 0
    ticked_ns: int = 0
    ticked_calls: int = 0
    hosts: dict[_Connection, dict[str, Any]] = field(default_factory=dict)
    gone: list[Turn] = field(default_factory=list)
    """Turns of connections that have left the map, whose events are still to come."""


class Deep:
    """All sessions. But for :meth:`begin`, every method is called with the daemon's lock held.

    Args:
        kernel, core, clock: the daemon's.
        lock: as a context, around what touches them.
    """

    def __init__(self, kernel: Kernel, core: Correlator, clock: Clock, lock: Any) -> None:
        self._kernel, self._core, self._clock = kernel, core, clock
        self._lock = lock
        self._probes = DeepProbes(kernel)
        self._sessions: dict[int, _Session] = {}
        self._beginning: dict[int, int | None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    # -- from the query socket's finder -------------------------------------------------------

    def begin(self, pid: int, asker: Asker, seconds: float, most_percent: float) -> Feed:
        """Start to read a process.

        Args:
            pid: in the daemon's pid namespace.
            asker: root, or the process's own user, unless it keeps others from looking into it
                (prctl PR_SET_DUMPABLE; programs that run with more rights than their user).
            seconds: until it ends by itself.
            most_percent: of one CPU, the most that it may cost the process in any second.
        Raises:
            DeepForbidden, DeepGone, DeepBusy: as they say.
            MonitorError: nothing in it can be read, or the kernel refuses; one sentence.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError) as exc:
            raise DeepGone(f"there is no process {pid}") from exc
        try:
            _check(pid, pidfd, asker.uid)
            return self._begin(pid, pidfd, asker.uid, seconds, most_percent)
        except BaseException:
            os.close(pidfd)
            raise

    def _begin(
        self, pid: int, pidfd: int, uid: int | None, seconds: float, most_percent: float
    ) -> Feed:
        with self._lock:
            self._make_room(pid, uid)
            self._beginning[pid] = uid
        target = None
        try:
            call_ns = self._probes.call_ns()
            target = self._probes.open(pid)
            session = self._session(target, pidfd, uid, seconds, most_percent, call_ns)
            with self._lock:
                # It may have become another program meanwhile; if it does after this, the ring says
                # so, which is read with the lock held.
                _check(pid, pidfd, uid)
                del self._beginning[pid]
                self._sessions[pid] = session
        except BaseException:
            with self._lock:
                if target is not None:
                    self._probes.close(target)
                self._beginning.pop(pid, None)
                self._core.plain.drop(pid)
            raise
        return session.feed

    def _session(
        self,
        target: DeepTarget,
        pidfd: int,
        uid: int | None,
        seconds: float,
        most_percent: float,
        call_ns: float,
    ) -> _Session:
        now_ns = time.monotonic_ns()
        session = _Session(
            target=target,
            feed=Feed(),
            pidfd=pidfd,
            uid=uid,
            started_ns=now_ns,
            until_ns=now_ns + int(seconds * 1e9),
            most_percent=most_percent,
            call_ns=call_ns,
            process_cpu_s=_cpu_seconds(target.pid),
            ticked_ns=now_ns,
        )
        self._tell(
            session,
            "begin",
            v=1,
            pid=target.pid,
            comm=_comm(target.pid),
            seconds=seconds,
            call_ns=round(call_ns),
            libraries=[
                {"path": path, "functions": list(functions)}
                for path, functions in target.libraries.items()
            ],
        )
        return session

    def _make_room(self, pid: int, uid: int | None) -> None:
        if pid in self._sessions or pid in self._beginning:
            raise DeepBusy(f"process {pid} is being read already")
        readers = [session.uid for session in self._sessions.values()]
        readers += self._beginning.values()
        if uid != 0 and readers.count(uid) >= MAX_OF_USER:
            raise DeepBusy(f"{MAX_OF_USER} processes are being read for this user already")
        most = MAX_SESSIONS if uid == 0 else MAX_SESSIONS - 1
        if len(readers) >= most:
            raise DeepBusy(f"{most} processes are being read already")

    # -- from the daemon's loop ---------------------------------------------------------------

    def plain(self, event: PlainEvent) -> None:
        """Take in what a call moved."""
        if event.pid not in self._sessions and event.pid not in self._beginning:
            return  # it has ended, or may no longer be read
        self._turns(event.pid, self._core.plain.add(event))

    def executed(self, pid: int) -> None:
        """A process runs another program: what follows in the ring is that one's."""
        session = self._sessions.get(pid)
        if session is not None and (why := _over(session)) is not None:
            self._end(session, why)

    def ended(self, conn: ConnEvent) -> None:
        """A connection ends: its last turn is complete. Before the correlator takes it in."""
        session = self._sessions.get(conn.pid)
        if session is None:
            return
        connection = (conn.sk, conn.connect_ns)
        where = session.hosts.pop(connection, None) or self._describe(conn._replace(end_ns=0))
        waiting = [turn for turn in session.gone if turn.connection == connection]
        session.gone = [turn for turn in session.gone if turn.connection != connection]
        for turn in (*waiting, *self._core.plain.flush(conn)):
            self._tell_turn(session, turn, where)

    def tick(self, now_ns: int) -> None:
        """End what is over, once a second say what it costs."""
        for session in list(self._sessions.values()):
            if session.feed.closed:
                self._end(session, "reader")
            elif (why := _over(session)) is not None:
                self._end(session, why)
            elif now_ns >= session.until_ns:
                self._end(session, "time")
            elif now_ns - session.ticked_ns >= _TICK_NS:
                self._tell_gone(session)
                self._cost(session, now_ns)

    def close(self) -> None:
        """End everything."""
        for session in list(self._sessions.values()):
            self._end(session, "daemon")

    # -- parts --------------------------------------------------------------------------------

    def _turns(self, pid: int, turns: list[Turn]) -> None:
        session = self._sessions.get(pid)
        if session is None:
            return
        for turn in turns:
            where = self._where(session, turn.connection)
            if where is None:
                session.gone.append(turn)
            else:
                self._tell_turn(session, turn, where)

    # The record's own words for the connection, once for each; None where it has just ended.
    def _where(self, session: _Session, connection: _Connection | None) -> dict[str, Any] | None:
        if connection is None:
            return _UNKNOWN
        known = session.hosts.get(connection)
        if known is None:
            data = self._kernel.connection(connection[0])
            conn = decode_conn(memoryview(data)) if data is not None else None
            if conn is None or conn.connect_ns != connection[1]:
                return None
            known = self._describe(conn)
            if len(session.hosts) < _MOST_HOSTS:
                session.hosts[connection] = known
        return known

    def _describe(self, conn: ConnEvent) -> dict[str, Any]:
        record = self._core.describe(conn, None)
        return {name: getattr(record, name) for name in _UNKNOWN}

    def _tell_gone(self, session: _Session) -> None:
        gone, session.gone = session.gone, []
        for turn in gone:
            self._tell_turn(session, turn, _UNKNOWN)

    def _tell_turn(self, session: _Session, turn: Turn, where: dict[str, Any]) -> None:
        session.turns += 1
        if session.feed.waiting >= _MOST_LINES:
            session.untold += 1
            return
        at = self._clock.text(turn.at_ns)
        self._tell(session, "turn", at=at, us=turn.us, prot_specific=turn.prot_specific, **where)

    def _cost(self, session: _Session, now_ns: int) -> None:
        calls = self._probes.calls(session.target)
        self._probes.refresh(session.target)
        if (why := _over(session)) is not None:  # and its pid, probed anew, another's
            self._end(session, why)
            return
        fresh = calls - session.ticked_calls
        percent = 100 * fresh * session.call_ns / (now_ns - session.ticked_ns)
        session.ticked_ns, session.ticked_calls = now_ns, calls
        self._tell(session, "cost", **self._cost_of(session, calls, now_ns))
        if percent > session.most_percent:
            self._end(session, "cost")

    def _cost_of(self, session: _Session, calls: int, now_ns: int) -> dict[str, Any]:
        cost_ns = calls * session.call_ns
        elapsed_ns = max(1, now_ns - session.started_ns)
        cpu_s = _cpu_seconds(session.target.pid) - session.process_cpu_s
        return {
            "calls": calls,
            "call_ns": round(session.call_ns),
            "cost_us": round(cost_ns / 1000),
            "percent_of_cpu": round(100 * cost_ns / elapsed_ns, 3),
            "process_cpu_us": round(cpu_s * 1e6) if cpu_s >= 0 else None,
            "seconds": round(elapsed_ns / 1e9, 3),
        }

    def _end(self, session: _Session, why: str) -> None:
        pid = session.target.pid
        self._tell_gone(session)
        now_ns = time.monotonic_ns()
        cost = self._cost_of(session, self._probes.calls(session.target), now_ns)
        self._probes.close(session.target)
        self._sessions.pop(pid, None)
        self._core.plain.drop(pid)
        os.close(session.pidfd)
        if why in ("process", "user"):
            cost["process_cpu_us"] = None
        self._tell(session, "end", why=why, turns=session.turns, untold=session.untold, **cost)
        session.feed.end()

    def _tell(self, session: _Session, kind: str, **what: Any) -> None:
        session.feed.put(to_json({"kind": kind, **what}))


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


# What is read of /proc is the process's own, since no other gets its pid before it has ended.
def _permitted(pid: int, pidfd: int, uid: int | None) -> bool:
    permitted = uid == 0 or _whose(pid) == {uid}
    if _has_ended(pidfd):
        raise DeepGone(f"there is no process {pid}")
    return permitted


def _check(pid: int, pidfd: int, uid: int | None) -> None:
    if not _permitted(pid, pidfd, uid):
        raise DeepForbidden("only root and its own user may read what a process encrypts")


def _over(session: _Session) -> str | None:
    try:
        permitted = _permitted(session.target.pid, session.pidfd, session.uid)
    except DeepGone:
        return "process"
    return None if permitted else "user"


# Its uids, and who owns its files in /proc: not its user where it is not to be looked into, since
# it had or has more rights than they (the kernel's "dumpable").
def _whose(pid: int) -> set[int]:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            owner = os.fstat(lines.fileno()).st_uid
            for line in lines:
                if line.startswith("Uid:"):
                    return {owner, *(int(uid) for uid in line.split()[1:])}
    except OSError as exc:
        raise DeepGone(f"there is no process {pid}") from exc
    return set()


def _comm(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).rstrip(b"\n").decode("utf-8", "surrogateescape")
    except OSError:
        return None


# User and system time of all its threads.
def _cpu_seconds(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return -1.0
