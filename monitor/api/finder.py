"""Answers that take long to find, beside the server's thread and each uid in its turn.

Three lanes with a thread each, begun by the first who needs it: what is in memory, what may be on
the disk, and what of that root asks for. So a user's slow question holds up their own next one, and
at most once in a round another user's; never root's, and nobody's who asks for what is in memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from monitor.api.answer import Answer, Feed, Later, error
from monitor.api.client import Client

__all__ = ["Finder"]


class _Job(NamedTuple):
    client: Client
    later: Later


class Finder:
    """Runs what :class:`Later` asks for.

    Args:
        max_slow: questions of one uid other than root that wait for the disk.
        found: called in a finder's thread, with a client that has not gone and its answer.
        failed: makes the answer where there is an exception.
    """

    def __init__(
        self,
        max_slow: int,
        found: Callable[[Client, Answer | Feed], None],
        failed: Callable[[Exception], Answer],
    ) -> None:
        self._max_slow = max_slow
        self._found = found
        self._failed = failed
        self._quick = _Lane("query-finder", self._run)
        self._slow = _Lane("query-history", self._run)
        self._slow_of_root = _Lane("query-history-0", self._run)

    def put(self, client: Client, later: Later) -> Answer | None:
        """Have an answer found; returned at once where this uid has too many that wait."""
        job = _Job(client, later)
        if not later.slow:
            self._quick.put(job)
        elif client.asker.uid == 0:
            self._slow_of_root.put(job)
        elif not self._slow.put(job, self._max_slow):
            return error(
                429,
                f"{self._max_slow} of your questions to the history wait already",
                ("Retry-After", "1"),
            )
        return None

    def forget(self, client: Client) -> None:
        """A client has gone, and nobody wants its answer."""
        for lane in self._lanes:
            lane.forget(client)

    def close(self) -> None:
        """Find nothing more."""
        for lane in self._lanes:
            lane.close()

    def join(self, until: float) -> bool:
        """Wait for the threads until CLOCK_MONOTONIC says so; whether all have ended."""
        return all(lane.join(max(0.0, until - time.monotonic())) for lane in self._lanes)

    @property
    def _lanes(self) -> tuple[_Lane, ...]:
        return self._quick, self._slow, self._slow_of_root

    def _run(self, job: _Job) -> None:
        answer: Answer | Feed | Later
        try:
            answer = job.later.find()
        except Exception as exc:  # noqa: BLE001 - one client's fault must not end all answers
            answer = self._failed(exc)
        if isinstance(answer, Later):  # not in memory, so on the disk
            refusal = None if job.client.gone else self.put(job.client, answer)
            if refusal is None:
                return
            answer = refusal
        self._found(job.client, answer)


class _Lane:
    """One thread, and who waits for it by uid."""

    def __init__(self, name: str, run: Callable[[_Job], None]) -> None:
        self._name = name
        self._run = run
        self._changed = threading.Condition()
        self._waiting: dict[int | None, deque[_Job]] = {}
        """In the order of their turns."""
        self._ending = False
        self._thread: threading.Thread | None = None

    def put(self, job: _Job, most: int | None = None) -> bool:
        uid = job.client.asker.uid
        with self._changed:
            if most is not None and len(self._waiting.get(uid, ())) >= most:
                return False
            self._waiting.setdefault(uid, deque()).append(job)
            if self._thread is None and not self._ending:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return True

    def forget(self, client: Client) -> None:
        uid = client.asker.uid
        with self._changed:
            left = deque(job for job in self._waiting.get(uid, ()) if job.client is not client)
            if left:
                self._waiting[uid] = left  # where it was in the order
            else:
                self._waiting.pop(uid, None)

    def close(self) -> None:
        with self._changed:
            self._ending = True
            self._waiting.clear()
            self._changed.notify()

    def join(self, timeout_s: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if not job.client.gone:
                self._run(job)

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            if self._ending:
                return None
            uid = next(iter(self._waiting))
            jobs = self._waiting.pop(uid)
            job = jobs.popleft()
            if jobs:
                self._waiting[uid] = jobs  # behind all others
            return job
