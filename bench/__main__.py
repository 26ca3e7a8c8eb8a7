"""``python -m bench``: measures and prints. docs/performance.md says what the figures mean."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.figures import (
    Summary,
    count_records,
    cpu_model,
    parse_load,
    program_ids,
    ratio,
    summarize,
)
from bench.processes import (
    BenchError,
    Conmond,
    build_load,
    conmond,
    held_connections,
    run_load,
)
from bench.programs import Costs, stats_enabled

_MB: Final = 1_000_000
_THREADS: Final = 4  # more do not make more connections on two cores
_HELD: Final = 10_000
_HISTORY_RECORDS: Final = 1_000_000
_WATCHED: Final = 10_000
_IDLE_S: Final = 5.0
# conmond reads all open connections every 10 s: memory is taken after it has.
_HELD_S: Final = 13.0
_AIM_READY_S: Final = 1.0
_AIM_IDLE_MB: Final = 25.0
_AIM_HELD_MB: Final = 40.0
_AIM_CPU_US: Final = 20.0
_AIM_RATE: Final = 10_000.0


def _say(label: str, text: str) -> None:
    print(f"  {label:<34} {text}", flush=True)


def _verdict(value: float, aim: float) -> str:
    return "met" if value <= aim else "MISSED"


def _spread(summary: Summary, form: Callable[[float], str]) -> str:
    low, high = form(summary.low), form(summary.high)
    return f"{form(summary.median)} (median of {summary.runs}, {low} to {high})"


def _in_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _drop_page_cache() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n", encoding="ascii")
    except OSError:
        return False
    return True


class Bench:
    """The measurements.

    Args:
        load: the compiled load.
        folder: for records, gone afterwards.
        seconds: how long each load runs.
        rounds: how often a noisy figure is taken.
    """

    def __init__(self, load: Path, folder: Path, *, seconds: float, rounds: int) -> None:
        self._load = load
        self._folder = folder
        self._seconds = seconds
        self._rounds = rounds

    def ready(self) -> None:
        """Time from start to ready."""
        print(f"time to ready (aim: under {_AIM_READY_S:g} s warm)")
        cold = [self._cold_start_s() for _ in range(self._rounds)]
        measured = [seconds for seconds in cold if seconds is not None]
        _say(
            "cold, nothing cached or compiled",
            _spread(summarize(measured), _in_seconds)
            if measured
            else "not measured: the page cache cannot be dropped here",
        )
        values = []
        for _ in range(self._rounds + 1):
            with conmond("--quiet") as daemon:
                values.append(daemon.ready_s)
        del values[0]  # filled the caches again
        summary = summarize(values)
        verdict = _verdict(summary.median, _AIM_READY_S)
        _say("warm", f"{_spread(summary, _in_seconds)}: {verdict}")

    def _cold_start_s(self) -> float | None:
        if not _drop_page_cache():
            return None
        with (
            tempfile.TemporaryDirectory(dir=self._folder) as cache,
            conmond("--quiet", cache=Path(cache)) as daemon,
        ):
            return daemon.ready_s

    def memory(self) -> None:
        """Proportional set size, idle and with many connections open."""
        print("memory, PSS of the daemon")
        with conmond("--quiet") as daemon:
            time.sleep(_IDLE_S)
            idle = daemon.pss_bytes() / _MB
            verdict = f"(aim: {_AIM_IDLE_MB:g} MB): {_verdict(idle, _AIM_IDLE_MB)}"
            _say(f"idle {_IDLE_S:g} s after ready", f"{idle:.1f} MB {verdict}")
            with held_connections(self._load, _HELD) as held:
                most = 0.0
                end = time.monotonic() + _HELD_S
                while time.monotonic() < end:
                    time.sleep(0.2)
                    most = max(most, daemon.pss_bytes() / _MB)
                now = daemon.pss_bytes() / _MB
            verdict = f"(aim: {_AIM_HELD_MB:g} MB): {_verdict(most, _AIM_HELD_MB)}"
            _say(
                f"{held.established:,} connections open",
                f"{now:.1f} MB, at most {most:.1f} MB {verdict}",
            )
            daemon.settle()
            _say("after they have closed", f"{daemon.pss_bytes() / _MB:.1f} MB")

    def asked(self) -> None:
        """What answers take, and cost, while much is open and much ends."""
        from bench.asked import measure

        print(f"{_HELD:,} connections open, 2,000 a second ending, history on (aim: 100 ms, 45 MB)")
        for label, text in measure(self._load, self._folder, _HELD):
            _say(label, text)

    def programs(self) -> None:
        """Nanoseconds per run of each BPF program."""
        print("BPF programs, by the kernel's statistics: plain and HTTPS connections")
        with conmond("--quiet") as daemon, stats_enabled():
            costs = Costs(program_ids(daemon.fdinfos()))
            try:
                before = costs.read()
                _, done = run_load(self._load, threads=_THREADS, seconds=self._seconds)
                plain = costs.read()
                self._handshakes()
                after = costs.read()
            finally:
                costs.close()
        for name, cost in sorted(after.items()):
            runs = cost.runs - before[name].runs
            if not runs:
                _say(name, "did not run")
                continue
            each = (cost.ns - before[name].ns) / runs
            share = (plain[name].ns - before[name].ns) / done.established
            _say(name, f"{each:6.0f} ns a run, {runs:9,} runs, {share:6.0f} ns a plain connection")
        total = sum(plain[name].ns - before[name].ns for name in plain) / done.established
        _say("all, for one plain connection", f"{total:6.0f} ns, both ends of it on this host")

    def collector(self) -> None:
        """CPU time of the daemon for each connection."""
        print(f"collector CPU for each connection (aim: under {_AIM_CPU_US:g} µs)")
        for option in ("--quiet", "--json"):
            with conmond(option) as daemon:
                run_load(self._load, threads=1, seconds=1)
                daemon.settle()
                values = [self._collector_us(daemon) for _ in range(self._rounds)]
            summary = summarize(values)
            label = option if option == "--quiet" else "--json >/dev/null"
            verdict = _verdict(summary.median, _AIM_CPU_US)
            _say(label, f"{_spread(summary, lambda us: f'{us:.1f} µs')}: {verdict}")

    def _collector_us(self, daemon: Conmond) -> float:
        idle_start = daemon.cpu_ns()
        start_s = time.monotonic()
        time.sleep(1)
        idle_rate = (daemon.cpu_ns() - idle_start) / (time.monotonic() - start_s)
        start, start_s = daemon.cpu_ns(), time.monotonic()
        _, done = run_load(self._load, threads=_THREADS, seconds=self._seconds)
        daemon.settle()
        used = daemon.cpu_ns() - start - idle_rate * (time.monotonic() - start_s)
        return used / done.established / 1000

    def rate(self) -> None:
        """The highest rate at which every connection is recorded."""
        print(
            f"highest rate with sent = recorded and lost = 0 (aim: over {_AIM_RATE:,.0f} a second)"
        )
        ceiling = self._recorded_rate(0)
        if ceiling is not None:
            verdict = "met" if ceiling >= _AIM_RATE else "MISSED"
            _say("all that these cores can make", f"{ceiling:,.0f} a second: {verdict}")
            return
        good, low, high = 0.0, 1_000.0, 32_000.0
        while high - low > 500:
            middle = (low + high) / 2
            reached = self._recorded_rate(middle)
            if reached is not None and reached > middle * 0.95:
                low, good = middle, reached
            else:
                high = middle
        verdict = "met" if good >= _AIM_RATE else "MISSED"
        _say("highest without a loss", f"{good:,.0f} a second: {verdict}")

    def _recorded_rate(self, rate: float) -> float | None:
        path = self._folder / "records"
        with path.open("wb") as out, conmond("--json", stdout=out) as daemon:
            pid, done = run_load(self._load, threads=_THREADS, seconds=self._seconds, rate=rate)
            daemon.settle()
        with path.open("rb") as lines:
            counted = count_records(lines, pid)
        path.unlink()
        _say(
            f"asked for {rate:,.0f} a second" if rate else "at full speed",
            f"{done.rate:,.0f} a second: {done.established:,} sent, {counted.records:,} recorded, "
            f"{counted.twice} twice, {counted.incomplete} incomplete",
        )
        whole = counted.records == done.established and not counted.twice
        return done.rate if whole and not counted.incomplete else None

    def throughput(self) -> None:
        """The load's own speed without and with conmond."""
        print("throughput of short connections, without and with conmond in turn")
        self._interleave(
            lambda: run_load(self._load, threads=_THREADS, seconds=self._seconds)[1].rate
        )

    def https(self) -> None:
        """The same for HTTPS, where the library probes work too."""
        print("throughput of HTTPS connections (Python's ssl), without and with conmond in turn")
        self._interleave(self._handshakes)

    def history(self) -> None:
        """Questions to a history of a million records."""
        from bench.history import measure

        for label, text in measure(self._folder, _HISTORY_RECORDS):
            _say(label, text)

    def watch(self) -> None:
        """What conmon.watch() costs a Python program."""
        from bench.watch import measure

        for label, text in measure(_WATCHED, self._rounds):
            _say(label, text)

    def _handshakes(self) -> float:
        done = subprocess.run(
            [sys.executable, "-m", "bench.handshakes", str(self._seconds)],
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError("bench.handshakes failed; it needs openssl")
        return parse_load(done.stdout).rate

    def _interleave(self, measure: Callable[[], float]) -> None:
        rates: dict[str, list[float]] = {"without": [], "--quiet": [], "--json >/dev/null": []}
        for _ in range(self._rounds):
            rates["without"].append(measure())
            for label in ("--quiet", "--json >/dev/null"):
                with conmond(label.split()[0]) as daemon:
                    rates[label].append(measure())
                    daemon.settle()
        for label, values in rates.items():
            text = _spread(summarize(values), lambda each: f"{each:,.0f}/s")
            if label != "without":
                text += f", ratio {ratio(rates['without'], values):.3f}"
            _say(label, text)


_PARTS: Final = ("ready", "memory", "asked", "programs", "collector", "rate", "throughput",
                 "https", "history", "watch")  # fmt: skip


def _describe_machine() -> None:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        model = cpu_model(file.read())
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    print(f"{now}, Linux {platform.release()}, {model}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}, load average {os.getloadavg()[0]:.2f}")


def main() -> int:
    """Measure what was asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="bench", description="What conmond costs here.")
    parser.add_argument("part", nargs="*", metavar="PART", help=f"of {', '.join(_PARTS)}; all")
    parser.add_argument("--seconds", type=float, default=4, help="length of each load (4)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each figure (5)")
    given = parser.parse_args()
    unknown = [part for part in given.part if part not in _PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: there are {', '.join(_PARTS)}")
    if os.geteuid():
        print("bench: must run as root, as conmond does", file=sys.stderr)
        return 1
    _describe_machine()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(
                build_load(Path(folder)), Path(folder), seconds=given.seconds, rounds=given.rounds
            )
            for part in given.part or _PARTS:
                getattr(bench, part)()
    except BenchError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
