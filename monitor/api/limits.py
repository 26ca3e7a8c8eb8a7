"""What clients of the query socket may take, so that none is in another's way. No sockets here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from monitor.api.access import Asker
from monitor.api.client import Client

__all__ = ["Limits", "Rates", "Slots"]

_UIDS: Final = 1024
_SETTLED_S: Final = 1.0  # who came or was answered just now is about to ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients may take.

    ``rate``: requests a second of one uid; twice that at once. ``max_clients``: connected at one
    time; one uid other than root has half of them at most, an eighth is root's alone, and a
    sixteenth is kept for those who read metrics over TCP. ``max_slow``: questions of one uid other
    than root that wait for the disk, besides the one that is being answered.
    """

    max_clients: int = 64
    rate: float = 200.0
    max_slow: int = 4


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Rates:
    """How many requests each uid has left.

    Args:
        rate: a second; root has no limit.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: dict[int | None, _Bucket] = {}

    def permit(self, asker: Asker, now: float) -> bool:
        """Count a request; False: it is one too many.

        Args:
            now: CLOCK_MONOTONIC, seconds.
        """
        if asker.uid == 0:
            return True
        most = 2 * self._rate
        bucket = self._buckets.get(asker.uid)
        if bucket is None:
            if len(self._buckets) >= _UIDS:
                self._buckets.clear()
            bucket = self._buckets[asker.uid] = _Bucket(most, now)
        bucket.tokens = min(most, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


class Slots:
    """Who may be connected. Of those who wait for nothing, the longest idle makes room.

    Args:
        most: clients.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of_root = most // 8
        self._of_metrics = most // 16
        self._by_uid: Counter[int | None] = Counter()

    def enter(self, uid: int | None) -> None:
        """Count a client."""
        self._by_uid[uid] += 1

    def leave(self, uid: int | None) -> None:
        """A client has gone."""
        self._by_uid[uid] -= 1
        if not self._by_uid[uid]:
            del self._by_uid[uid]

    def free(self, uid: int | None) -> bool:
        """Whether there is room for one more."""
        return self._fits(uid, self._by_uid)

    def idlest(self, uid: int | None, clients: Iterable[Client], now: float) -> Client | None:
        """Return whose leaving makes room for one more; None: nobody who can be sent away.

        Args:
            uid: of the one who comes.
            now: CLOCK_MONOTONIC, seconds.
        """
        help_by_leaving = {
            other
            for other in self._by_uid
            if (other != 0 or uid == 0) and self._fits(uid, self._by_uid - Counter({other: 1}))
        }
        return min(
            (
                client
                for client in clients
                if client.asker.uid in help_by_leaving
                and now - client.since >= _SETTLED_S
                and client.idle
            ),
            key=lambda client: client.since,
            default=None,
        )

    # All, all but root's, all but root's and the scrapers': rooms within rooms.
    def _fits(self, uid: int | None, present: Counter[int | None]) -> bool:
        total = present.total()
        if uid == 0 or total >= self._most:
            return total < self._most
        others = total - present[0]
        users = others - present[None]
        return (
            present[uid] < max(1, self._most // 2)
            and others < self._most - self._of_root
            and (uid is None or users < self._most - self._of_root - self._of_metrics)
        )
