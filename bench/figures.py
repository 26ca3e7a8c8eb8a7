"""Reads what the kernel says of processes, and sums up repeated measurements. Pure."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "Counted",
    "Load",
    "Summary",
    "count_records",
    "cpu_model",
    "parse_load",
    "parse_pss_bytes",
    "parse_schedstat_ns",
    "program_ids",
    "ratio",
    "summarize",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Repeated measurements of one thing."""

    median: float
    low: float
    high: float
    runs: int


def summarize(values: Sequence[float]) -> Summary:
    """Median and range.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("nothing was measured")
    return Summary(
        median=statistics.median(values), low=min(values), high=max(values), runs=len(values)
    )


def ratio(base: Sequence[float], other: Sequence[float]) -> float:
    """Median of other / base, pair by pair: what drifts on the machine between the pairs drops
    out.

    Raises:
        ValueError: not as many of the one as of the other, or none.
    """
    return summarize([b / a for a, b in zip(base, other, strict=True)]).median


def parse_pss_bytes(rollup: str) -> int:
    """Read the proportional set size out of ``/proc/PID/smaps_rollup``.

    Raises:
        ValueError: it has none.
    """
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    if found is None:
        raise ValueError("smaps_rollup has no line Pss")
    return int(found[1]) * 1024


def parse_schedstat_ns(text: str) -> int:
    """Read the time on CPU out of ``/proc/PID/schedstat``: nanoseconds, user and kernel."""
    return int(text.split()[0])


def program_ids(fdinfos: Iterable[str]) -> set[int]:
    """Find the BPF programs among the texts of ``/proc/PID/fdinfo/*``. A link names its program
    too, so the same id comes more than once."""
    return {
        int(found[1])
        for text in fdinfos
        if (found := re.search(r"^prog_id:\s+(\d+)$", text, re.MULTILINE))
    }


def cpu_model(cpuinfo: str) -> str:
    """Read the processor's name out of ``/proc/cpuinfo``; its architecture may not give one."""
    found = re.search(r"^(?:model name|Model|uarch)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else "unknown CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What bench/load.c says it did."""

    established: int
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Connections a second."""
        return self.established / self.seconds


def parse_load(line: str) -> Load:
    """Read the line that bench/load.c prints.

    Raises:
        ValueError: not such a line.
    """
    try:
        return Load(**json.loads(line))
    except TypeError as exc:
        raise ValueError(f"not a line of load: {line!r}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Records of one process."""

    records: int
    twice: int
    """Of these, those whose id came before."""
    incomplete: int
    """Of these, those without a port, a connect time, a first answer or an end."""


def count_records(lines: Iterable[bytes], pid: int) -> Counted:
    """Count the records of a process in ``conmond --json`` output."""
    ids: set[str] = set()
    records = incomplete = 0
    mark = b'"pid":%d,' % pid
    for line in lines:
        if mark not in line:
            continue
        record = json.loads(line)
        if record["pid"] != pid:
            continue
        records += 1
        ids.add(record["id"])
        figures = ("lport", "sockconn_us", "txn_resp_us", "duration_us", "prot_specific")
        if record["state"] != "closed" or any(record[key] is None for key in figures):
            incomplete += 1
    return Counted(records=records, twice=records - len(ids), incomplete=incomplete)
