"""What questions to a large history take, with the file in the page cache and without."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from conmon import Attempt, Record, Tcp, Turns
from monitor.cli.output import json_line
from monitor.history import History, HistoryQuery

__all__ = ["measure"]

_ROUNDS: Final = 5
# Moments and cursors are in percent of the records.
_QUERIES: Final[dict[str, dict[str, Any]]] = {
    "newest": {},
    "oldest": {"order": "oldest"},
    "a page in the middle": {"before": 50},
    "since near the end, oldest first": {"since_ns": 99, "order": "oldest"},
    "since in the middle, oldest first": {"since_ns": 50, "order": "oldest"},
    "until near the beginning": {"until_ns": 1},
    "a second in the middle": {"since_ns": 50, "until_ns": 51},
    "a process": {"pid": 4_711},
    "a name in all": {"comm": "worker-3"},
    "a dense name in the oldest alone": {"comm": "early"},
    "a host in the oldest alone": {"host": "early.example"},
    "a host that never was": {"host": "none.example"},
    "a container by its beginning": {"container": "70ffee"},
    "failed": {"failed": True},
    "slow": {"slow_us": 900_000},
    "slow in the oldest alone": {"slow_us": 2_000_000},
    "slower than any but one": {"slow_us": 2_999_999},
    "a stranger of few records": {"uid_only": 1003},
    "a stranger of a third of all": {"uid_only": 1001},
    "a stranger of the oldest alone": {"uid_only": 1002},
    "failed, of one unit": {"failed": True, "unit": "unit-7"},
    "name and host, never together": {"comm": "worker-3", "host": "host-4.example"},
    "failed and name, never together": {"failed": True, "comm": "worker-5"},
    "slow and host, never together": {"slow_us": 900_000, "host": "host-8.example"},
    "unit and user, never together": {"unit": "unit-3", "uid": 1004},
    "a stranger's slow, oldest alone": {"slow_us": 2_000_000, "uid_only": 1001},
    "few of a process, one failed": {"pid": 4_711, "failed": True},
    "a stranger's name until early": {"uid_only": 1001, "comm": "worker-3", "until_ns": 10},
    "name since late, none fits": {"comm": "early", "since_ns": 20, "order": "oldest"},
}


def measure(folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """Yield a label and a sentence for each kind of question.

    Args:
        folder: for the file.
        count: records.
    """
    path = folder / "history.db"
    history = History.open(path, max_age_s=10**9, max_bytes=10**11, say=print)
    began_ns: list[int] = []  # of each hundredth of the records
    started = time.monotonic()
    for number in range(count):
        if number * 100 % count < 100:
            began_ns.append(time.time_ns())
        record = _record(number, count)
        history.add(record, json_line(record))
        if number % 4_000 == 3_999:
            history.flush(60)
    history.flush(60)
    seconds = time.monotonic() - started
    used_s = _writer_cpu_s()
    history.close()
    size = path.stat().st_size
    yield "written", f"{count:,} in {seconds:.0f} s, {size / count:.0f} bytes each"
    yield "the writer's CPU", f"{used_s / count * 1e6:.0f} us a record"
    opened = time.monotonic()
    _open(path).close()
    yield "opened and closed", f"{(time.monotonic() - opened) * 1e3:.0f} ms"
    for name, words in _QUERIES.items():
        query = HistoryQuery(limit=100, **_placed(words, began_ns, count))
        history = _open(path)
        found = len(history.query(query).bodies)
        warm = [_asked_ms(history, query) for _ in range(_ROUNDS)]
        history.close()
        cold = []
        for _ in range(_ROUNDS):
            history = _open(path)
            _evict(path)
            cold.append(_asked_ms(history, query))
            history.close()
        yield (
            name,
            f"{statistics.median(warm):.1f} ms, from disk {statistics.median(cold):.0f} "
            f"(at most {max(warm):.1f}, {max(cold):.0f}), {found} records",
        )


def _open(path: Path) -> History:
    history = History.open(path, max_age_s=10**9, max_bytes=10**11, say=print)
    while history.status().records is None:
        time.sleep(0.001)
    return history


def _writer_cpu_s() -> float:
    (ident,) = (t.ident for t in threading.enumerate() if t.name == "history" and t.ident)
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


def _asked_ms(history: History, query: HistoryQuery) -> float:
    asked = time.monotonic()
    history.query(query)
    return (time.monotonic() - asked) * 1e3


def _evict(path: Path) -> None:
    """Drop the file from the page cache, and nothing else, since others may be measuring."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _placed(words: dict[str, Any], began_ns: list[int], count: int) -> dict[str, Any]:
    placed = dict(words)
    for name in ("since_ns", "until_ns"):
        if name in words:
            placed[name] = began_ns[words[name]]
    if "before" in words:
        placed["before"] = str(count * words["before"] // 100)
    return placed


def _record(number: int, count: int) -> Record:
    early = number < count // 10
    failed = number % 97 == 1
    host = f"host-{number % 50}.example"
    if number < count // 100 and number % 97 == 5:
        host = "early.example"
    comm = f"worker-{number % 7}" if number % 50 != 4 else "other"
    if failed and comm == "worker-5":
        comm = "other"
    if early and number % 2:
        comm = "early"
    unit = number % 11
    uid = 1000 + (number % 3 == 0)
    if early and number % 4 == 1:
        uid = 1002
    elif number % 100_003 == 7:
        uid = 1003
    elif unit == 4:
        uid = 1004
    txn_resp_us = number * 7_919 % 1_000_000
    if host == "host-8.example":
        txn_resp_us %= 1_000
    elif early and number % 20 == 5:
        txn_resp_us += 2_000_000 - txn_resp_us % 2
    elif number == count // 50:
        txn_resp_us = 3_000_000
    return Record(
        id=f"{number:08x}-{number:x}",
        start="2026-01-01T00:00:00.000000Z",
        state="failed" if failed else "closed",
        pid=number % 10_000,
        uid=uid,
        comm=comm,
        exe="/usr/bin/worker",
        unit=f"unit-{unit}.service",
        container=f"{number % 9:x}0ffee{number % 9:058x}" if number % 5 == 0 else None,
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
        txn_resp_us=txn_resp_us,
        turns=Turns(1, 100, 100),
        tcp=Tcp(20_000, 1_000, 0, 500 + number % 1_000, 9_000),
        duration_us=99_000,
        error="ECONNRESET" if failed else None,
    )
