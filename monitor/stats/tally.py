"""What is counted of a group of connections."""

from __future__ import annotations

from typing import Any, Final

from conmon.record import Record
from monitor.stats.values import Values

__all__ = ["PHASES", "Tally"]

PHASES: Final = ("dns_us", "sockconn_us", "tls_us", "txn_resp_us")
MAX_REASONS: Final = 32  # of one group
OTHER_REASON: Final = "other"
UNKNOWN_REASON: Final = "unknown"


class Tally:
    """Counts of connections that ended; ``values`` by phase, where there are any."""

    __slots__ = ("bytes_received", "bytes_sent", "ended", "failures", "values")

    def __init__(self) -> None:
        self.ended = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.failures: dict[str, int] | None = None
        self.values: list[Values | None] = [None, None, None, None]

    def add(self, record: Record) -> None:
        """Count one record."""
        self.ended += 1
        if record.state == "failed":
            self._fail(record.error or UNKNOWN_REASON, 1)
        tcp = record.tcp
        if tcp is not None:
            self.bytes_sent += tcp.bytes_sent or 0
            self.bytes_received += tcp.bytes_received or 0
        if record.dns_us is not None:
            self._values(0).add(record.dns_us)
        if record.sockconn_us is not None:
            self._values(1).add(record.sockconn_us)
        if record.tls_us is not None:
            self._values(2).add(record.tls_us)
        if record.txn_resp_us is not None:
            self._values(3).add(record.txn_resp_us)

    def merge(self, other: Tally) -> None:
        """Count all that another has counted."""
        self.ended += other.ended
        self.bytes_sent += other.bytes_sent
        self.bytes_received += other.bytes_received
        if other.failures:
            for reason, count in other.failures.items():
                self._fail(reason, count)
        for phase, values in enumerate(other.values):
            if values is not None:
                self._values(phase).merge(values)

    def compact(self) -> None:
        """Take less memory."""
        for values in self.values:
            if values is not None:
                values.compact()

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(self.failures.values()) if self.failures else 0

    def latencies(self) -> dict[str, Any]:
        """Return the quantiles of every phase."""
        return {
            name: (values or _NONE).quantiles()
            for name, values in zip(PHASES, self.values, strict=True)
        }

    def p95(self, phase: int) -> int:
        """Return a phase's 95th percentile; -1 where there is no value."""
        return (self.values[phase] or _NONE).p95()

    def _values(self, phase: int) -> Values:
        values = self.values[phase]
        if values is None:
            values = self.values[phase] = Values()
        return values

    def _fail(self, reason: str, count: int) -> None:
        if self.failures is None:
            self.failures = {}
        if reason not in self.failures and len(self.failures) >= MAX_REASONS:
            reason = OTHER_REASON
        self.failures[reason] = self.failures.get(reason, 0) + count


_NONE: Final = Values()
