"""Connections that are older than the daemon: no probe saw them begin, sock_diag still lists them.

They are listed once at the start; later listings, made when somebody asks, only tell how those
are doing and which have ended. Listing takes pyroute2 and about a tenth of a millisecond a
socket, so a child does it (monitor/kernel/sockdiag_child.py), and who asks waits for it a moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, KeysView
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

__all__ = ["Older", "OlderConn"]

REFRESH_S: Final = 5.0
WAIT_S: Final = 2.0  # from a listing's begin on; whoever asks later takes what was listed before
_PATIENCE_S: Final = 60.0
_MAX_ENDED: Final = 65_536  # that end while the first listing is made
_MAX_SAID: Final = 300


class OlderConn(NamedTuple):
    """One socket, as it was when it was listed last. None: not known."""

    cookie: int
    netns: int
    pid: int | None
    comm: str | None
    exe: str | None
    start_ticks: int | None
    """When the process started: hundredths of a second since boot."""
    uid: int
    cgroup_id: int
    """0 where the kernel does not tell (before 5.10)."""
    family: int
    laddr: str
    lport: int
    raddr: str
    rport: int
    tcp_state: int
    rtt_us: int | None
    rttvar_us: int | None
    retransmits: int | None
    bytes_sent: int | None
    bytes_received: int | None


class Older:
    """Lists them in a thread of its own, one listing at a time.

    Args:
        lock: the daemon's. But for :meth:`wait`, :meth:`close` and what only reads, every method
            is called with it held.
        begun: returns the cookies of connections whose begin was seen, and has had :meth:`ended`
            called for all that ended before; called with the lock held.
    """

    def __init__(
        self, lock: AbstractContextManager[object], begun: Callable[[], Collection[int]]
    ) -> None:
        self.failed: str | None = None
        """Why some or all are not seen."""
        self._lock = lock
        self._begun = begun
        self._conns: dict[int, OlderConn] = {}
        self._first = True
        self._ended: deque[int] = deque(maxlen=_MAX_ENDED)
        self._at = 0.0
        self._started = 0.0
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to list, unless a listing is under way or recent or there is none left."""
        if self._closed or self._listing():
            return
        if not self._first and (not self._conns or time.monotonic() - self._at < REFRESH_S):
            return
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._list, name="older", daemon=True)
        self._thread.start()

    def listed(self) -> Collection[OlderConn]:
        """Return them as listed last, and begin to list again if that was long ago."""
        self.start()
        return self._conns.values()

    @property
    def cookies(self) -> KeysView[int]:
        """Those of the ones that were listed last; nothing is listed for it."""
        return self._conns.keys()

    def ended(self, cookie: int) -> None:
        """A connection whose begin was seen has ended: it is not one of these."""
        if self._first:
            self._ended.append(cookie)
        else:
            self._conns.pop(cookie, None)  # an old socket that was connected once more

    @property
    def stale(self) -> bool:
        """Whether :meth:`wait` would bring something newer."""
        if self._listing():
            return time.monotonic() - self._started < WAIT_S
        if self._first or not self._conns:
            return False
        return time.monotonic() - self._at >= REFRESH_S

    def wait(self) -> None:
        """Wait for the listing under way, until :data:`WAIT_S` after its begin."""
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, self._started + WAIT_S - time.monotonic()))

    def _listing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """End the listing under way."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        if self._thread is not None:
            self._thread.join(1)

    def _list(self) -> None:
        found: list[OlderConn] | None = None
        try:
            found = self._run()
        except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as exc:
            self._fail(str(exc))  # that tells nothing of what has ended
        with self._lock:
            if found is not None:
                self._conns = self._those_older(found)
            self._ended.clear()
            self._first = False
            self._at = time.monotonic()

    # What began while the programs were attached already is in their map or has been, though it
    # was listed: each connection is told once.
    def _those_older(self, found: list[OlderConn]) -> dict[int, OlderConn]:
        listed = {conn.cookie: conn for conn in found}
        if not self._first:
            return {cookie: conn for cookie, conn in listed.items() if cookie in self._conns}
        seen = {*self._begun(), *self._ended}
        return {cookie: conn for cookie, conn in listed.items() if cookie not in seen}

    def _run(self) -> list[OlderConn]:
        # -P: nothing is imported from whatever folder the daemon was started in
        command = [sys.executable, "-P", "-m", "monitor.kernel.sockdiag_child"]
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self._child = child
        with child:
            try:
                out, said = child.communicate(timeout=_PATIENCE_S)
            except BaseException:
                child.kill()
                raise
            finally:
                self._child = None
        if child.returncode and not self._closed:
            lines = said.decode(errors="replace").strip().splitlines()
            self._fail(lines[-1] if lines else f"its child ended with {child.returncode}")
        return [_shared(OlderConn(*json.loads(line))) for line in out.splitlines()]

    def _fail(self, why: str) -> None:
        self.failed = (
            f"cannot list all connections that are older than conmond: {why[:_MAX_SAID]}; "
            "not seen: those"
        )


# One copy of each name for all connections of a process.
def _shared(conn: OlderConn) -> OlderConn:
    return conn._replace(
        comm=None if conn.comm is None else sys.intern(conn.comm),
        exe=None if conn.exe is None else sys.intern(conn.exe),
    )
