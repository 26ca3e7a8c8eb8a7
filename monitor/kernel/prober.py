"""The process that looks into strangers' files and holds the probes in them.

Reading a file of a stranger's, placing a probe and taking one out may all wait for somebody: a file
system that does not answer, a process that holds its memory. So a process of its own does it, whose
only thread may wait without anything else standing still: the daemon goes on, and meanwhile has
names and handshakes from the wire. It ends with the daemon, however that ends, and what it holds
ends with it; if it ends by itself it is started again.

It tells the daemon what it holds whenever that changed, so nobody ever waits for an answer.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from monitor.errors import MonitorError
from monitor.kernel.libraries import Libraries
from monitor.kernel.targets import TargetStatus
from monitor.options import ProbeSettings

__all__ = ["Prober", "Report"]

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_NAME: Final = b"conmond-prober"
_START_S: Final = 20.0  # probing a host with many libraries takes a second
_CLOSE_S: Final = 5.0
_SWEEP_NS: Final = 1_000_000_000
_REST_S: Final = 0.25  # without news
_MAX_MESSAGE: Final = 1 << 20
_RESTART_NS: Final = 1_000_000_000  # after its first end; twice as long after each further one
_MAX_RESTART_NS: Final = 60_000_000_000
_SILENT_NS: Final = 10_000_000_000  # something keeps it waiting
_GOODBYE: Final = b"close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the prober said last."""

    missing: tuple[str, ...] = ()
    """One sentence for each thing that is not seen, and why."""
    unprobed: tuple[str, ...] = ()
    """One sentence for each library that was in use at the start and cannot be probed."""
    lookups_seen: bool = False
    """getaddrinfo() is probed wherever it is found, entry and return."""
    targets: tuple[TargetStatus, ...] = ()
    """Every file that is probed or was refused."""
    counts: Mapping[str, int] = field(default_factory=dict)
    cpu_ns: int = 0
    """Processor time that it has used."""


class Prober:
    """The library probes, in a process of their own.

    Args:
        programs: program name -> descriptor.
        failed: program name -> why the kernel refused it.
        settings: what is to be probed.
        restarted: called before a new one begins: calls that were under way are not seen to end.
        say: tells the administrator one sentence.
    """

    def __init__(
        self,
        programs: Mapping[str, int],
        failed: Mapping[str, str],
        settings: ProbeSettings,
        *,
        restarted: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._programs, self._failed, self._settings = programs, failed, settings
        self._restarted, self._say = restarted, say
        self._channel: socket.socket | None = None
        self._pid: int | None = None
        self._heard_ns = 0
        self._ends = 0
        self._restart_ns: int | None = None
        self._silent = False
        self._report = Report()

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""
        return self._pid

    @property
    def report(self) -> Report:
        """What it said last."""
        return self._report

    def start(self) -> Report:
        """Probe what is in use now, and watch for more.

        Waits until that is done, or says that it is not and goes on.
        """
        self._begin()
        assert self._channel is not None
        ready, _, _ = select.select([self._channel], [], [], _START_S)
        if ready:
            self.handle()
        else:
            self._say(
                f"libraries are still not probed after {_START_S:g} s: something keeps waiting"
            )
        return self._report

    def fileno(self) -> int | None:
        """Readable when it has something to say, or ended; None while there is none."""
        return self._channel.fileno() if self._channel is not None else None

    def handle(self) -> None:
        """Take in what it said; never waits."""
        while self._channel is not None:
            try:
                said = self._channel.recv(_MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                self._ended()
                return
            self._heard_ns = time.monotonic_ns()
            if self._silent:
                self._silent = False
                self._say("libraries are probed again")
            with suppress(ValueError, KeyError, TypeError):
                found = json.loads(said)
                if "defect" in found:
                    self._say(f"internal error, please report it: {found['defect']}")
                else:
                    self._report = _report(found)

    def sweep(self, now_ns: int) -> None:
        """Start it again if it ended; to be called every second or so."""
        if self._restart_ns is not None and now_ns >= self._restart_ns and self._is_gone():
            self._restart_ns = None
            self._restarted()
            self._begin()
            return
        late = self._channel is not None and now_ns - self._heard_ns > _SILENT_NS
        if late and not self._silent:
            self._silent = True
            self._say("the probes of libraries wait for something; new ones are not probed")

    def close(self) -> None:
        """Detach, and wait until that is done, though not for ever."""
        if self._channel is not None:
            with suppress(OSError):
                self._channel.send(_GOODBYE, socket.MSG_DONTWAIT)
            deadline = time.monotonic() + _CLOSE_S
            while (left := deadline - time.monotonic()) > 0:
                ready, _, _ = select.select([self._channel], [], [], left)
                if ready and not self._said_more():
                    break
            self._channel.close()
            self._channel = None
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            deadline = time.monotonic() + 1
            while not self._is_gone() and time.monotonic() < deadline:
                time.sleep(0.005)

    def _said_more(self) -> bool:
        assert self._channel is not None
        try:
            return bool(self._channel.recv(_MAX_MESSAGE))
        except OSError:
            return False

    # Whether nothing is left of it; it may need a while to let go of its probes.
    def _is_gone(self) -> bool:
        if self._pid is not None:
            with suppress(ChildProcessError):
                if os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                    return False
            self._pid = None
        return True

    def _ended(self) -> None:
        assert self._channel is not None
        self._channel.close()
        self._channel = None
        self._report = Report(missing=self._report.missing, counts=self._report.counts)
        wait_ns = min(_RESTART_NS << min(self._ends, 6), _MAX_RESTART_NS)
        self._ends += 1
        self._restart_ns = time.monotonic_ns() + wait_ns
        self._say(
            f"the prober ended; for {wait_ns // 10**9} s names and TLS are read from the wire alone"
        )

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_MESSAGE)
        parent = os.getpid()
        gc.freeze()  # so that the collector does not touch, and so copy, what both hold
        with warnings.catch_warnings():
            # that a thread may hold a lock: the new process takes none that another one took
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            try:
                _become_prober(parent, theirs, self._programs)
                _Work(theirs, Libraries(self._programs, self._failed, self._settings)).run()
            except Exception as exc:  # noqa: BLE001  # a defect, told before it ends
                _tell_of(theirs, exc)
            finally:
                os._exit(1)
        gc.unfreeze()
        theirs.close()
        self._channel, self._pid = ours, pid
        self._heard_ns = time.monotonic_ns()


def _report(said: Mapping[str, Any]) -> Report:
    return Report(
        missing=tuple(said["missing"]),
        unprobed=tuple(said["unprobed"]),
        lookups_seen=bool(said["lookups_seen"]),
        targets=tuple(
            TargetStatus(**{**target, "attached": tuple(target["attached"])})
            for target in said["targets"]
        ),
        counts=said["counts"],
        cpu_ns=said["cpu_ns"],
    )


# ---- in the new process ---------------------------------------------------------------------


# Nothing of the daemon's may be used here any more, nor end here: its objects are left as they
# are, and the descriptors closed below them.
def _become_prober(parent: int, channel: socket.socket, programs: Mapping[str, int]) -> None:
    gc.disable()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    libc.prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # the daemon's own may be above others'
    # It may live a moment longer than the daemon, whose output others may wait for the end of.
    silent = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silent, number)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon says when to end
    keep = {0, 1, 2, channel.fileno(), *programs.values()}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with suppress(OSError):
                os.close(int(name))


def _tell_of(channel: socket.socket, exc: BaseException) -> None:
    place = ""
    step = exc.__traceback__
    while step is not None:
        place = f"{os.path.basename(step.tb_frame.f_code.co_filename)}:{step.tb_lineno}"
        step = step.tb_next
    with suppress(OSError):
        said = {"defect": f"{type(exc).__name__} in {place}: {exc}"}
        channel.send(json.dumps(said).encode(), socket.MSG_DONTWAIT)


class _Work:
    def __init__(self, channel: socket.socket, libraries: Libraries) -> None:
        self._channel, self._libraries = channel, libraries
        self._missing: list[str] = []
        self._told = b""
        self._told_ns = 0

    def run(self) -> None:
        """Until the daemon says so, or is gone."""
        libraries = self._libraries
        try:
            self._missing = libraries.start()
        except MonitorError as exc:
            self._missing = [str(exc)]
        self._tell(time.monotonic_ns())
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)  # what listing all mappings took
        poll = select.epoll()
        poll.register(self._channel.fileno(), select.EPOLLIN)
        poll.register(libraries.fileno(), select.EPOLLIN)
        watching = True
        sweep_ns = time.monotonic_ns() + _SWEEP_NS
        while True:
            now_ns = time.monotonic_ns()
            if watching == libraries.resting:
                watching = not watching
                poll.modify(libraries.fileno(), select.EPOLLIN if watching else 0)
            deadline_ns = libraries.deadline_ns()
            wait_s = _REST_S
            if deadline_ns is not None:
                wait_s = min(wait_s, max(0.001, (deadline_ns - now_ns) / 1e9))
            for fd, _ in poll.poll(wait_s):
                if fd == self._channel.fileno():
                    self._end()
            libraries.handle()
            now_ns = time.monotonic_ns()
            if now_ns >= sweep_ns:
                libraries.sweep(now_ns)
                sweep_ns = now_ns + _SWEEP_NS
            self._tell(now_ns)

    # What is there is told when it changed, and now and then that we are alive.
    def _tell(self, now_ns: int) -> None:
        if now_ns - self._told_ns < _SWEEP_NS // 20:
            return
        libraries = self._libraries
        said = {
            "missing": self._missing,
            "unprobed": libraries.unprobed,
            "lookups_seen": libraries.lookups_seen,
            "targets": [asdict(target) for target in libraries.status()],
            "counts": libraries.counts(),
        }
        text = json.dumps(said).encode()
        if text == self._told and now_ns - self._told_ns < _SWEEP_NS:
            return
        with suppress(OSError):  # the daemon is busy, and hears it the next time
            self._channel.send(
                json.dumps({**said, "cpu_ns": time.process_time_ns()}).encode(),
                socket.MSG_DONTWAIT,
            )
            self._told, self._told_ns = text, now_ns

    def _end(self) -> None:
        with suppress(OSError):
            if self._channel.recv(64) == _GOODBYE:
                self._libraries.close()
        os._exit(0)
