"""What the daemon keeps of records that ended: statistics, counters, the newest, the history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from conmon.record import Record
from monitor.history import History
from monitor.meter import Meter
from monitor.recent import Recent
from monitor.stats import Stats

__all__ = ["Keep"]


@dataclass(slots=True)
class Keep:
    """One place that every record passes.

    Args:
        stats: per process and host.
        history: on disk; None where it is not wanted.
        render: a record as its line of JSON.
    """

    stats: Stats
    history: History | None
    render: Callable[[Record], bytes]
    meter: Meter = field(default_factory=Meter)
    recent: Recent = field(default_factory=Recent)
    records: int = 0

    def add(self, record: Record, process_start_ns: int | None, now_ns: int) -> None:
        """Take in a record that ended.

        Args:
            process_start_ns: of its process, nanoseconds since 1970; None where not known.
            now_ns: likewise.
        """
        self.records += 1
        self.recent.add(record, now_ns)
        self.meter.add(record)
        self.stats.add(record, process_start_ns, now_ns)
        if self.history is not None:
            self.history.add(record, self.render(record))
