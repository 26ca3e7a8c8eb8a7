"""conmond as a program under test: started, listened to, ended, and its last words checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.lab.netns import CLEAN_ENV

ROOT = Path(__file__).resolve().parents[2]
# whatever the machine's own configuration says
PROGRAM = (sys.executable, "-m", "monitor.cli.conmond", "--config", "")
CONMOND = (*PROGRAM, "--no-history")
READY_WAIT_S = 30.0
STOP_WAIT_S = 10.0

Record = dict[str, Any]


class DaemonError(AssertionError):
    """conmond did not start, did not answer or did not end as it must."""


class Daemon:
    """A running ``conmond``, ready when the constructor returns.

    Args:
        options: command-line options; ``--json`` where there are none.
        prefix: a command that runs the command line given after it.
        history: keep one, in a folder that goes with it.
        program: what is run instead of this tree's conmond.
    """

    def __init__(
        self,
        *options: str,
        prefix: Sequence[str] = (),
        history: bool = False,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._changed = threading.Condition()
        self._records: list[Record] = []
        self._bad_lines: list[str] = []
        self._words: list[str] = []
        self._ended = False
        self._folder = tempfile.TemporaryDirectory(prefix="conmond-test-")
        # others may look in, and are told apart by who they are
        os.chmod(self._folder.name, 0o755)
        self.socket = f"{self._folder.name}/conmond.sock"
        keeping = ("--state-dir", f"{self._folder.name}/state") if history else ("--no-history",)
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [*prefix, *program, *keeping, "--socket", self.socket, *(options or ("--json",))],
            cwd=ROOT,
            env=CLEAN_ENV,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._threads = [
            threading.Thread(target=reader, daemon=True)
            for reader in (self._read_words, self._read_records)
        ]
        for thread in self._threads:
            thread.start()
        if not self._wait(lambda: "ready" in self._words or self._ended, READY_WAIT_S):
            self.kill()
            raise DaemonError(f"conmond not ready after {READY_WAIT_S} s: {self.stderr}")
        if "ready" not in self._words:
            self.process.wait(timeout=STOP_WAIT_S)
            self._close()
            raise DaemonError(f"conmond exit {self.process.returncode}: {self.stderr}")
        self.ready_s = time.monotonic() - self.started_at

    @property
    def stderr(self) -> str:
        """Everything said on stderr so far, ``ready`` included."""
        with self._changed:
            return "\n".join(self._words)

    def records(self, wanted: Callable[[Record], bool] = lambda record: True) -> list[Record]:
        """The records so far for which ``wanted`` holds, in the order they came."""
        with self._changed:
            return [record for record in self._records if wanted(record)]

    def wait_for(
        self,
        wanted: Callable[[Record], bool],
        count: int = 1,
        *,
        timeout_s: float = 5.0,
    ) -> list[Record]:
        """Wait until ``count`` records fit; those that fit.

        Raises:
            DaemonError: fewer came in time, or the daemon ended.
        """
        fitting: Callable[[], list[Record]] = lambda: [r for r in self._records if wanted(r)]  # noqa: E731
        if not self._wait(lambda: len(fitting()) >= count or self._ended, timeout_s):
            raise DaemonError(
                f"{len(self.records(wanted))} of {count} records after {timeout_s} s; "
                f"stderr: {self.stderr}"
            )
        found = self.records(wanted)
        if len(found) < count:
            raise DaemonError(f"conmond ended with {len(found)} of {count} records: {self.stderr}")
        return found

    def stop(self) -> None:
        """SIGTERM; it must end with 0, having written JSON alone and no traceback."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DaemonError(f"conmond still ran {STOP_WAIT_S} s after SIGTERM") from None
        self._close()
        if code:
            raise DaemonError(f"conmond exit {code} after SIGTERM: {self.stderr}")
        if "Traceback" in self.stderr:
            raise DaemonError(f"conmond traceback: {self.stderr}")
        if self._bad_lines:
            raise DaemonError(f"not JSON on stdout: {self._bad_lines[:3]}")

    def wait(self) -> int:
        """Wait for it to end; its exit code."""
        code = self.process.wait(timeout=STOP_WAIT_S)
        self._close()
        return code

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=STOP_WAIT_S)
        self._close()

    def _close(self) -> None:
        # The readers end with the pipes; a child that keeps one open is a fault of conmond.
        for thread in self._threads:
            thread.join(timeout=STOP_WAIT_S)
            if thread.is_alive():
                raise DaemonError("conmond has ended, and something still holds its output")
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(done, timeout=timeout_s)

    def _read_records(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                try:
                    self._records.append(json.loads(line))
                except ValueError:
                    self._bad_lines.append(line)
                self._changed.notify_all()

    def _read_words(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._words.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def of_pids(pids: Iterable[int]) -> Callable[[Record], bool]:
    """Whether a record is of one of these processes."""
    wanted = frozenset(pids)
    return lambda record: record["pid"] in wanted


def children_of(pid: int) -> set[int]:
    """The living children of a process, from /proc."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return (
        {int(text) for text in path.read_text(encoding="ascii").split()} if path.exists() else set()
    )


def is_alive(pid: int) -> bool:
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
