"""The zoo's rounds are made once, for all species that were asked for; each test judges one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.daemon import Daemon, DaemonError
from tests.zoo.keeper import Keeper, Phase
from tests.zoo.table import SPECIES

ROUNDS = max(2, int(os.environ.get("CONMOND_ZOO", "2")))
STOPPED_S = float(os.environ.get("CONMOND_ZOO_STOPPED", "1" if ROUNDS < 100 else "30"))
END_S = 60.0  # how soon it ends is for the tests of conmond itself


@dataclass
class Outcome:
    """What all rounds were like."""

    control: Phase
    watched: Phase
    coming_and_going: Phase
    lacking: dict[str, str]
    cycles: int
    """How often conmond came and went."""


class ComingAndGoing:
    """conmond started, ended, stopped for a time, continued and killed, over and over."""

    def __init__(self) -> None:
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.cycles = 0
        self.error: BaseException | None = None
        self._thread.start()

    def once(self) -> bool:
        """Whether it has not come and gone in every way yet."""
        return not self.cycles and self.error is None

    def end(self) -> None:
        self._enough.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        try:
            while not self._enough.is_set():
                for way in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
                    self._cycle(way)
                self.cycles += 1
        except BaseException as exc:  # noqa: BLE001 - raised again by end()
            self.error = exc

    def _cycle(self, way: signal.Signals) -> None:
        with watching() as daemon:
            self._enough.wait(0.5)
            daemon.process.send_signal(signal.SIGSTOP)
            self._enough.wait(STOPPED_S)
            if way is signal.SIGSTOP:
                daemon.kill()  # while it is stopped
                return
            daemon.process.send_signal(signal.SIGCONT)
            self._enough.wait(0.5)
            if way is signal.SIGKILL:
                daemon.kill()
        self._enough.wait(0.3)


@contextlib.contextmanager
def watching() -> Iterator[Daemon]:
    """A conmond for the length of a ``with`` block, ended there unless it has been."""
    daemon = Daemon("--quiet")
    try:
        yield daemon
        if daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(timeout=END_S)
    finally:
        # what still holds its output then is for those tests too
        with contextlib.suppress(DaemonError):
            daemon.kill()


@pytest.fixture(scope="session")
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcome]:
    names = {
        item.callspec.params["species"].name
        for item in request.session.items
        if hasattr(item, "callspec") and "species" in item.callspec.params
    }
    keeper = Keeper(tmp_path_factory.mktemp("zoo"), [one for one in SPECIES if one.name in names])
    try:
        control = keeper.phase(ROUNDS, probed=False)
        with watching():
            watched = keeper.phase(ROUNDS, probed=True)
        changing = ComingAndGoing()
        try:
            unsteady = keeper.phase(ROUNDS, probed=True, go_on=changing.once)
        finally:
            changing.end()
        yield Outcome(control, watched, unsteady, keeper.lacking, changing.cycles)
    finally:
        keeper.close()
