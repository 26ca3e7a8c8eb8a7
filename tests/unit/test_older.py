"""Connections older than the daemon: what a listing may and may not take away."""

from __future__ import annotations

from monitor.kernel.older import Older, OlderConn


def conn(cookie):
    return OlderConn(
        cookie, 4026531840, 1, "x", None, 5, 0, 0, 2, "10.0.0.1", 1, "10.0.0.2", 2, 1,
        None, None, None, None, None,
    )  # fmt: skip


def test_later_listings_only_take_away(monkeypatch):
    older = Older()
    listings = iter([[conn(1), conn(2)], [conn(2), conn(3)]])
    monkeypatch.setattr(older, "_run", lambda: next(listings))
    older._list()
    assert [each.cookie for each in older._conns] == [1, 2]
    older._list()
    assert [each.cookie for each in older._conns] == [2]  # 3 began later: the probes saw it
    assert older.failed is None


def test_a_listing_that_fails_takes_nothing_away(monkeypatch):
    older = Older()
    monkeypatch.setattr(older, "_run", lambda: [conn(1)])
    older._list()

    def fail():
        raise OSError("no more processes")

    monkeypatch.setattr(older, "_run", fail)
    older._list()
    assert [each.cookie for each in older._conns] == [1]
    assert "no more processes" in older.failed
