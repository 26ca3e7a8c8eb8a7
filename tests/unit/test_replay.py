"""The kernel side's own bytes of real programs, through decode and the core, to a record.

tests/record_events made them; each is one program's request, with every event of its time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from monitor.correlate import Clock, Correlator, Facts
from monitor.decode import decode
from tests.unit.events import People

DATA = Path(__file__).resolve().parents[1] / "data" / "events"
CAPTURES = sorted(DATA.glob("*.json"))
KEPT = (
    "host", "dns_source", "dns_match", "transport", "tls_us", "txn_resp_us", "host_source", "dns",
    "dns_us", "dns_age_us", "dns_disp", "sockconn_us", "attempts", "tls", "turns", "prot_specific",
    "tcp", "peer", "rport", "state", "error", "duration_us", "greeting_us",
)  # fmt: skip


def replay(events: Iterable[bytes], port: int) -> list[dict[str, Any]]:
    """The records of connections to one port."""
    core = Correlator(
        facts=Facts(boot="b007b007", lookups_seen=True), identities=People(), clock=Clock()
    )
    records = []
    for data in events:
        records += core.feed(decode(memoryview(data)))
    records += core.snapshot([], now_ns=1 << 62)
    records += core.finish()
    rows = [record.to_dict() for record in records if record.rport == port]
    return [json.loads(json.dumps({key: row[key] for key in KEPT})) for row in rows]


def test_there_are_captures():
    assert len(CAPTURES) >= 16


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_the_same_bytes_give_the_same_record(path):
    capture = json.loads(path.read_text(encoding="ascii"))
    events = [bytes.fromhex(text) for text in capture["events"]]
    (row,) = replay(events, capture["port"])
    assert row == capture["record"]
    # what is true of all of them, whoever recorded them
    assert row["host"].endswith(".lab.test") and row["peer"] == "10.66.3.2"
    assert row["dns"] == ["10.66.3.2"] and row["state"] == "closed"
    if row["transport"] == "tcp":
        assert 20_000 <= row["sockconn_us"] < 40_000
        assert row["txn_resp_us"] >= 20_000
    if row["tls"]:
        assert row["tls"]["sni"] in (row["host"], f"{row['host']}:{row['rport']}")
        assert row["tls"]["result"] == "ok" and row["tls_us"] >= 20_000


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_events_that_are_lost_raise_nothing_and_name_nobody_else(path):
    capture = json.loads(path.read_text(encoding="ascii"))
    events = [bytes.fromhex(text) for text in capture["events"]]
    row = capture["record"]
    names = (None, row["host"], (row["tls"] or {}).get("sni"))
    for lost in range(len(events)):
        for row in replay(events[:lost] + events[lost + 1 :], capture["port"]):
            assert row["host"] in names
