"""Lines to stdout that never make the daemon wait.

stdout belongs to someone else: a pipe whose reader may stall or leave, a terminal on hold, a file
on a full disk. Its open file description is shared with the shell, so O_NONBLOCK must not be set
on it; docs/design/021 says what is done instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["LIMIT", "LineWriter"]

LIMIT = 4 << 20
"""Bytes kept for a reader that is behind: some 4,000 records, what a batch of a busy host makes
before the event loop can write again. Past it whole lines are dropped, and counted."""

PIPE_BYTES = 1 << 20  # asked of the kernel for a pipe, 64 KB by default: fewer wake-ups a record
EAGER_BYTES = 64 << 10  # written without waiting for flush()
CHUNK_BYTES = 128 << 10  # joined for one write()

# The file cannot take it now and may later: keep it, go on, try again.
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))


class LineWriter:
    """Writes whole lines to a descriptor, in order, dropping the newest when the reader is behind.

    A line is dropped whole or written whole: what was begun is finished before anything else,
    however long that takes.

    Args:
        fd: stays open and stays the caller's; its flags are left as they are.
        say: gets one sentence when something went wrong that the user should know.
    """

    def __init__(self, fd: int, say: Callable[[str], None]) -> None:
        self.dropped = 0
        self.closed = False
        self.wants_write = False
        self._say = say
        self._lines: deque[bytes] = deque()
        self._chunk = memoryview(b"")  # being written
        self._size = 0  # bytes waiting, chunk included
        self._fresh = 0  # of these, bytes not tried yet
        self._dropped_said = 0
        self._full_said = False
        self._stalled = False

        mode = os.fstat(fd).st_mode
        self._terminal = os.isatty(fd)
        self._own = False
        self._fd = fd
        self._chunk_bytes = CHUNK_BYTES
        if stat.S_ISFIFO(mode) or self._terminal:
            self._reopen(fd)
        if not self._own and not stat.S_ISREG(mode):
            # poll() said there is room: for this much, but not for more.
            self._chunk_bytes = select.PIPE_BUF
        if stat.S_ISFIFO(mode):
            with suppress(OSError):
                if fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
                    fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll: select.poll | None = None
        if self._can_wait():
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)

    def _reopen(self, fd: int) -> None:
        # The same pipe or terminal through an open file description of our own.
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):
            self._fd = os.open(f"/proc/self/fd/{fd}", flags)
            self._own = True

    def _can_wait(self) -> bool:
        # A file or /dev/null is always ready, and epoll refuses it.
        try:
            with select.epoll() as epoll:
                epoll.register(self._fd, 0)
        except PermissionError:
            return False
        return True

    def fileno(self) -> int | None:
        """Return the descriptor to watch in an event loop; None for a file or /dev/null."""
        return self._fd if self._poll is not None and not self.closed else None

    def put(self, line: bytes) -> None:
        """Take one line, its newline included."""
        if self.closed:
            return
        if self._size + len(line) > LIMIT:
            self.dropped += 1
            self._stalled = True
            return
        self._lines.append(line)
        self._size += len(line)
        self._fresh += len(line)
        if self._fresh >= EAGER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what the descriptor takes now; notice a reader that has gone."""
        self._fresh = 0
        while not self.closed:
            events = self._ready(0)
            if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                self._reader_gone()
                return
            if not self._size:
                break
            if not events:
                self.wants_write = True
                return
            if not self._write_some():
                return
        self.wants_write = False
        if self._stalled and not self.closed:
            self._stalled = False
            if not self._dropped_said:
                self._say_dropped()

    def _ready(self, timeout_s: float) -> int:
        if self._poll is None:
            return select.POLLOUT
        events = self._poll.poll(timeout_s * 1000)
        return events[0][1] if events else 0

    # Makes one write(). False where no more is to be had now.
    def _write_some(self) -> bool:
        if not self._chunk:
            self._chunk = memoryview(self._next_chunk())
        try:
            written = os.write(self._fd, self._chunk[: self._chunk_bytes])
        except BlockingIOError:
            self.wants_write = True
            return False
        except OSError as exc:
            if exc.errno in _FULL and not self._terminal:
                # Nothing to wait for: the next flush() tries again.
                self.wants_write = False
                if not self._full_said:
                    self._full_said = True
                    why = os.strerror(exc.errno)
                    self._say(f"cannot write to stdout: {why}; monitoring goes on")
            else:
                self._reader_gone()
            return False
        self._size -= written
        self._chunk = self._chunk[written:]
        return True

    def _next_chunk(self) -> bytes:
        size = 0
        lines = []
        while self._lines and size < CHUNK_BYTES:
            line = self._lines.popleft()
            lines.append(line)
            size += len(line)
        return b"".join(lines)

    def _reader_gone(self) -> None:
        self.closed = True
        self.wants_write = False
        self._lines.clear()
        self._chunk = memoryview(b"")
        self._size = 0

    def _say_dropped(self) -> None:
        self._dropped_said = self.dropped
        noun = "record was" if self.dropped == 1 else "records were"
        self._say(f"stdout was stalled or full: {self.dropped} {noun} dropped")

    def close(self, patience_s: float = 1.0) -> None:
        """Write what waits, for at most patience_s, and say what was lost in all."""
        deadline = time.monotonic() + patience_s
        self.flush()
        while self.wants_write and (left := deadline - time.monotonic()) > 0:
            self._ready(left)
            self.flush()
        if not self.closed and self._size:
            lost = bytes(self._chunk).count(b"\n") + len(self._lines)
            self.dropped += lost
        if self.dropped > self._dropped_said:
            self._say_dropped()
        if self._own:
            os.close(self._fd)
            self._own = False
        self.closed = True
