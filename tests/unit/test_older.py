"""Connections older than the daemon: what a listing may and may not take away."""

from __future__ import annotations

import threading
import time

from monitor.kernel.older import REFRESH_S, WAIT_S, Older, OlderConn


def conn(cookie):
    return OlderConn(
        cookie, 4026531840, 1, "x", None, 5, 0, 0, 2, "10.0.0.1", 1, "10.0.0.2", 2, 1,
        None, None, None, None, None,
    )  # fmt: skip


def lister(monkeypatch, *listings, begun=()):
    older = Older(threading.RLock(), lambda: set(begun))
    left = iter(listings)
    monkeypatch.setattr(older, "_run", lambda: next(left))
    return older


def cookies(older):
    return [each.cookie for each in older._conns.values()]


def test_later_listings_only_take_away(monkeypatch):
    older = lister(monkeypatch, [conn(1), conn(2)], [conn(2), conn(3)])
    older._list()
    assert cookies(older) == [1, 2]
    older._list()
    assert cookies(older) == [2]  # 3 began later: the probes saw it
    assert older.failed is None


def test_those_listed_last_are_told_without_a_new_listing(monkeypatch):
    older = lister(monkeypatch, [conn(1), conn(2)])
    assert set(older.cookies) == set()
    older._list()
    monkeypatch.setattr(time, "monotonic", lambda: older._at + 10 * REFRESH_S)
    assert set(older.cookies) == {1, 2}
    assert older._thread is None


def test_a_listing_that_fails_takes_nothing_away(monkeypatch):
    older = lister(monkeypatch, [conn(1)])
    older._list()

    def fail():
        raise OSError("no more processes")

    monkeypatch.setattr(older, "_run", fail)
    older._list()
    assert cookies(older) == [1]
    assert "no more processes" in older.failed


def test_what_began_or_ended_before_the_first_listing_was_there_is_not_older(monkeypatch):
    older = lister(monkeypatch, [conn(1), conn(2), conn(3)], begun=[2])
    older.ended(3)
    older._list()
    assert cookies(older) == [1]
    older.ended(1)  # connected once more, and seen
    assert cookies(older) == []


def test_what_was_listed_long_ago_is_stale_until_it_is_listed_again(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    go = threading.Event()
    older = lister(monkeypatch)
    monkeypatch.setattr(older, "_run", lambda: go.wait(5) and [conn(1)])
    older.start()
    assert older.stale
    now[0] += WAIT_S  # it takes long: nobody waits any more
    assert not older.stale
    older.wait()
    go.set()
    older._thread.join(5)
    assert not older.stale
    now[0] += REFRESH_S
    assert older.stale
    older.start()
    older.wait()
    assert not older.stale
    assert cookies(older) == [1]
