"""The query socket of a running conmond: what it answers, and to whom."""

from __future__ import annotations

import contextlib
import grp
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
from prometheus_client.parser import text_string_to_metric_families

import conmon
from tests.lab.daemon import Daemon

pytestmark = pytest.mark.kernel("curl", "setpriv")
ROOT = Path(__file__).resolve().parents[2]
API = json.loads((ROOT / "monitor/api/openapi.json").read_text())
RECORD = json.loads((ROOT / "docs/record.schema.json").read_text())
NOBODY = 65534
GROUP = "daemon"
STRANGER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
MEMBER = (*STRANGER[:3], f"--groups={grp.getgrnam(GROUP).gr_gid}")
MARK = "roots-own"  # the name of a process of root's, which no stranger may read anywhere


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
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text(f'group = "{GROUP}"\n')
    daemon = Daemon("--json", "--config", str(config), history=True)
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


def curl(running, path, *options):
    return ("curl", "-s", "--max-time", "5", *options,
            "--unix-socket", running.socket, f"http://conmond{path}")  # fmt: skip


def ask(running, path, *options, who=()):
    """What somebody's curl gets: status, media type, body."""
    done = subprocess.run(
        [*who, *curl(running, path, "-w", "\n%{http_code} %{content_type}", *options)],
        capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    body, _, last = done.stdout.rpartition("\n")
    status, _, kind = last.partition(" ")
    return int(status), kind, body


def get(running, path, who=()):
    status, _, body = ask(running, path, who=who)
    return status, body


def visit(web, *who):
    subprocess.run([*who, "curl", "-s", f"http://127.0.0.1:{web}/"], check=True,
                   capture_output=True)  # fmt: skip


@contextlib.contextmanager
def streaming(running, path, *who):
    """Somebody's stream, begun when the block is: an iterator over its lines."""
    command = [*who, *curl(running, path, "-N", "-D", "-", "--max-time", "30")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        try:
            head = list(iter(reader.stdout.readline, "\n"))
            assert " 200 " in head[0]
            assert "Content-Type: application/x-ndjson\n" in head
            yield (line for line in reader.stdout if line != "\n")
        finally:
            reader.kill()


def schema_of(path, status, kind, method="get"):
    found = API["paths"][path][method]["responses"][str(status)]
    if "$ref" in found:
        found = API["components"]["responses"]["Error"]
    assert kind.partition(";")[0] in found["content"]
    (content,) = found["content"].values()
    return {**content["schema"], "components": API["components"]}


def answer_fits(path, status, kind, body, method="get"):
    schema = schema_of(path, status, kind, method)
    jsonschema.Draft202012Validator(schema).validate(json.loads(body))


@pytest.mark.parametrize(
    "path", [path for path in API["paths"] if "{" not in path and path != "/metrics"]
)
def test_answers_fit_the_document(running, web, path):
    visit(web)
    answer_fits(path, *ask(running, path + "?no=1"))
    if path != "/v1/stream":
        answer_fits(path, *ask(running, path))
        return
    with streaming(running, path) as lines:
        visit(web)
        answer_fits(path, 200, "application/x-ndjson", next(lines))


def test_metrics_fit_the_document(running, web):
    visit(web)
    status, kind, text = ask(running, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    jsonschema.Draft202012Validator(schema_of("/metrics", status, kind)).validate(text)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ended = {
        (sample.labels["comm"], sample.labels["state"]): sample.value
        for sample in families["conmond_connections"].samples
    }
    assert ended["curl", "closed"] >= 1
    assert families["conmond_connect_duration_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())
    answer_fits("/metrics", *ask(running, "/metrics", who=STRANGER))
    answer_fits("/metrics", *ask(running, "/metrics?%ff"))


def test_a_record_is_there_at_once(client, running, web):
    done = subprocess.run(["curl", "-s", "-w", "%{local_port}", f"http://127.0.0.1:{web}/"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    port = int(done.stdout.removeprefix("hello"))
    found = [r for r in client.records(since="1m", comm="curl") if r.lport == port]
    assert len(found) == 1
    assert client.record(found[0].id) == found[0]
    jsonschema.Draft202012Validator(RECORD).validate(found[0].to_dict())
    answer_fits("/v1/records/{id}", *ask(running, f"/v1/records/{found[0].id}"))
    page = json.loads(get(running, "/v1/records?limit=1")[1])
    assert page["source"] == "history"


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


EVICTED = 1031  # more than are kept in memory
ROOTS = f"""
import socket, sys
open("/proc/self/comm", "w").write("{MARK}")
web, failures = map(int, sys.argv[1:])
kept, closed = (socket.create_connection(("127.0.0.1", web)) for _ in range(2))
print(*(sock.getsockopt(socket.SOL_SOCKET, 57, 8)[::-1].hex() for sock in (kept, closed)))
closed.shutdown(socket.SHUT_WR)
closed.recv(1)  # the other end has closed, too: it has ended before what follows
closed.close()
for _ in range(failures):
    try: socket.create_connection(("127.0.0.1", 1))
    except ConnectionRefusedError: pass
print("ready", flush=True)
for line in sys.stdin:
    socket.create_connection(("127.0.0.1", web)).close()
"""


@pytest.fixture(scope="module")
def secret(running, web):
    """A process of root's: one connection open, one that only the history still knows."""
    visit(web, *STRANGER)
    command = [sys.executable, "-c", ROOTS, str(web), str(EVICTED)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        cookies = [int(word, 16) for word in process.stdout.readline().split()]
        assert process.stdout.readline() == "ready\n"
        running.wait_for(lambda record: record["pid"] == process.pid, EVICTED + 1)
        yield process, *cookies
        process.stdin.close()


def listings(web):
    """Every path that lists, as it may be asked, and whether root's process is in the answer."""
    yield "/v1/connections", True
    yield "/v1/connections?uid=0", True
    yield f"/v1/connections?comm={MARK}", True
    yield "/v1/records", True
    for query in ("uid=0", f"comm={MARK}", "failed=1", "order=oldest&limit=1000", "since=1h",
                  f"comm={MARK}&before=999999999", "host=127.0.0.1"):  # fmt: skip
        yield f"/v1/records?{query}", MARK in query
    for by in ("process", "comm"):
        yield f"/v1/processes?by={by}", True
        yield f"/v1/processes?by={by}&since=5m&uid=0", True
    for by in ("unit", "container", "uid", "host"):
        yield f"/v1/processes?by={by}", False
    yield "/v1/doctor", False
    yield "/v1/openapi.json", False
    yield "/metrics", True


def asked_of(secret, client):
    """Every path that names one connection of root's."""
    _, opened, closed = secret
    for cookie in (opened, closed):
        yield f"/v1/take/{cookie}"
        yield f"/v1/records/{client.take(cookie).id}"


def test_every_path_of_the_document_is_tried_by_the_stranger(secret, client, web):
    tried = {path.partition("?")[0] for path, _ in listings(web)}
    tried |= {path.rpartition("/")[0] + "/{" for path in asked_of(secret, client)}
    document = {path.partition("{")[0] + "{" * ("{" in path) for path in API["paths"]}
    assert document - tried == {"/v1/stream", "/v1/deep/{"}  # each has a test of its own


def test_a_stranger_sees_only_their_own(running, client, web, secret):
    process, opened, closed = secret
    identifiers = [client.take(cookie).id for cookie in (opened, closed)]
    private = (MARK, *identifiers, f'"pid":{process.pid},', '"uid":0,')
    for path, _ in listings(web):
        status, _, body = ask(running, path, who=STRANGER)
        assert status == (403 if path == "/metrics" else 200), path
        assert not [word for word in private if word in body], path
    for path in asked_of(secret, client):
        assert ask(running, path, who=STRANGER)[0] == 404, path
        assert ask(running, path, "-I", who=STRANGER)[0] == 404, path
    assert json.loads(get(running, "/v1/connections", STRANGER)[1])["total"] == 0
    for path in ("/v1/records", "/v1/processes"):
        answer = json.loads(get(running, path, STRANGER)[1])
        assert {row["uid"] for row in answer[path.removeprefix("/v1/")]} == {NOBODY}
    assert json.loads(get(running, "/v1/records", STRANGER)[1])["source"] == "history"
    doctor = json.loads(get(running, "/v1/doctor", STRANGER)[1])
    assert doctor["privileged"] is False
    assert doctor["libraries"] is doctor["records"] is doctor["open"] is doctor["stats"] is None


def test_a_stranger_sees_nothing_of_what_was_evicted_or_just_closed(running, client, web, secret):
    newest = json.loads(get(running, "/v1/records?limit=1000")[1])
    assert newest["source"] == "history"
    _, _, closed = secret
    # the oldest of root's process: it is no longer in memory, or this test tests nothing
    assert client.take(closed).id not in {row["id"] for row in newest["records"]}
    with socket.create_connection(("127.0.0.1", web)) as sock:
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder)
        ours = client.take(cookie)
        paths = (f"/v1/take/{cookie}", f"/v1/records/{ours.id}")
        assert [get(running, path, STRANGER)[0] for path in paths] == [404, 404]
    running.wait_for(lambda record: record["id"] == ours.id)
    assert [get(running, path, STRANGER)[0] for path in paths] == [404, 404]
    assert [get(running, path, MEMBER)[0] for path in paths] == [200, 200]


@pytest.mark.parametrize("query", ["", "?live=1"])
def test_a_strangers_stream_has_nothing_of_root(running, web, secret, query):
    process, *_ = secret
    with (
        streaming(running, f"/v1/stream{query}", *STRANGER) as strangers,
        streaming(running, f"/v1/stream{query}", *MEMBER) as members,
    ):
        process.stdin.write("\n")
        process.stdin.flush()
        assert any(MARK in line for line in members)
        visit(web, *STRANGER)
        first = json.loads(next(strangers))
        assert (first["comm"], first["uid"]) == ("curl", NOBODY)


def test_a_stranger_who_asks_for_roots_stream_gets_nothing(running, secret):
    process, *_ = secret
    command = [*STRANGER, *curl(running, "/v1/stream?uid=0&live=1", "-N", "--max-time", "1")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stranger,
        streaming(running, f"/v1/stream?comm={MARK}&live=1", *MEMBER) as members,
    ):
        while stranger.poll() is None:
            process.stdin.write("\n")
            process.stdin.flush()
            assert MARK in next(members)
        assert stranger.returncode == 28  # its time was up
        assert stranger.stdout.read() == ""


def test_deep_is_for_root_and_the_process_s_own_user(running, client, secret):
    process, *_ = secret
    path = f"/v1/deep/{process.pid}"
    for who in (STRANGER, MEMBER):
        status, kind, body = ask(running, path, "-X", "POST", who=who)
        assert status == 403
        answer_fits("/v1/deep/{pid}", status, kind, body, "post")
        assert MARK not in body
        assert ask(running, path, "-I", who=who)[0] == 405


def test_a_member_of_the_group_sees_all(running, client, web, secret):
    for path, listed in listings(web):
        status, _, body = ask(running, path, who=MEMBER)
        assert status == 200, path
        assert MARK in body or not listed, path
    for path in asked_of(secret, client):
        assert MARK in get(running, path, MEMBER)[1], path
    assert json.loads(get(running, "/v1/doctor", MEMBER)[1])["privileged"] is True


def test_head_has_the_status_of_get_and_no_body(running, client, web, secret):
    for path in (*(path for path, _ in listings(web)), *asked_of(secret, client), "/v1/no"):
        for who in ((), STRANGER):
            done = subprocess.run(
                [*who, *curl(running, path, "-I")], capture_output=True, text=True, check=True
            )
            head, _, body = done.stdout.partition("\n\n")
            assert int(head.split()[1]) == get(running, path, who)[0], path
            assert body == "", path
    done = subprocess.run(curl(running, "/v1/stream", "-I"), capture_output=True, check=True)
    assert done.stdout.startswith(b"HTTP/1.1 200 ")


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
    b"HEAD /v1/no HTTP/1.1\r\nHost: c\r\n\r\n",
    b"HEAD /v1/records?before=zzz HTTP/1.1\r\nHost: c\r\n\r\n" * 3,
    b"GET /v1/no HTTP/1.1\r\nHost:c\r\n\r\n" * 40,
    b"CONNECT c:80 HTTP/1.1\r\nHost: c\r\n\r\n",
)
# The long form takes half a minute: CONMOND_HOSTILE=100000
HOSTILE_CLIENTS = int(os.environ.get("CONMOND_HOSTILE", "30000"))


def test_hostile_clients_cost_nothing(client, running, web):
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
                    if head.startswith(b"HTTP/1.1 4") and body.startswith(b"{"):
                        assert json.loads(body.split(b"\n")[0])["error"], got
                    else:
                        assert HOSTILE[number % len(HOSTILE)].startswith(b"HEAD"), got
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
