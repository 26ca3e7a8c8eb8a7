"""The query socket of a running conmond: what it answers, and to whom."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import pytest

import conmon
from tests.lab.daemon import Daemon

pytestmark = pytest.mark.kernel("curl", "setpriv")
ROOT = Path(__file__).resolve().parents[2]
API = json.loads((ROOT / "monitor/api/openapi.json").read_text())
RECORD = json.loads((ROOT / "docs/record.schema.json").read_text())
NOBODY = 65534


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    # the last of two contrary flags counts: this one keeps a history
    daemon = Daemon("--json", "--state-dir", str(state))
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(running):
    return conmon.Daemon(running.socket)


def get(running, path, user=None):
    """What curl gets, as a user."""
    who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    done = subprocess.run(
        [*who, "curl", "-s", "-w", "\n%{http_code}", "--max-time", "5",
         "--unix-socket", running.socket, f"http://conmond{path}"],
        capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def answer_fits(path, status, body):
    responses = API["paths"][path]["get"]["responses"]
    found = responses[str(status)]
    if "$ref" in found:
        found = API["components"]["responses"]["Error"]
    (content,) = found["content"].values()
    schema = {**content["schema"], "components": API["components"]}
    jsonschema.Draft202012Validator(schema).validate(json.loads(body))


@pytest.mark.parametrize("path", [path for path in API["paths"] if "{" not in path])
def test_answers_fit_the_document(running, web, path):
    subprocess.run(["curl", "-s", f"http://127.0.0.1:{web}/"], check=True, capture_output=True)
    if path in ("/metrics", "/v1/stream"):
        return
    answer_fits(path, *get(running, path))
    answer_fits(path, *get(running, path + "?no=1"))


def test_a_record_is_there_at_once(client, running, web):
    done = subprocess.run(["curl", "-s", "-w", "%{local_port}", f"http://127.0.0.1:{web}/"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    port = int(done.stdout.removeprefix("hello"))
    found = [r for r in client.records(since="1m", comm="curl") if r.lport == port]
    assert len(found) == 1
    assert client.record(found[0].id) == found[0]
    jsonschema.Draft202012Validator(RECORD).validate(found[0].to_dict())
    status, body = get(running, f"/v1/records/{found[0].id}")
    answer_fits("/v1/records/{id}", status, body)


def test_statistics_count_what_was_done(client, web):
    script = f"""
import socket
for _ in range(23):
    sock = socket.create_connection(("127.0.0.1", {web}))
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    while sock.recv(4096): pass
    sock.close()
for _ in range(7):
    try: socket.create_connection(("127.0.0.1", 1))
    except ConnectionRefusedError: pass
"""
    done = subprocess.Popen([sys.executable, "-c", script])
    assert done.wait(timeout=20) == 0
    (row,) = client.processes(pid=done.pid)["processes"]
    assert (row["opened"], row["failed"], row["open"]) == (30, 7, 0)
    assert row["failures"] == {"ECONNREFUSED": 7}
    assert row["sockconn_us"]["count"] == 23
    assert row["txn_resp_us"]["count"] == 23
    by_pid = list(client.records(pid=done.pid))
    connects = sorted(r.sockconn_us for r in by_pid if r.sockconn_us is not None)
    assert row["sockconn_us"]["p50"] == connects[11]
    assert row["sockconn_us"]["max"] == connects[-1]


def test_open_connections_and_take(client, running, web):
    with socket.create_connection(("127.0.0.1", web)) as sock:
        record = conmon.take(sock, path=running.socket)
        assert (record.state, record.pid, record.lport) == (
            "open",
            os.getpid(),
            sock.getsockname()[1],
        )
        mine = [r for r in client.connections(pid=os.getpid()) if r.lport == record.lport]
        assert [r.id for r in mine] == [record.id]
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
    deadline = time.monotonic() + 5
    while client.take(cookie).state == "open":  # until the server has closed, too
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.take(cookie).state == "closed"
    with pytest.raises(conmon.NotFound):
        client.take(2**63)


def test_a_stranger_sees_only_their_own(client, running, web):
    with socket.create_connection(("127.0.0.1", web)) as sock:
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
        ours = client.take(cookie)
        assert get(running, f"/v1/take/{cookie}", NOBODY)[0] == 404
        assert get(running, f"/v1/records/{ours.id}", NOBODY)[0] == 404
        assert json.loads(get(running, "/v1/connections", NOBODY)[1])["total"] == 0
    assert get(running, f"/v1/records/{ours.id}", NOBODY)[0] == 404
    assert get(running, "/metrics", NOBODY)[0] == 403
    doctor = json.loads(get(running, "/v1/doctor", NOBODY)[1])
    assert doctor["privileged"] is False
    assert doctor["libraries"] is doctor["records"] is None
    subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
         "curl", "-s", f"http://127.0.0.1:{web}/"], check=True, capture_output=True,
    )  # fmt: skip
    for path, name in (("/v1/records?uid=0", "records"), ("/v1/processes?uid=0", "processes")):
        assert json.loads(get(running, path, NOBODY)[1])[name] == []
    for path, name in (("/v1/records", "records"), ("/v1/processes", "processes")):
        rows = json.loads(get(running, path, NOBODY)[1])[name]
        assert {row["uid"] for row in rows} == {NOBODY}


def test_a_member_of_the_group_sees_all(running, tmp_path, web):
    config = tmp_path / "config.toml"
    config.write_text('group = "daemon"\n')
    grouped = Daemon("--json", "--config", str(config))
    try:
        subprocess.run(["curl", "-s", f"http://127.0.0.1:{web}/"], check=True, capture_output=True)
        who = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--groups=1"]
        done = subprocess.run(
            [*who, "curl", "-s", "--unix-socket", grouped.socket, "http://c/v1/records"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert 0 in {row["uid"] for row in json.loads(done.stdout)["records"]}
    finally:
        grouped.stop()


def test_arguments_are_told_where_the_configuration_asks(running, tmp_path, web):
    config = tmp_path / "config.toml"
    config.write_text("[record]\ncmdline = true\n")
    telling = Daemon("--json", "--config", str(config))
    command = ["/usr/bin/python3", "-c", "import socket, sys, time\n"
               f"sock = socket.create_connection(('127.0.0.1', {web}))\n"
               "time.sleep(0.5)", "two words", "\x1b]0;x\x07"]  # fmt: skip
    try:
        client = subprocess.Popen(command)
        assert client.wait(timeout=10) == 0
        (told,) = telling.wait_for(lambda record: record["pid"] == client.pid)
        (untold,) = running.wait_for(lambda record: record["pid"] == client.pid)
        assert told["cmdline"] == command
        assert "cmdline" not in untold
        jsonschema.Draft202012Validator(RECORD).validate(told)
    finally:
        telling.stop()


def test_a_stream_brings_what_ends(client, web):
    got = []
    stream = client.stream(comm="curl")
    reader = threading.Thread(target=lambda: got.append(next(stream)), daemon=True)
    reader.start()
    deadline = time.monotonic() + 10
    while not got and time.monotonic() < deadline:
        subprocess.run(["curl", "-s", f"http://127.0.0.1:{web}/"], check=True, capture_output=True)
        reader.join(0.2)
    assert got
    assert got[0].comm == "curl"


def test_metrics_are_prometheus_text(client, web):
    subprocess.run(["curl", "-s", f"http://127.0.0.1:{web}/"], check=True, capture_output=True)
    text = client.metrics()
    assert 'conmond_connections_total{comm="curl",state="closed"}' in text
    assert "conmond_connect_duration_seconds_bucket" in text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v1/doctor HTTP/1.1\r\nHost: c\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v1/doctor HTTP/1.1\r\nHost: c\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"DELETE /v1/doctor HTTP/1.1\r\nHost: c\r\n\r\n", 405),
        (b"GET /v1/../etc HTTP/1.1\r\nHost: c\r\n\r\n", 404),
        (b"GET /v1/records?since=%ff HTTP/1.1\r\nHost: c\r\n\r\n", 400),
        (b"GET /v1/records?before=../../x HTTP/1.1\r\nHost: c\r\n\r\n", 400),
        (b"GET /v1/processes?since=tomorrow HTTP/1.1\r\nHost: c\r\n\r\n", 400),
    ],
)
def test_wrong_requests_get_a_sentence(running, sent, status):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(running.socket)
        sock.sendall(sent)
        got = sock.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    answer = json.loads(body)
    assert answer["status"] == status
    assert answer["error"]


HOSTILE = (
    b"",
    b"\0" * 500,
    b"GET /v1/doc",
    b"GET / HTTP/1.1\r\nHost: c\r\nX: ",
    b"GET /v1/" + b"x" * 9000,
    b"GET /v1/records/" + b"../" * 60 + b" HTTP/1.1\r\nHost: c\r\n\r\n",
    b"GET /v1/records?since=%ff%00 HTTP/1.1\r\nHost: c\r\n\r\n",
    b"GET /v1/processes?" + b"a=1&" * 400 + b" HTTP/1.1\r\nHost: c\r\n\r\n",
    b"POST /v1/doctor HTTP/1.1\r\nHost: c\r\nContent-Length: 99999999999\r\n\r\n" + b"z" * 4000,
    b"GET /v1/take/99999999999999999999999 HTTP/1.1\r\nHost: c\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v1/doctor HTTP/1.1\r\n" + b"A: b\r\n" * 900 + b"\r\n",
    b"GET /v1/doctor HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 17,
)
HOSTILE_CLIENTS = 100_000


def test_a_hundred_thousand_hostile_clients_cost_nothing(client, running, web):
    """Wrong, huge and half requests from one side, slow ones held open, connections meanwhile."""
    before = client.doctor()["cost"]["rss_bytes"]
    slow = []
    load = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import socket, time
for _ in range(499):
    socket.create_connection(("127.0.0.1", {web})).close()
    time.sleep(0.01)
""",
        ]
    )
    answered = cut = 0
    for number in range(HOSTILE_CLIENTS):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        try:
            sock.connect(running.socket)
            sock.sendall(HOSTILE[number % len(HOSTILE)])
            if number % 100 == 0:  # what it says to some of them
                sock.shutdown(socket.SHUT_WR)
                got = sock.recv(65536)
                if got:
                    head, _, body = got.partition(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 "), got
                    assert json.loads(body.split(b"\n")[0])["error"], got
                    answered += 1
        except (ConnectionError, BlockingIOError):
            cut += 1
        if number % 5000 == 0:
            slow.append(sock)
        else:
            sock.close()
    for sock in slow:
        sock.close()
    assert load.wait(timeout=30) == 0
    assert answered > HOSTILE_CLIENTS // 100 // 2
    after = client.doctor()
    assert after["cost"]["rss_bytes"] < before + 4_000_000
    assert after["lost_total"] == 0
    (row,) = client.processes(pid=load.pid)["processes"]
    assert (row["opened"], row["failed"]) == (499, 0)
