"""A real Prometheus scrapes /metrics and counts what was done."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from tests.lab.daemon import Daemon

pytestmark = pytest.mark.kernel("prometheus", "promtool")
REFUSED, ANSWERED = 13, 29


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def query(port, text):
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return []


def wait_for_value(port, text, wanted, seconds=20.0):
    end = time.monotonic() + seconds
    found = None
    while time.monotonic() < end:
        found = query(port, text)
        if found and float(found[0]["value"][1]) == wanted:
            return
        time.sleep(0.2)
    raise AssertionError(f"{text} is {found}, not {wanted}")


@pytest.fixture
def scraped(tmp_path):
    metrics, web = free_port(), free_port()
    (tmp_path / "conmond.toml").write_text(f'[metrics]\nlisten = "127.0.0.1:{metrics}"\n')
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n- job_name: conmond\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{metrics}']\n"
    )
    daemon = Daemon("--json", "--config", str(tmp_path / "conmond.toml"))
    words = open(tmp_path / "words", "w+")  # noqa: SIM115 - as long as the process
    server = subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml",
         f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{web}"],
        stdout=words, stderr=words,
    )  # fmt: skip
    try:
        yield metrics, web
    finally:
        server.terminate()
        server.wait(timeout=20)
        words.close()
        daemon.stop()


CLIENT = f"""
import socket
server = socket.create_server(("127.0.0.1", 0))
for _ in range({ANSWERED}):
    with socket.create_connection(server.getsockname()): server.accept()[0].close()
for _ in range({REFUSED}):
    try: socket.create_connection(("127.0.0.1", 1))
    except ConnectionRefusedError: pass
open("/proc/self/comm", "w").write("promtest")
for _ in range({REFUSED}):
    try: socket.create_connection(("127.0.0.1", 1))
    except ConnectionRefusedError: pass
"""


def test_prometheus_counts_what_was_done(scraped):
    metrics, web = scraped
    wait_for_value(web, 'up{job="conmond"}', 1)
    refused = 'sum(conmond_failures_total{reason="ECONNREFUSED"}) or vector(0)'
    before = float(query(web, refused)[0]["value"][1])
    subprocess.run(["/usr/bin/python3", "-c", CLIENT], check=True, timeout=20)
    wait_for_value(web, 'sum(conmond_connections_total{comm="promtest",state="failed"})', REFUSED)
    wait_for_value(web, refused, before + 2 * REFUSED)
    name = 'comm=~"python3.*",state="closed"'
    wait_for_value(web, f"sum(conmond_connections_total{{{name}}})", ANSWERED)
    assert float(query(web, "conmond_connect_duration_seconds_count")[0]["value"][1]) >= ANSWERED
    wait_for_value(web, "sum(conmond_events_lost_total) or vector(0)", 0)
    # as its own linter sees it
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=5) as answer:
        text = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
