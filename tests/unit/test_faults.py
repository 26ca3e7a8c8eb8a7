"""Defects of conmond's own: each costs what it happened in, is counted, and said once by place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from conmon import Record
from monitor import daemon
from monitor.decode import ExitEvent
from monitor.faults import Faults


def fail(kind=ValueError):
    raise kind("of a stranger's making")


def test_said_once_for_each_place_and_counted_each_time():
    said = []
    faults = Faults(said.append)
    for _ in range(3):
        faults.guard(fail)
        faults.guard(lambda: fail(KeyError))
    faults.guard(lambda: 1)
    assert faults.count == 6
    assert len(said) == 2
    assert "test_faults.py" in said[0] and "ValueError: of a stranger's making" in said[0]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_not_kept(kind):
    with pytest.raises(kind):
        Faults(print).guard(lambda: fail(kind))


class Core:
    """Fails for the processes it is told."""

    def __init__(self, bad):
        self.bad = bad

    def feed(self, event):
        if event.pid in self.bad:
            fail()
        return [Record(pid=event.pid, state="closed")]


def running(bad_events=(), bad_records=()):
    """A daemon's loop without a kernel. Returns it, and the pids whose records were kept."""
    kept = []

    def keep(record, *rest):
        if record.pid in bad_records:
            fail(OverflowError)
        kept.append(record.pid)

    made = object.__new__(daemon.Daemon)
    made.faults = Faults(lambda sentence: None)
    made.options = SimpleNamespace(live=False)
    made.out = SimpleNamespace(write=lambda record: None)
    made.records = 0
    made._core = Core(bad_events)
    made._keep = SimpleNamespace(add=keep)
    made._server = None
    made._starts = {}
    made._view = SimpleNamespace(deep_sessions=None)
    return made, kept


def test_an_event_that_raises_costs_itself_alone(monkeypatch):
    made, kept = running(bad_events={2, 3}, bad_records={5})
    events = [ExitEvent(1, 1, pid) for pid in range(8)]
    released = []

    class Data:
        def release(self):
            released.append(self)

    monkeypatch.setattr(
        daemon, "decode", lambda data: fail() if len(released) == 7 else events[len(released)]
    )
    made.kernel = SimpleNamespace(ring=SimpleNamespace(read=lambda: [Data() for _ in range(8)]))
    assert made._read_ring()
    assert kept == [0, 1, 4, 6]
    assert made.faults.count == 4  # two by the core, one kept badly, one not decoded
    assert len(released) == 8
