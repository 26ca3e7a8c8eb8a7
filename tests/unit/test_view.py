"""What the daemon answers without a history."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest

from conmon import Record
from monitor.api.parameters import Filters
from monitor.cli.output import json_line
from monitor.decode import _PEEK
from monitor.keep import Keep
from monitor.kernel.prober import Report
from monitor.recent import Recent
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


BOOT = "aaaaaaaa"


def asked(view, open_record=None, cookie=0x4D):
    """A view whose map has one socket."""
    return View(
        lock=view.lock, kernel=None, core=SimpleNamespace(facts=SimpleNamespace(boot=BOOT)),
        identities=None, prober=None, clock=None, keep=view.keep, started_ns=NOW,
        catch_up=lambda: None, unseen=[],
    ), SimpleNamespace(
        find=lambda wanted: 1 if open_record is not None and wanted == cookie else None,
        at=lambda sk, wanted: open_record,
    )  # fmt: skip


def test_a_socket_connected_again_is_found_by_each_id_and_its_newest_taken(view):
    ids = [f"{BOOT}-4d", f"{BOOT}-4d.aa", f"{BOOT}-4d.bb"]
    for identifier in ids[:2]:
        view.keep.add(Record(id=identifier, state="failed", uid=1), None, NOW)
    for still_open in (None, Record(id=ids[2], uid=1)):
        answers, View_open = asked(view, still_open)
        answers._open = View_open
        shown = [answers.record(each, None, history=False) for each in ids]
        assert [Record.from_json(body).id for body in shown if body] == ids[
            : 3 if still_open else 2
        ]
        taken = answers.take(0x4D, 1, history=False)
        assert Record.from_json(taken).id == (ids[2] if still_open else ids[1])
        assert answers.take(0x4D, 2, history=False) is None


def test_two_deep_looks_that_begin_at_once_are_of_one_keeper(view, monkeypatch):
    made = []

    class Slow:
        def __init__(self, *given):
            time.sleep(0.02)  # the other comes meanwhile
            made.append(self)
            self.begun = []

        def begin(self, pid, *given):
            self.begun.append(pid)

    monkeypatch.setattr("monitor.deep.Deep", Slow)
    answers, _ = asked(view)
    threads = [threading.Thread(target=answers.deep, args=(pid, None, 1, 1)) for pid in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [answers.deep_sessions]
    assert sorted(made[0].begun) == [0, 1, 2, 3]


def test_the_newest_records_forget_what_they_let_go():
    recent = Recent(limit=2)
    for identifier in ("a-1", "a-1.f", "a-2", "a-3"):
        recent.add(Record(id=identifier), NOW)
    assert recent.of_socket("a-1") is None
    assert recent.of_socket("a-3").id == "a-3"
    recent.forget("a-3")
    assert recent.of_socket("a-3") is None
    assert len(recent._of_socket) == len(recent) == 1


@pytest.mark.parametrize(
    ("mapped", "older", "count"),
    [
        ([], None, 0),
        ([1, 2, 2], None, 3),  # QUIC connections of one socket
        ([], [1, 2], 2),
        ([1, 2, 2, 3], [2, 4, 5], 6),  # 2 has been connected once more
    ],
)
def test_what_is_open_has_what_is_older_than_the_daemon(monkeypatch, mapped, older, count):
    entries = [_PEEK.pack(*[0] * 7, bytes(16), 7, cookie, 1, 0, 3) for cookie in mapped]
    of_map = {"conn_by_sk": (len(mapped), 65_536)}
    listed = None
    if older is not None:  # nothing else of it is asked: a figure starts no listing
        listed = SimpleNamespace(cookies=dict.fromkeys(older).keys(), failed=None)
    view = View(
        lock=threading.RLock(),
        kernel=SimpleNamespace(
            map_fill=lambda: of_map,
            hooks=list,
            lost=dict,
            live_failed=None,
            connection_batches=lambda: [memoryview(each) for each in entries],
        ),
        core=SimpleNamespace(facts=SimpleNamespace(boot="aaaaaaaa"), lookups_dropped=3),
        identities=None,
        prober=SimpleNamespace(report=Report(lookups_seen=True), pid=None),
        clock=None,
        keep=Keep(stats=Stats(started_ns=NOW), history=None, render=json_line),
        started_ns=NOW,
        catch_up=lambda: None,
        unseen=[],
        older=listed,
    )
    assert view.doctor(sees_all=True)["open"] == count
    assert view.doctor(sees_all=False)["open"] is None
    assert view.doctor(sees_all=True)["lost"]["dns_full"] == 3
    assert view.doctor(sees_all=True)["lost_total"] == 3
    assert f"\nconmond_open_connections {count}.0\n" in view.metrics().decode()
