"""Statistics against the truth: seven processes, 1,009 connections, known delays and failures."""

from __future__ import annotations

import json
from collections import Counter

import pytest

import conmon
from monitor.stats import RELATIVE_ERROR
from tests.lab.daemon import Daemon
from tests.lab.servers import Behaviour
from tests.lab.world import NEAR4, REFUSED4, Lab

pytestmark = pytest.mark.kernel("ip", "nice")

# connections of each process, primes; so many of them are refused, so many looked up in vain
LOADS = (
    (101, 3, 2), (103, 5, 0), (107, 0, 7), (109, 11, 1), (113, 0, 0), (199, 13, 5), (277, 17, 3),
)  # fmt: skip
RESPONSE_MS = (2, 3, 4, 5, 6, 7, 8)  # of each process's own server
LOOKUP_MS = 3
PHASES = ("dns_us", "sockconn_us", "tls_us", "txn_resp_us")
CLIENT = """
import socket, sys
total, refused, nameless, port, name = (*map(int, sys.argv[1:5]), sys.argv[5])
for i in range(total):
    try:
        if i < refused:
            socket.create_connection(("%s", port))
        elif i < refused + nameless:
            socket.create_connection(("missing." + name, port))
        else:
            with socket.create_connection((name, port)) as sock:
                sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                while sock.recv(4096): pass
    except OSError: pass
""" % (REFUSED4,)  # noqa: UP031 - braces belong to nobody here


def test_counts_are_exact_and_quantiles_within_the_stated_error(tmp_path):
    assert sum(total for total, _, _ in LOADS) == 1009
    daemon = Daemon("--json")
    try:
        with Lab(tmp_path) as lab:
            name = lab.name("load", NEAR4, delay_s=LOOKUP_MS / 1000)
            clients = []
            for (total, refused, nameless), delay_ms in zip(LOADS, RESPONSE_MS, strict=True):
                site = lab.serve(Behaviour(response_delay_s=delay_ms / 1000), NEAR4)
                words = map(str, (total, refused, nameless, site.port, name))
                clients.append(lab.here.popen(["/usr/bin/python3", "-c", CLIENT, *words]))
            for client in clients:
                _, said = client.communicate(timeout=90)
                assert (client.returncode, said) == (0, "")
            pids = {client.pid for client in clients}
            records = daemon.wait_for(lambda record: record["pid"] in pids, 1009, timeout_s=20)
        assert len(records) == 1009
        asked = conmon.Daemon(daemon.socket)
        answer = json.loads(json.dumps(asked.processes()))
        assert answer["lost"] == 0
        rows = {row["pid"]: row for row in answer["processes"]}
        for client, (total, refused, nameless), delay_ms in zip(
            clients, LOADS, RESPONSE_MS, strict=True
        ):
            row = rows[client.pid]
            mine = [record for record in records if record["pid"] == client.pid]
            assert (row["opened"], row["failed"], row["open"]) == (total, refused + nameless, 0)
            wanted = Counter({"ECONNREFUSED": refused, "EAI_NONAME": nameless})
            assert row["failures"] == +wanted
            # the truth of the load, then that of each record
            good = total - refused - nameless
            assert row["txn_resp_us"]["count"] == row["sockconn_us"]["count"] == good
            assert row["tls_us"]["count"] == 0
            assert delay_ms * 1000 <= row["txn_resp_us"]["p50"] < delay_ms * 1000 + 20_000
            assert LOOKUP_MS * 1000 <= row["dns_us"]["p50"] < LOOKUP_MS * 1000 + 20_000
            assert row["bytes_sent"] == sum(r["tcp"]["bytes_sent"] for r in mine if r["tcp"])
            assert row["bytes_sent"] == good * len("GET / HTTP/1.0\r\n\r\n")
            for phase in PHASES:
                values = sorted(r[phase] for r in mine if r[phase] is not None)
                assert row[phase]["count"] == len(values)
                for quantile, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                    if not values:
                        assert row[phase][quantile] is None
                        continue
                    exact = values[int(share * (len(values) - 1))]
                    assert abs(row[phase][quantile] - exact) <= RELATIVE_ERROR * exact + 1
                assert row[phase]["max"] == (values[-1] if values else None)
        (by_host,) = [r for r in asked.processes(by="host")["processes"] if r["host"] == name]
        assert by_host["opened"] == sum(total - refused - none for total, refused, none in LOADS)
        assert by_host["processes"] == 7
    finally:
        daemon.stop()
