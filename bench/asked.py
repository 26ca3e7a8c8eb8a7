"""What the query socket's answers take and cost while the daemon has much to do."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench.processes import Conmond, conmond, held_connections, run_load

__all__ = ["measure"]

_RATE: Final = 2_000
_SECONDS: Final = 20.0
_MB: Final = 1_000_000
_PATHS: Final = {
    "ps": "/v1/processes",
    "top": "/v1/processes?since=1m",
    "conns, the 500 it shows": "/v1/connections?limit=500",
    "conns, the first 1,000": "/v1/connections?limit=1000",
}


def measure(load: Path, folder: Path, held_count: int) -> Iterator[tuple[str, str]]:
    """Yield a label and a sentence for each question, and for what was lost.

    Args:
        load: the compiled load.
        folder: for socket and history.
        held_count: connections kept open.
    """
    path = folder / "asked.sock"
    options = ("--quiet", "--socket", str(path), "--state-dir", str(folder))
    with conmond(*options, history=True) as daemon, held_connections(load, held_count):
        time.sleep(3)
        _, idle = _ask(daemon, path, 5.0)
        done: list[Any] = []
        worker = threading.Thread(
            target=lambda: done.append(run_load(load, threads=2, seconds=_SECONDS + 2, rate=_RATE))
        )
        before = _get(path, "/v1/doctor")
        worker.start()
        time.sleep(1)
        most, busy = _ask(daemon, path, _SECONDS)
        worker.join()
        daemon.settle()
        time.sleep(2)
        after = _get(path, "/v1/doctor")
    for name in _PATHS:
        yield name, f"{_spread(idle[name])} at rest, {_spread(busy[name])} under load"
    yield "memory, PSS while asked", f"at most {most / _MB:.1f} MB"
    sent = done[0][1].established
    yield (
        "sent",
        f"{sent:,}; recorded {after['records'] - before['records']:,}, in history "
        f"{after['history']['records'] - before['history']['records']:,}, "
        f"lost {after['lost_total']}",
    )


def _ask(daemon: Conmond, path: Path, seconds: float) -> tuple[int, dict[str, list[float]]]:
    times: dict[str, list[float]] = {name: [] for name in _PATHS}
    most = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, target in _PATHS.items():
            begin = time.perf_counter()
            _get(path, target, parse=False)
            times[name].append((time.perf_counter() - begin) * 1e3)
            most = max(most, daemon.pss_bytes())
        time.sleep(0.7)
    return most, times


def _get(path: Path, target: str, *, parse: bool = True) -> Any:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", target)
    body = connection.getresponse().read()
    connection.close()
    return json.loads(body) if parse else None


def _spread(values: list[float]) -> str:
    values = sorted(values)
    late = values[min(len(values) - 1, round(0.95 * len(values)))]
    return f"{statistics.median(values):.0f} ms (95 %: {late:.0f}, to {values[-1]:.0f})"
