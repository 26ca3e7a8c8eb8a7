"""The newest records, in memory: for who asks about a connection right after it ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from conmon.record import Record

__all__ = ["Recent", "first_id"]

MAX_RECORDS: Final = 1024  # about 2 MB


def first_id(identifier: str) -> str:
    """Return the id of the first connection of the same socket."""
    return identifier.partition(".")[0]


class Recent:
    """The last records by id, oldest forgotten first.

    Args:
        limit: how many are kept.
    """

    def __init__(self, limit: int = MAX_RECORDS) -> None:
        self._limit = limit
        self._records: OrderedDict[str, tuple[Record, int]] = OrderedDict()
        self._of_socket: dict[str, str] = {}
        """The id of a socket's first connection -> that of its newest."""

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record, ended_ns: int) -> None:
        """Remember a record that ended.

        Args:
            ended_ns: when, nanoseconds since 1970.
        """
        if record.id is None:
            return
        self._records[record.id] = (record, ended_ns)
        self._of_socket[first_id(record.id)] = record.id
        if len(self._records) > self._limit:
            oldest, _ = self._records.popitem(last=False)
            self._leave(oldest)

    def get(self, identifier: str) -> Record | None:
        """Return the record with this id; None where it is not among the newest."""
        found = self._records.get(identifier)
        return found[0] if found is not None else None

    def of_socket(self, identifier: str) -> Record | None:
        """Return the newest record of a socket.

        Args:
            identifier: of its first connection.
        """
        return self.get(self._of_socket.get(identifier, identifier))

    def forget(self, identifier: str) -> None:
        """Let go of a record that was taken by its owner."""
        self._records.pop(identifier, None)
        self._leave(identifier)

    def _leave(self, identifier: str) -> None:
        first = first_id(identifier)
        if self._of_socket.get(first) == identifier:
            del self._of_socket[first]

    def newest_first(self) -> Iterator[tuple[Record, int]]:
        """Yield the records that are remembered, each with when it ended."""
        return reversed(self._records.values())
