"""The daemon's loop: reads the kernel side, feeds the correlator, hands records out.

One thread and one epoll; the query socket's threads look in between, under one lock that the
loop holds whenever it is not waiting. The ring is read on a timer, since waking for every event
would cost more than the event; the kernel side wakes the loop itself when a burst fills the ring.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from conmon.record import Record
from monitor.api.access import group_id
from monitor.api.listen import PathInUse
from monitor.api.routes import Routes
from monitor.api.server import Limits, Server
from monitor.cli.output import json_line
from monitor.cli.say import say
from monitor.correlate import Clock, Correlator, Facts, Lost
from monitor.correlate.text import address_key
from monitor.decode import (
    CONN_BYTES,
    ConnEvent,
    ConnFlag,
    DnsEvent,
    Event,
    ExecEvent,
    LookupEvent,
    Phase,
    PlainEvent,
    conn_size,
    decode,
    decode_conn,
    peek_conns,
)
from monitor.faults import Faults
from monitor.history import History
from monitor.keep import Keep
from monitor.kernel.identities import ProcIdentities
from monitor.kernel.kernel import Kernel
from monitor.kernel.older import Older
from monitor.kernel.prober import Prober
from monitor.kernel.routes import Way, connect_errno
from monitor.leftovers import Leftovers
from monitor.loss_watch import LossWatch
from monitor.options import Options, RecordSink, Serve
from monitor.service import Service
from monitor.stats import Stats
from monitor.view import View

__all__ = ["Daemon", "run"]

_POLL_BUSY_S: Final = 0.05
_POLL_IDLE_S: Final = 0.2
_IDLE_AFTER: Final = 10  # readings that found nothing
_SNAPSHOT_NS: Final = 1_000_000_000  # where something asks for one
_FULL_SNAPSHOT_NS: Final = 10_000_000_000  # in any case
_COUNTERS_NS: Final = 1_000_000_000
_CLOCK_NS: Final = 10_000_000_000
_SWEEP_NS: Final = 1_000_000_000
_NICE: Final = -5
# connect() noted but no SYN for so long: it failed, and its socket was kept.
_CALLING_NS: Final = 1_000_000_000
# Processes whose start is remembered for their records, which may come a moment after their end.
_MAX_STARTS: Final = 16_384
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h


def run(options: Options, out: RecordSink) -> int:
    """Watch until a signal, the time limit, or until nobody can read any more.

    Args:
        options: the settings.
        out: where records go.
    Returns:
        The exit code.
    Raises:
        MonitorError: it cannot start; one sentence.
    """
    _raise_descriptor_limit()
    _keep_memory_low()
    with _signals() as stop:
        kernel = Kernel.open({"INBOUND": 1} if options.inbound else None)
        try:
            daemon = Daemon(options, out, kernel, stop)
            try:
                return daemon.loop()
            finally:
                daemon.close()
        finally:
            kernel.close()


# Every probed library takes some descriptors, and many containers have many libraries.
def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Of this thread alone, which must read the ring before it is full, also where every processor is
# busy: it does no more work for that, only sooner.
def _raise_priority() -> None:
    with suppress(OSError):  # systemd gives it with Nice=
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


# glibc keeps an arena for each thread and lets what it keeps grow with the largest piece ever
# asked for; one arena, and large pieces mapped by themselves, save 3 of 50 MB under load.
def _keep_memory_low() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 64 << 10)):
            mallopt(parameter, value)


@dataclass(slots=True)
class _Stop:
    """Set by SIGTERM and SIGINT; ``fd`` becomes readable then."""

    fd: int
    signal: int | None = None


@contextmanager
def _signals() -> Iterator[_Stop]:
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    stop = _Stop(reader)

    def note(number: int, _: object) -> None:
        stop.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


@dataclass(slots=True)
class _Due:
    """When the next of each periodic task is due, CLOCK_MONOTONIC."""

    snapshot_ns: int = 0
    full_snapshot_ns: int = 0
    counters_ns: int = 0
    clock_ns: int = 0
    sweep_ns: int = 0


@dataclass(slots=True)
class Daemon:
    """What runs between ready and the end."""

    options: Options
    out: RecordSink
    kernel: Kernel
    stop: _Stop
    records: int = 0
    faults: Faults = field(default_factory=lambda: Faults(say))
    _due: _Due = field(default_factory=_Due)
    _identities: ProcIdentities = field(init=False)
    _clock: Clock = field(default_factory=Clock)
    _core: Correlator = field(init=False)
    _prober: Prober = field(init=False)
    _opened: ExitStack = field(init=False)
    _keep: Keep = field(init=False)
    _view: View = field(init=False)
    _leftovers: Leftovers = field(init=False)
    _losses: LossWatch = field(init=False)
    _older: Older | None = None
    _server: Server | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _service: Service = field(default_factory=lambda: Service(os.environ))
    _starts: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        with ExitStack() as opened:  # closed again where the start fails half-way
            self._start(opened)
            self._opened = opened.pop_all()

    def _start(self, opened: ExitStack) -> None:
        started_ns = time.time_ns()
        self._identities = ProcIdentities(self.kernel.cgroup, cmdlines=self.options.cmdlines)
        self._leftovers = Leftovers(self.kernel)
        self._losses = LossWatch(self.kernel)
        self._prober = Prober(
            self.kernel.probe_programs(),
            self.kernel.loaded.failed,
            self.options.probe,
            restarted=self.kernel.forget_calls,
            say=say,
        )
        opened.callback(self._prober.close)
        report = self._prober.start()
        unseen = [*self.kernel.attached.unseen(), *report.missing]
        for sentence in (*unseen, *report.unprobed):
            say(sentence)
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read(8)
        self._set_clock()
        self._core = Correlator(
            facts=Facts(
                boot=boot,
                lookups_seen=report.lookups_seen,
                hostname=os.fsencode(os.uname().nodename),
            ),
            identities=self._identities,
            clock=self._clock,
            live=self.options.live,
        )
        limits = self.options.stats
        self._keep = Keep(
            Stats(
                started_ns=started_ns,
                max_processes=limits.max_processes,
                max_hosts=limits.max_hosts,
            ),
            self._open_history(),
            json_line,
        )
        if self._keep.history is not None:
            opened.callback(self._keep.history.close)
        if self.options.serve is not None:
            self._older = Older(self._lock, self._cookies)
        self._view = View(
            lock=self._lock,
            kernel=self.kernel,
            core=self._core,
            identities=self._identities,
            prober=self._prober,
            clock=self._clock,
            keep=self._keep,
            started_ns=started_ns,
            catch_up=self._catch_up,
            unseen=unseen,
            older=self._older,
            faults=self.faults,
            leftovers=self._leftovers,
        )
        if self.options.serve is not None:
            self._serve(self.options.serve, opened)
        opened.callback(self._end_deep)

    def _open_history(self) -> History | None:
        wanted = self.options.history
        if wanted is None:
            return None
        return History.open(
            os.path.join(wanted.folder, "history.db"),
            max_age_s=wanted.max_age_s,
            max_bytes=wanted.max_bytes,
            say=say,
        )

    def _serve(self, serve: Serve, opened: ExitStack) -> None:
        group = group_id(serve.group)
        try:
            self._server = Server(
                serve.path,
                Routes(self._view),
                json_line,
                group=group,
                limits=Limits(max_clients=serve.max_clients, rate=serve.rate),
                say=say,
                metrics_listen=serve.metrics_listen,
            )
        except PathInUse as exc:
            if serve.insist:
                raise
            say(f"{exc}; this one answers no queries")
            self._older = None
            return
        opened.callback(self._server.close)
        self._view.server = self._server
        self._server.start()
        if self._older is not None:
            opened.callback(self._older.close)
            with self._lock:
                self._older.start()

    def loop(self) -> int:
        """Run until told to stop; see :func:`run`."""
        limit = self.options.duration_s
        end_ns = time.monotonic_ns() + int(limit * 1e9) if limit is not None else None
        poll = select.epoll()
        poll.register(self.stop.fd, select.EPOLLIN)
        poll.register(self.kernel.ring.fd, select.EPOLLIN)
        watched_out = self._watch_out(poll, None)
        watched_prober: int | None = None
        quiet = 0
        _raise_priority()
        say_ready()
        self._service.ready()
        try:
            while self.stop.signal is None and not self.out.closed:
                now_ns = time.monotonic_ns()
                if end_ns is not None and now_ns >= end_ns:
                    break
                try:
                    wait_s = self._wait_s(now_ns, end_ns, quiet)
                    watched_prober = self._watch_prober(poll, watched_prober)
                    ready = poll.poll(wait_s)
                    heard = any(fd == watched_prober for fd, _ in ready)
                    with self._lock:
                        quiet = 0 if self._turn(prober_spoke=heard) else quiet + 1
                    watched_out = self._watch_out(poll, watched_out)
                except Exception as exc:  # noqa: BLE001 - the next turn may be well
                    self.faults.note(exc)
                    time.sleep(_POLL_BUSY_S)
        finally:
            poll.close()
        self._service.stopping()
        with self._lock:
            self._drain()
        if self.stop.signal == signal.SIGINT:
            return 130
        return 0

    def close(self) -> None:
        """Stop answering, write what is pending, detach the library probes."""
        self._opened.close()

    def _end_deep(self) -> None:
        if self._view.deep_sessions is not None:
            with self._lock:
                self._view.deep_sessions.close()

    # -- parts of the loop --------------------------------------------------------------------

    def _watch_out(
        self, poll: select.epoll, watched: tuple[int, int] | None
    ) -> tuple[int, int] | None:
        fd = self.out.fileno()
        if fd is None:
            if watched is not None:
                poll.unregister(watched[0])
            return None
        wanted = (fd, select.EPOLLERR | (select.EPOLLOUT if self.out.wants_write else 0))
        if wanted == watched:
            return watched
        if watched is None:
            poll.register(*wanted)
        else:
            poll.modify(*wanted)
        return wanted

    def _watch_prober(self, poll: select.epoll, watched: int | None) -> int | None:
        fd = self._prober.fileno()  # a closed one is out of the poll by itself
        if fd is not None and fd != watched:
            poll.register(fd, select.EPOLLIN)
        return fd

    def _wait_s(self, now_ns: int, end_ns: int | None, quiet: int) -> float:
        idle = quiet >= _IDLE_AFTER and not self._view.deep_sessions
        wait_s = _POLL_IDLE_S if idle else _POLL_BUSY_S
        if end_ns is not None:
            wait_s = min(wait_s, (end_ns - now_ns) / 1e9)
        deadline = self._core.deadline()
        if deadline is not None:
            wait_s = min(wait_s, max(0.001, (deadline - now_ns) / 1e9))
        return wait_s

    def _turn(self, *, prober_spoke: bool) -> bool:
        """Take in what has come and do what is due; whether anything had come."""
        if prober_spoke:
            self.faults.guard(self._prober.handle)
        found = self._read_ring()
        now_ns = time.monotonic_ns()
        self._periodic(now_ns)
        self._pass_on()
        if not self.kernel.ring.stuck(now_ns):
            self._service.alive(now_ns)
        return found

    def _read_ring(self) -> bool:
        found = False
        for data in self.kernel.ring.read():
            found = True
            try:
                event = decode(data)
            except Exception as exc:  # noqa: BLE001 - it costs this event
                self.faults.note(exc)
                continue
            finally:
                data.release()
            try:
                self._take_in(event)
            except Exception as exc:  # noqa: BLE001 - likewise
                self.faults.note(exc)
        return found

    def _take_in(self, event: Event) -> None:
        if isinstance(event, ConnEvent):
            self._note(self._losses.counted())
            self._note_start(event.pid, event.start_ns)
            if self._older is not None:
                self._older.ended(event.cookie)
            if self._view.deep_sessions is not None:
                self._view.deep_sessions.ended(event)
            if event.flags & ConnFlag.SYNC_FAIL:
                event = self._with_errno(event)
        elif isinstance(event, LookupEvent | DnsEvent):
            if event.task.pid:  # of an answer on the wire nothing is known
                self._note_start(event.task.pid, event.task.start_ns)
        elif isinstance(event, ExecEvent):
            self._identities.learn(event)
            if self._view.deep_sessions is not None:
                self._view.deep_sessions.executed(event.task.pid)
        elif isinstance(event, PlainEvent):
            if self._view.deep_sessions is not None:
                self._view.deep_sessions.plain(event)
            return
        self._hand_out(self._core.feed(event))

    def _hand_out(self, records: list[Record]) -> None:
        if not records:
            return
        now_ns = time.time_ns()
        streaming = self._server is not None and self._server.streaming
        for record in records:
            self.records += 1
            try:
                self._hand_on(record, now_ns)
                if streaming and self._server is not None:
                    self._server.publish(record)
            except Exception as exc:  # noqa: BLE001 - it costs this record
                self.faults.note(exc)

    def _hand_on(self, record: Record, now_ns: int) -> None:
        if self.options.live or record.state != "open":
            self.out.write(record)
        if record.state != "open":
            start_ns = self._starts.get(record.pid) if record.pid is not None else None
            self._keep.add(
                record,
                self._view.process_start_ns(start_ns) if start_ns is not None else None,
                now_ns,
            )

    def _pass_on(self) -> None:
        self.out.flush()
        if self._server is not None:
            self._server.flush()

    def _catch_up(self) -> None:
        """What happened up to now is in the answer that is about to be given."""
        self._read_ring()
        if self._core.wants_snapshot():
            self._snapshot(time.monotonic_ns())
        self._pass_on()

    def _cookies(self) -> set[int]:
        """Of all connections in the map; what ended before has been handed on."""
        found = {
            fields[9] for batch in self.kernel.connection_batches() for fields in peek_conns(batch)
        }
        self._read_ring()
        return found

    # Records name a process by its pid alone; the statistics tell it from a later one.
    def _note_start(self, pid: int, start_ns: int) -> None:
        self._starts[pid] = start_ns
        self._starts.move_to_end(pid)
        if len(self._starts) > _MAX_STARTS:
            self._starts.popitem(last=False)

    def _with_errno(self, conn: ConnEvent) -> ConnEvent:
        """The kernel saw that connect() failed; where it did not say why, routes may."""
        if conn.sk_err:
            return conn
        way = Way(
            address_key(conn.family, conn.raddr),
            conn.rport,
            address_key(conn.family, conn.laddr),
            conn.tx_record,
            conn.rx_record,
        )
        errno = connect_errno(way, conn.netns, (conn.pid, conn.ppid))
        return conn._replace(sk_err=errno) if errno else conn

    def _periodic(self, now_ns: int) -> None:
        due = self._due
        if self._server is not None:
            self._core.live = self.options.live or self._server.streaming_live
        deadline = self._core.deadline()
        if (deadline is not None and deadline <= now_ns) or now_ns >= due.snapshot_ns:
            wanted = deadline is not None or self._core.wants_snapshot()
            due.snapshot_ns = now_ns + _SNAPSHOT_NS
            if wanted or now_ns >= due.full_snapshot_ns:
                due.full_snapshot_ns = now_ns + _FULL_SNAPSHOT_NS
                self.faults.guard(lambda: self._snapshot(now_ns))
        if now_ns >= due.counters_ns:
            self._note(self._losses.missed(now_ns))
            due.counters_ns = now_ns + _COUNTERS_NS
        if self._leftovers.due(now_ns):
            self.faults.guard(lambda: self._end_leftovers(now_ns))
        if now_ns >= due.clock_ns:
            self._set_clock()
            due.clock_ns = now_ns + _CLOCK_NS
        if self._view.deep_sessions is not None:
            sessions = self._view.deep_sessions
            self.faults.guard(lambda: sessions.tick(now_ns))
        if now_ns >= due.sweep_ns:
            due.sweep_ns = now_ns + _SWEEP_NS
            self.faults.guard(lambda: self._prober.sweep(now_ns))

    def _snapshot(self, now_ns: int) -> None:
        wanted: list[tuple[int, bytes]] = []
        others = []
        stuck = []
        wants = self._core.wants
        self._core.begin_snapshot()
        for batch in self.kernel.connection_batches():
            for i, fields in enumerate(peek_conns(batch)):
                start_ns, _, _, _, pid, ppid, _, _, sk, _, connect_ns, established_ns, phase = (
                    fields
                )
                key = (sk, connect_ns)
                if phase == Phase.CALLING and now_ns - connect_ns > _CALLING_NS:
                    stuck.append(decode_conn(batch[i * CONN_BYTES :]))
                elif phase == 0 or phase > Phase.ESTABLISHED:
                    continue  # being made at this moment, or ended
                elif wants(key, (pid, start_ns), ppid, established=established_ns != 0):
                    data = batch[i * CONN_BYTES : (i + 1) * CONN_BYTES]
                    wanted.append((connect_ns, bytes(data[: conn_size(data)])))
                elif self._core.knows(key):
                    others.append(key)
        # events of connections that ended while the map was read
        self._read_ring()
        self._note(self._losses.counted())
        wanted.sort(key=lambda conn: conn[0])
        conns = (decode_conn(data) for _, data in wanted)  # each is two kilobytes
        self._hand_out(self._core.snapshot(conns, others=others, now_ns=now_ns))
        for conn in stuck:
            if self.kernel.forget_connection(conn.sk, conn.connect_ns):
                failed = conn._replace(
                    phase=Phase.FAILED, end_ns=now_ns, flags=conn.flags | ConnFlag.SYNC_FAIL
                )
                # the scope of a link-local address is known only when its socket goes
                scopeless = conn.raddr[:2] == b"\xfe\x80" and not conn.rx_record
                self._hand_out(self._core.feed(failed if scopeless else self._with_errno(failed)))

    def _note(self, lost: Lost | None) -> None:
        if lost is not None:
            self._core.feed(lost)

    def _end_leftovers(self, now_ns: int) -> None:
        self._read_ring()
        for conn in self._leftovers.turn(now_ns):
            self._hand_out(self._core.feed(conn))

    def _set_clock(self) -> None:
        self._clock.offset_ns = time.time_ns() - time.monotonic_ns()

    def _drain(self) -> None:
        """What is in the ring and in the correlator still becomes records."""
        self._read_ring()
        self.faults.guard(lambda: self._snapshot(time.monotonic_ns()))
        self._note(self._losses.missed(time.monotonic_ns()))
        self.faults.guard(lambda: self._hand_out(self._core.finish()))
        self._note(self._losses.counted())
        self.out.flush()
        dropped = self._core.lookups_dropped
        if dropped:
            say(f"{dropped} lookups without an answer had no room: there were too many at a time")
        if self._losses.total:
            say(f"{self._losses.total} events were lost: the ring or a map was full")


def say_ready() -> None:
    """Tell whoever started us that every probe is attached."""
    os.write(2, b"ready\n")
