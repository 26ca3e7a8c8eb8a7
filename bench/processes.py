"""conmond and the load as processes: started, read by pid, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from bench.figures import Load, parse_load, parse_pss_bytes, parse_schedstat_ns

__all__ = ["BenchError", "Conmond", "build_load", "conmond", "held_connections", "run_load"]

_ROOT: Final = Path(__file__).resolve().parents[1]
_READY: Final = b"ready\n"
_STOP_S: Final = 20.0
_AT_ONCE: Final = 10_000_000  # connections: a bound that is never met in the seconds given


class BenchError(Exception):
    """A measurement cannot be made; one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conmond:
    """A running conmond."""

    process: subprocess.Popen[bytes]
    ready_s: float
    """From its start to ``ready``."""

    def pss_bytes(self) -> int:
        """Its proportional set size now."""
        return parse_pss_bytes(self._proc("smaps_rollup").read_text(encoding="ascii"))

    def cpu_ns(self) -> int:
        """CPU time so far, all threads."""
        return sum(
            parse_schedstat_ns((task / "schedstat").read_text(encoding="ascii"))
            for task in self._proc("task").iterdir()
        )

    def fdinfos(self) -> list[str]:
        """What the kernel says of each descriptor."""
        found = []
        for path in self._proc("fdinfo").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(path.read_text(encoding="ascii"))
        return found

    def settle(self) -> None:
        """Wait until it has taken in all there is: a while in which it hardly ran.

        Raises:
            BenchError: it does not come to rest.
        """
        for _ in range(60):
            before = self.cpu_ns()
            time.sleep(0.5)
            if self.cpu_ns() - before < 25_000_000:
                return
        raise BenchError("conmond does not come to rest: is something else making connections?")

    def _proc(self, name: str) -> Path:
        return Path(f"/proc/{self.process.pid}/{name}")


@contextmanager
def conmond(
    *options: str,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    cache: Path | None = None,
    history: bool = False,
) -> Iterator[Conmond]:
    """Run conmond; in the block it is ready, after it it has ended.

    Args:
        options: of its command line.
        stdout: where records go.
        cache: where it keeps compiled programs; None is where it always does.
        history: keep one, in the ``--state-dir`` among the options.
    Raises:
        BenchError: it did not start, or ended with an error.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "monitor.cli.conmond", "--config", ""),
            *(() if history else ("--no-history",)),
            *options,
        ],
        cwd=_ROOT,
        env=os.environ if cache is None else {**os.environ, "CACHE_DIRECTORY": str(cache)},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        with process.stderr:
            said = []
            while line := process.stderr.readline():
                if line == _READY:
                    break
                said.append(line.decode(errors="replace").strip())
            else:
                raise BenchError("conmond did not start: " + "; ".join(said))
            yield Conmond(process=process, ready_s=time.monotonic() - started)
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read().decode(errors="replace")
        if process.wait(_STOP_S):
            raise BenchError(f"conmond ended with {process.returncode}: {rest.strip()}")
        if "lost" in rest:
            print(f"    conmond: {rest.strip()}", flush=True)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def build_load(folder: Path) -> Path:
    """Compile bench/load.c into a folder.

    Raises:
        BenchError: it cannot be compiled.
    """
    program = folder / "load"
    source = str(Path(__file__).with_name("load.c"))
    command = ["gcc", "-O2", "-Wall", "-pthread", source, "-o", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        raise BenchError("bench/load.c needs gcc, which is not there") from exc
    if done.returncode:
        raise BenchError(f"bench/load.c does not compile: {done.stderr.strip()}")
    return program


def run_load(
    program: Path, *, threads: int, seconds: float, most: int = _AT_ONCE, rate: float = 0
) -> tuple[int, Load]:
    """Make connections until either bound is met; its pid and what it did.

    Args:
        threads: that connect.
        seconds, most: the bounds.
        rate: connections a second, 0 for as many as can be.
    Raises:
        BenchError: it failed.
    """
    with subprocess.Popen(
        [str(program), str(threads), str(most), str(seconds), str(rate)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        said, _ = process.communicate()
    if process.returncode:
        raise BenchError(f"the load ended with {process.returncode}")
    return process.pid, parse_load(said)


@contextmanager
def held_connections(program: Path, count: int) -> Iterator[Load]:
    """Keep connections open during the block.

    Raises:
        BenchError: not all of them could be opened.
    """
    with subprocess.Popen(
        [str(program), "hold", str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError("the load did not open its connections: is `ulimit -Hn` too low?")
        load = parse_load(line)
        if load.failed:
            raise BenchError(f"{load.failed} of {count} connections could not be opened")
        yield load
        process.stdin.close()
