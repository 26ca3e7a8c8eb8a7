"""HTTP/2 inside TLS: the answer is told from SETTINGS, WINDOW_UPDATEs and tickets, or not told.

``CONMOND_H2=10000`` makes that many requests instead of a few dozen; ``CONMOND_H2_LOG`` names a
file that then takes a line for each figure that was wrong or not known.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon
from tests.lab.http2 import CLIENTS, NO_BODY, SERVERS, Http2Lab
from tests.lab.netns import CLEAN_ENV

REQUESTS = int(os.environ.get("CONMOND_H2", 72))
AT_A_TIME = 6
TRIPS_US = (0, 200, 1000, 10_000, 40_000)
WAITS_MS = (0, 5, 20, 150)
SIZES = (None, None, 3, 1000, 100_000, 1_000_000)  # None: GET
LATE_US = 1500  # an answer is noted before it is sent, and waits for its turn

pytestmark = [
    pytest.mark.client("curl", "haproxy", "hey", "ip", "nghttp", "nginx", "node", "rclone"),
    pytest.mark.seconds(7200),
]


def plan(lab):
    chosen = random.Random(REQUESTS)
    sender = {c: shutil.which(CLIENTS[c]("https://x", None, Path("x"))[0],
                              path=CLEAN_ENV["PATH"]) for c in CLIENTS}  # fmt: skip
    clients = [client for client in CLIENTS if sender[client]]
    pairs = [
        (client, server)
        for client in clients
        for server in lab.ports
        # hey names the port in its SNI, which caddy does not take; lighttpd and httpx do not
        # agree on HTTP/2
        if (client, server) not in (("hey", "caddy"), ("httpx", "lighttpd"))
    ]
    chosen.shuffle(pairs)
    for number in range(REQUESTS):
        client, server = pairs[number % len(pairs)]
        size = None if client in NO_BODY else chosen.choice(SIZES)
        trip_us, wait_ms = chosen.choice(TRIPS_US), chosen.choice(WAITS_MS)
        yield client, server, size, trip_us, wait_ms, f"t{number}"


def judge(record, asked, answer_ns):
    """What is said of a figure: ``ok``, ``null`` or ``wrong``."""
    took = record["txn_resp_us"]
    if took is None:
        assert record["txn_source"] is None
        return "null"
    least = asked.wait_us + asked.trip_us
    most = (answer_ns - asked.begun_ns) / 1000 + asked.trip_us / 2 + 20_000
    return "ok" if least - LATE_US <= took <= most else "wrong"


def test_the_answer_is_told_or_not_known(tmp_path):
    with Http2Lab(tmp_path, trips_us=TRIPS_US) as lab:
        daemon = Daemon()
        try:
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                made = pool.map(
                    lambda row: lab.ask(
                        row[0], row[1], size=row[2], trip_us=row[3], wait_ms=row[4], tag=row[5]
                    ),
                    list(plan(lab)),
                )
                asked = {(one.pid, one.netns): one for one in made if one is not None}
            answers = lab.answers()
            asked = {key: one for key, one in asked.items() if one.tag in answers}
            assert len(asked) > 0.9 * REQUESTS, "the clients fail"
            # one in a hundred may be lost on a machine that has more to do
            daemon.wait_for(
                lambda r: (r["pid"], r["netns"]) in asked, 99 * len(asked) // 100, timeout_s=20
            )
            records = daemon.records(lambda r: (r["pid"], r["netns"]) in asked)
        finally:
            daemon.stop()
    seen = Counter()
    sources = Counter()
    notes = []
    for record in records:
        one = asked.pop((record["pid"], record["netns"]), None)
        if one is None:
            continue  # pids come again
        verdict = judge(record, one, answers[one.tag])
        seen[verdict] += 1
        sources[record["txn_source"]] += 1
        if verdict != "ok":
            notes.append(f"{verdict} {one} {record}")
    if path := os.environ.get("CONMOND_H2_LOG"):
        Path(path).write_text("\n".join([str(seen), *notes]) + "\n")
    print(dict(seen), dict(sources), file=sys.stderr)
    assert not [note for note in notes if note.startswith("wrong")]
    assert seen["null"] <= max(6, 0.05 * sum(seen.values())), notes
    assert sources["h2_records"] > 0.9 * seen["ok"], sources
    assert set(lab.ports) >= {"nginx", "nginx-1.2", "haproxy", "node", "python"}, SERVERS
