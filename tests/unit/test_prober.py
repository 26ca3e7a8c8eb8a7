"""monitor.kernel.prober: a real process, whose work is a stand-in."""

from __future__ import annotations

import os
import select
import signal
import time

import pytest

from monitor.kernel import prober as prober_module
from monitor.kernel.prober import Prober
from monitor.kernel.targets import TargetStatus
from monitor.options import ProbeSettings

STATUS = TargetStatus(
    path="/lib/x\udcff.so", dev=1, inode=2, build_id=None, attached=("f",), users=1, error=None
)


class Work:
    """What the prober's process does."""

    lookups_seen = True
    unprobed = ("a library is not probed: why",)
    resting = False
    starts = "well"

    def __init__(self, programs, failed, settings) -> None:
        self.fd, self.writer = os.pipe()
        self.settings = settings

    def start(self):
        if self.starts == "never":
            time.sleep(60)
        if self.starts == "badly":
            raise ValueError("of a kind that nobody foresaw")
        return [f"libraries: {self.settings.libraries}"]

    def fileno(self) -> int:
        return self.fd

    def deadline_ns(self) -> None:
        return None

    def handle(self) -> None:
        pass

    def sweep(self, now_ns: int) -> None:
        pass

    def status(self):
        return [STATUS]

    def counts(self):
        return {"looked": 23}

    def close(self) -> None:
        os.write(2, b"")


@pytest.fixture
def said():
    return []


@pytest.fixture
def restarts():
    return []


@pytest.fixture
def prober(monkeypatch, said, restarts):
    monkeypatch.setattr(prober_module, "Libraries", Work)
    made = Prober(
        {},
        {},
        ProbeSettings(libraries="names"),
        restarted=lambda: restarts.append(1),
        say=said.append,
    )
    yield made
    made.close()
    assert made._is_gone()


def wait(prober: Prober, seconds: float = 5) -> None:
    ready, _, _ = select.select([prober.fileno()], [], [], seconds)
    assert ready
    prober.handle()


def test_it_says_what_it_holds(prober: Prober, said) -> None:
    report = prober.start()
    assert report.missing == ("libraries: names",)
    assert report.unprobed == Work.unprobed
    assert (report.lookups_seen, report.targets, report.counts) == (True, (STATUS,), {"looked": 23})
    assert said == []


def test_it_ends_when_told_and_takes_no_notice_of_signals(prober: Prober) -> None:
    prober.start()
    pid = prober.pid
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    wait(prober)  # it says now and then that it is alive
    prober.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_ended_is_started_again_a_while_later(prober: Prober, said, restarts) -> None:
    prober.start()
    first = prober.pid
    os.kill(first, signal.SIGKILL)
    wait(prober)
    assert prober.fileno() is None
    assert prober.report.targets == () and not prober.report.lookups_seen
    assert len(said) == 1 and "prober ended" in said[0]
    now_ns = time.monotonic_ns()
    prober.sweep(now_ns)
    assert prober.fileno() is None and restarts == []
    deadline = time.monotonic() + 5
    while prober.fileno() is None and time.monotonic() < deadline:
        prober.sweep(now_ns + 2_000_000_000)
    assert prober.pid not in (None, first) and restarts == [1]
    wait(prober)
    assert prober.report.lookups_seen


def test_one_that_waits_for_something_holds_nobody_up(prober: Prober, said, monkeypatch) -> None:
    monkeypatch.setattr(Work, "starts", "never")
    monkeypatch.setattr(prober_module, "_START_S", 0.05)
    monkeypatch.setattr(prober_module, "_CLOSE_S", 0.05)
    begun = time.monotonic()
    assert prober.start().targets == ()
    prober.sweep(time.monotonic_ns() + 11_000_000_000)
    assert [sentence.split()[0] for sentence in said] == ["libraries", "the"]
    prober.sweep(time.monotonic_ns() + 12_000_000_000)
    assert len(said) == 2
    prober.close()
    assert time.monotonic() - begun < 5


def test_it_inherits_nothing_but_what_it_needs(prober: Prober, tmp_path) -> None:
    with open(tmp_path / "ours", "w") as ours:
        prober.start()
        links = f"/proc/{prober.pid}/fd"
        held = {os.readlink(f"{links}/{name}") for name in os.listdir(links)}
    assert str(ours.name) not in held


def test_a_defect_of_its_own_is_told(prober: Prober, said, monkeypatch) -> None:
    monkeypatch.setattr(Work, "starts", "badly")
    prober.start()
    while prober.fileno() is not None:
        wait(prober)
    assert said[0].startswith("internal error, please report it: ValueError in test_prober.py:")
    assert "nobody foresaw" in said[0] and "prober ended" in said[1]
