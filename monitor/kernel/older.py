"""Connections that are older than the daemon: no probe saw them begin, sock_diag still lists them.

They are listed once at the start; later listings, made when somebody asks, only tell how those
are doing and which have ended. Listing takes pyroute2 and about a tenth of a millisecond a
socket, so a child does it (monitor/kernel/sockdiag_child.py), and nobody waits for it twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Final, NamedTuple

__all__ = ["Older", "OlderConn"]

REFRESH_S: Final = 5.0
_PATIENCE_S: Final = 60.0
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
    """Lists them in a thread of its own, one listing at a time."""

    def __init__(self) -> None:
        self.failed: str | None = None
        """Why some or all are not seen."""
        self._conns: tuple[OlderConn, ...] = ()
        self._first = True
        self._at = 0.0
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to list, unless a listing is under way or recent or there is none left."""
        if self._closed or (self._thread is not None and self._thread.is_alive()):
            return
        if not self._first and (not self._conns or time.monotonic() - self._at < REFRESH_S):
            return
        self._thread = threading.Thread(target=self._list, name="older", daemon=True)
        self._thread.start()

    def listed(self) -> tuple[OlderConn, ...]:
        """Return them as listed last, and begin to list again if that was long ago."""
        self.start()
        return self._conns

    def wait(self, seconds: float) -> bool:
        """Wait for the listing under way; False where it takes longer."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
            return not thread.is_alive()
        return True

    def close(self) -> None:
        """End the listing under way."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        self.wait(1)

    def _list(self) -> None:
        try:
            found = self._run()
        except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as exc:
            self._fail(str(exc))
            found = list(self._conns)  # that tells nothing of what has ended
        known = {conn.cookie for conn in self._conns}
        self._conns = tuple(conn for conn in found if self._first or conn.cookie in known)
        self._first = False
        self._at = time.monotonic()

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
