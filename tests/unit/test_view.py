"""What the daemon answers without a history."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest

from conmon import Record
from monitor.api.parameters import Filters
from monitor.cli.output import json_line
from monitor.keep import Keep
from monitor.stats import Stats
from monitor.view import View

SECOND = 10**9
NOW = 1_800_000_000 * SECOND


@pytest.fixture
def view():
    keep = Keep(stats=Stats(started_ns=NOW), history=None, render=json_line)
    return SimpleNamespace(lock=threading.RLock(), catch_up=lambda: None, keep=keep)


def found(view, **words):
    asked = {"since_ns": None, "until_ns": None, "most": 9, "before": None, "oldest_first": False}
    pieces = View.records(view, Filters(), **{**asked, **words})
    return [row["id"] for row in json.loads(b"".join(pieces))["records"]]


def test_since_and_until_are_about_the_end_of_a_record(view):
    began = "2027-01-15T07:50:00.000000Z"  # ten minutes before
    for number in range(3):
        made = Record(id=f"aaaaaaaa-{number}", state="closed", start=began)
        view.keep.add(made, None, NOW + number * SECOND)
    assert found(view, since_ns=NOW + SECOND) == ["aaaaaaaa-2", "aaaaaaaa-1"]
    assert found(view, until_ns=NOW + SECOND) == ["aaaaaaaa-0"]
    assert found(view, oldest_first=True, most=1) == ["aaaaaaaa-0"]
