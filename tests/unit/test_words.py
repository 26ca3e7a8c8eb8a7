"""Figures, names and times as people read them."""

from __future__ import annotations

import time

import pytest

from conmon import Record
from conmon.escape import width
from conmon.words import clock, columns
from monitor.cli.ctl.commands import _deep_lines, _record_line
from monitor.cli.ctl.top import _record_cells
from monitor.cli.table import Table

START = "2026-07-01T22:30:01.234567Z"


@pytest.fixture
def east(monkeypatch):
    monkeypatch.setenv("TZ", "XYZ-03:30")  # of no season
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_of_day_are_local_wherever_they_are_shown(east):
    assert clock(START) == "02:00:01.234"
    assert clock(START, 8) == "02:00:01"
    record = Record(start=START, comm="x", state="closed")
    turn = {"kind": "turn", "prot_specific": None, "raddr": None, "rport": None, "host": None,
            "us": 1, "at": START}  # fmt: skip
    table = Table(colour=False, size=lambda: (130, 0)).render(record).decode()
    shown = [_record_line(record), *_deep_lines(turn), _record_cells(record)[0], table]
    assert all("02:00:01.234" in text for text in shown), shown


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        (None, "-"),
        ("", ""),
        ("noon\x1b[2J", "noon\\x1b[2J"),
        ("9999-12-31T23:00:00Z", "9999-12-31T…"),
    ],
)
def test_what_is_no_time_is_shown_as_it_came(east, moment, shown):
    assert clock(moment) == shown


def test_columns_line_up_by_what_the_terminal_shows():
    rows = [["漢字", "1", "x"], ["abcdef", "12", "y"], ["ab", "漢", "漢"]]
    lines = columns(["A", "B", "C"], rows, left=2).splitlines()
    assert lines == ["A       B    C", "漢字    1    x", "abcdef  12   y", "ab      漢  漢"]
    assert {width(line) for line in lines} == {14}
