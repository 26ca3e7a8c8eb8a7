"""conmonctl top: what needs no daemon."""

from __future__ import annotations

import asyncio

import pytest
from textual.widgets import DataTable, Input

from monitor.cli.ctl.top import _BY, Top

PHASE = {"p50": None, "p95": None}
ROW = {
    "pid": 31, "comm": "curl", "uid": 4_000_000, "unit": "a.service", "container": "beef1234",
    "host": "one.test", "started": None, "open": 77, "opened": 88, "failed": 99,
    "bytes_sent": 0, "bytes_received": 0,
    "dns_us": PHASE, "sockconn_us": PHASE, "tls_us": PHASE, "txn_resp_us": PHASE,
}  # fmt: skip
NAMES = {"process": ("31", "curl", "4000000"), "comm": ("curl",), "unit": ("a.service",),
         "container": ("beef1234",), "uid": ("4000000",), "host": ("one.test",)}  # fmt: skip


class Daemon:
    def processes(self, **_):
        return {"processes": [ROW], "total": 1, "lost": 0, "other": None}


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"other": {"opened": 7}, "untold": 0}, "7 more"), ({"other": None, "untold": 5}, "5 more"),
     ({"other": None, "untold": 0}, None)],
)  # fmt: skip
def test_what_is_not_told_apart_is_said(answer, said):
    words = []

    async def run():
        app = Top(Daemon(), {})
        async with app.run_test():
            app.screen.words = words.append
            app.screen.show({**Daemon().processes(), **answer})

    asyncio.run(run())
    assert (said in words[-1]) if said else ("told apart" not in words[-1])


@pytest.mark.parametrize("by", _BY)
def test_the_filter_is_about_names_in_every_grouping(by):
    shown = {}

    async def run():
        app = Top(Daemon(), {})
        async with app.run_test() as pilot:
            screen = app.screen
            screen.by = by
            screen.show(Daemon().processes())
            for text in (*NAMES[by], "77", "88", "99"):
                screen.query_one("#filter", Input).value = text
                await pilot.pause()
                shown[text] = screen.query_one(DataTable).row_count

    asyncio.run(run())
    assert shown == {**dict.fromkeys(NAMES[by], 1), "77": 0, "88": 0, "99": 0}
