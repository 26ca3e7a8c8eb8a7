"""What questions to a large history take, with the file in the page cache and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from conmon import Attempt, Record, Tcp, Turns
from monitor.cli.output import json_line
from monitor.history import History, HistoryQuery

__all__ = ["measure"]

_QUERIES: Final[dict[str, dict[str, Any]]] = {
    "newest": {},
    "oldest": {"order": "oldest"},
    "a process": {"pid": 4_711},
    "a name in all": {"comm": "worker-3"},
    "a host in the oldest alone": {"host": "early.example"},
    "a host that never was": {"host": "none.example"},
    "failed": {"failed": True},
    "slower than 900 ms": {"slow_us": 900_000},
    "failed and of one unit": {"failed": True, "unit": "unit-7"},
    "two that hardly meet": {"comm": "worker-3", "host": "host-4.example"},
    "an hour in the middle": {"since_ns": 0, "until_ns": 0},
}


def measure(folder: Path, count: int, drop_cache: Callable[[], bool]) -> Iterator[tuple[str, str]]:
    """Yield a label and a sentence for each kind of question.

    Args:
        folder: for the file.
        count: records.
        drop_cache: empties the page cache; False where that cannot be done.
    """
    path = folder / "history.db"
    history = History.open(path, max_age_s=10**9, max_bytes=10**11, say=print)
    started, begin_ns = time.monotonic(), time.time_ns()
    for number in range(count):
        record = _record(number, count)
        history.add(record, json_line(record))
        if number % 4_000 == 3_999:
            history.flush(60)
    history.flush(60)
    seconds = time.monotonic() - started
    status = history.status()
    yield "written", f"{count:,} in {seconds:.0f} s, {status.bytes / count:.0f} bytes each"
    middle_ns = (begin_ns + time.time_ns()) // 2
    _QUERIES["an hour in the middle"] = {"since_ns": middle_ns, "until_ns": middle_ns + 10**9}
    history.close()
    opened = time.monotonic()
    history = History.open(path, max_age_s=10**9, max_bytes=10**11, say=print)
    yield "opened", f"{(time.monotonic() - opened) * 1e3:.0f} ms"
    for warm in (True, False):
        for name, words in _QUERIES.items():
            query = HistoryQuery(limit=100, **words)
            if warm:
                history.query(query)
            elif not drop_cache():
                yield "from disk", "not measured: the page cache cannot be dropped here"
                break
            asked = time.monotonic()
            found = len(history.query(query).bodies)
            took = (time.monotonic() - asked) * 1e3
            yield f"{name}{'' if warm else ', from disk'}", f"{took:.1f} ms, {found} records"
    history.close()


def _record(number: int, count: int) -> Record:
    kind = number % 97
    host = "early.example" if number < count // 100 and kind == 5 else f"host-{number % 50}.example"
    return Record(
        id=f"{number:08x}-{number:x}",
        start="2026-01-01T00:00:00.000000Z",
        state="failed" if kind == 1 else "closed",
        pid=number % 10_000,
        uid=1000,
        comm=f"worker-{number % 7}" if number % 50 != 4 else "other",
        exe="/usr/bin/worker",
        unit=f"unit-{number % 11}.service",
        host=host,
        host_source="lookup",
        raddr="192.0.2.1",
        rport=443,
        family="ipv4",
        peer="192.0.2.1",
        dns=("192.0.2.1",),
        dns_us=1_000 + number % 7_000,
        dns_disp=1,
        dns_source="getaddrinfo",
        sockconn_us=10_000 + number % 3_000,
        attempts=(Attempt("192.0.2.1", 443, 10_000, 0, "ok"),),
        txn_resp_us=number % 1_000_000,
        turns=Turns(1, 100, 100),
        tcp=Tcp(20_000, 1_000, 0, 500 + number % 1_000, 9_000),
        duration_us=99_000,
        error="ECONNRESET" if kind == 1 else None,
    )
