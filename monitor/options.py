"""What the command line hands to the daemon: the settings, and where records go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from conmon.record import Record

__all__ = ["Options", "RecordSink"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the daemon is to run.

    ``live``: hand out each record once, with ``state`` open, when its set-up is complete, besides
    the one at its end. ``duration_s``: stop by itself after so long; None is until a signal.
    """

    live: bool = False
    duration_s: float | None = None


class RecordSink(Protocol):
    """Where the daemon puts records. No method blocks, and none raises over the state of stdout.

    In an event loop: register ``fileno()``, where it is not None, for EPOLLERR always and for
    EPOLLOUT while ``wants_write``; call ``flush()`` on either, and after each batch of records.
    """

    @property
    def dropped(self) -> int:
        """Records thrown away so far because the reader did not keep up."""

    @property
    def closed(self) -> bool:
        """The reader has gone, and no record can reach anyone any more."""

    @property
    def wants_write(self) -> bool:
        """Something waits for the reader to take what was written before."""

    def fileno(self) -> int | None:
        """The descriptor to watch; None where nothing ever needs watching (a file, --quiet)."""

    def write(self, record: Record) -> None:
        """Take one record; it may be on its way only at the next ``flush()``."""

    def flush(self) -> None:
        """Pass on what can be passed on now."""
