"""What /metrics counts: totals and histograms since the daemon started. Pure, bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict
from typing import Final

from conmon.record import Record

__all__ = ["BUCKETS_US", "OTHER", "PHASES", "Meter", "Phase"]

# Upper bounds: from a connect on loopback to a resolver's second try.
BUCKETS_US: Final = (
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
)  # fmt: skip
PHASES: Final = ("dns_us", "sockconn_us", "tls_us", "txn_resp_us")
MAX_COMMS: Final = 100
MAX_REASONS: Final = 64
OTHER: Final = "other"
STATES: Final = ("closed", "failed")


class Phase:
    """The histogram of one phase."""

    __slots__ = ("buckets", "sum_us")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS_US) + 1)
        """By upper bound, not cumulative; the last has none."""
        self.sum_us = 0

    def add(self, us: int) -> None:
        """Count one measurement; what is none is not counted."""
        if us < 0:
            return
        self.buckets[bisect_left(BUCKETS_US, us)] += 1
        self.sum_us += us


class Meter:
    """Counts records. Names that strangers choose are bounded: past a limit the one that has been
    inactive for longest becomes part of "other", so that what is active has its own count."""

    def __init__(self) -> None:
        self.phases = {name: Phase() for name in PHASES}
        self.ended: Counter[tuple[str, str]] = Counter()
        """(comm, closed or failed) -> records."""
        self.failures: Counter[str] = Counter()
        """Reason -> records."""
        self.bytes_sent = 0
        self.bytes_received = 0
        self._comms: OrderedDict[str, None] = OrderedDict()
        """The longest inactive first."""

    def add(self, record: Record) -> None:
        """Count a record that ended."""
        phases = self.phases
        # a remembered answer took no time of this connection
        if record.dns_us is not None and not _is_remembered(record):
            phases["dns_us"].add(record.dns_us)
        if record.sockconn_us is not None:
            phases["sockconn_us"].add(record.sockconn_us)
        if record.tls_us is not None:
            phases["tls_us"].add(record.tls_us)
        if record.txn_resp_us is not None:
            phases["txn_resp_us"].add(record.txn_resp_us)
        self.ended[self._comm(record.comm), record.state] += 1
        if record.state == "failed":
            reason = record.error or "unknown"
            if reason not in self.failures and len(self.failures) >= MAX_REASONS:
                reason = OTHER
            self.failures[reason] += 1
        tcp = record.tcp
        if tcp is not None:
            self.bytes_sent += tcp.bytes_sent or 0
            self.bytes_received += tcp.bytes_received or 0

    def _comm(self, comm: str | None) -> str:
        if comm is None:
            return ""
        if comm in self._comms:
            self._comms.move_to_end(comm)
            return comm
        self._comms[comm] = None
        if len(self._comms) > MAX_COMMS:
            inactive, _ = self._comms.popitem(last=False)
            for state in STATES:
                count = self.ended.pop((inactive, state), 0)
                if count:
                    self.ended[OTHER, state] += count
        return comm


_REMEMBERED_US: Final = 1_000_000


def _is_remembered(record: Record) -> bool:
    return record.dns_age_us is not None and record.dns_age_us >= _REMEMBERED_US
