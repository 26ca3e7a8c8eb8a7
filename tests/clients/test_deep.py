"""`deep`: what one process says inside TLS, in its library, against what the server was asked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import jsonschema
import pytest

import conmon
from tests.clients.expectations import Within
from tests.lab import world
from tests.lab.daemon import ROOT, of_pids
from tests.lab.netns import CLEAN_ENV
from tests.lab.programs import PYTHON
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("gnutls-cli", "ip", "nghttpd", "node", "setpriv")

API = json.loads((ROOT / "monitor/api/openapi.json").read_text())
ANSWER_S = 0.080
# Each waits for a line before it asks: HOST PORT CA. One connection, kept.
BLOCKING = """
import http.client, ssl, sys
host, port, ca = sys.argv[1:]
kept = http.client.HTTPSConnection(host, int(port), context=ssl.create_default_context(cafile=ca))
print("ready", flush=True)
for line in sys.stdin:
    method, path = line.split()
    kept.request(method, path)
    kept.getresponse().read()
    print("done", flush=True)
"""
ASYNCIO = r"""
import asyncio, re, ssl, sys
host, port, ca = sys.argv[1:]
async def main():
    context = ssl.create_default_context(cafile=ca)
    kept = None
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        method, path = line.split()
        if kept is None:
            kept = await asyncio.open_connection(host, int(port), ssl=context)
        reader, writer = kept
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if method != "HEAD" and length:
            await reader.readexactly(int(length[1]))
        print("done", flush=True)
    kept[1].close()
asyncio.run(main())
"""
NODE = """
const https = require("https"), [host, port, ca] = process.argv.slice(1);
const agent = new https.Agent({keepAlive: true, maxSockets: 1});
const lines = require("readline").createInterface({input: process.stdin});
lines.on("line", line => {
    const [method, path] = line.split(" ");
    https.request({host, port, method, path, agent, ca: require("fs").readFileSync(ca)}, answer => {
        answer.resume();
        answer.on("end", () => console.log("done"));
    }).end();
});
lines.on("close", () => process.exit());
console.log("ready");
"""
HTTP2 = """
const [host, port, ca] = process.argv.slice(1);
let kept = null;
const lines = require("readline").createInterface({input: process.stdin});
lines.on("line", line => {
    const [method, path] = line.split(" ");
    const options = {ca: require("fs").readFileSync(ca)};
    kept = kept || require("http2").connect(`https://${host}:${port}`, options);
    const asked = kept.request({":method": method, ":path": path});
    asked.resume();
    asked.on("end", () => console.log("done"));
});
lines.on("close", () => process.exit());
console.log("ready");
"""
PROGRAMS = {
    "python": [PYTHON, "-c", BLOCKING],
    "asyncio": [PYTHON, "-c", ASYNCIO],
    "node": ["node", "-e", NODE],
}
ASKED = [("GET", "/", 200), ("HEAD", "/status/404", 404), ("POST", "/status/204", 204)]


class Told(threading.Thread):
    """What `deep` tells of a process, collected."""

    def __init__(self, watch, pid, **parameters):
        super().__init__(daemon=True)
        self.items = []
        self.begun = threading.Event()
        self._answer = conmon.Daemon(watch.daemon.socket).deep(pid, **parameters)
        self.start()
        assert self.begun.wait(10)

    def run(self):
        for item in self._answer:
            self.items.append(item)
            self.begun.set()

    def of(self, kind):
        return [item for item in self.items if item["kind"] == kind]

    def wait_for(self, kind, count, timeout_s=5.0):
        until = time.monotonic() + timeout_s
        while len(self.of(kind)) < count and time.monotonic() < until:
            time.sleep(0.02)
        assert len(self.of(kind)) >= count, self.items
        return self.of(kind)


class Asker:
    """A program that makes the requests it is told on its stdin."""

    def __init__(self, lab, argv):
        self._process = lab.here.popen(argv, stdin=subprocess.PIPE)
        self.pid = self._process.pid
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, method, path):
        self._process.stdin.write(f"{method} {path}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self):
        _, said = self._process.communicate(timeout=10)
        assert not self._process.returncode, said


@pytest.fixture
def site(lab):
    return lab.serve(Behaviour(tls=lab.tls("1.3"), response_delay_s=ANSWER_S), world.NEAR4)


def asker(lab, name, site):
    return Asker(lab, [*PROGRAMS[name], world.NEAR4, str(site.port), str(lab.ca_file)])


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_every_turn_is_told_and_the_record_has_the_first(lab, watch, site, program):
    client = asker(lab, program, site)
    told = Told(watch, client.pid, for_="30s")
    for method, path, _ in ASKED:
        client.ask(method, path)
    turns = told.wait_for("turn", len(ASKED))
    client.close()
    told.join(10)
    end = told.of("end")[0]
    assert end["why"] == "process"
    assert (end["turns"], end["untold"]) == (len(ASKED), 0)
    [record] = watch.daemon.wait_for(of_pids([client.pid]))
    for turn, (method, _, status) in zip(turns, ASKED, strict=True):
        assert turn["prot_specific"] == {
            "protocol": "http", "resp": status, "method": method, "version": "1.1",
        }  # fmt: skip
        assert turn["us"] == Within(ANSWER_S * 1e6)
        assert (turn["id"], turn["raddr"], turn["rport"]) == (
            record["id"], world.NEAR4, site.port,
        )  # fmt: skip
    assert record["prot_specific"] == turns[0]["prot_specific"]
    assert record["tls"]["result"] == "ok"


def test_gnutls_and_a_request_in_pieces(lab, watch, site):
    client = lab.here.popen(
        ["gnutls-cli", "--x509cafile", str(lab.ca_file), "-p", str(site.port), world.NEAR4],
        stdin=subprocess.PIPE,
    )
    while "Handshake was completed" not in client.stdout.readline():
        pass
    told = Told(watch, client.pid, for_="30s")
    for line in ("GET /status/404 HTTP/1.1", f"Host: {world.NEAR4}", "Connection: close", ""):
        client.stdin.write(f"{line}\r\n")
        client.stdin.flush()
        time.sleep(0.05)
    [turn] = told.wait_for("turn", 1)
    client.communicate(timeout=10)
    told.join(10)
    [record] = watch.daemon.wait_for(of_pids([client.pid]))
    assert record["tls"]["source"] == "gnutls"
    assert record["id"] == turn["id"]
    assert (turn["prot_specific"]["method"], turn["prot_specific"]["resp"]) == ("GET", 404)
    assert record["prot_specific"] == turn["prot_specific"]


def test_http2_by_its_first_request(lab, watch, tmp_path):
    server = lab.here.popen(
        ["nghttpd", "-d", str(tmp_path), "-a", world.NEAR4, "8712",
         str(lab.trusted.key), str(lab.trusted.cert)]
    )  # fmt: skip
    try:
        lab.here.call(lambda: wait_for_port(world.NEAR4, 8712))
        client = Asker(lab, ["node", "-e", HTTP2, world.NEAR4, "8712", str(lab.ca_file)])
        told = Told(watch, client.pid, for_="30s")
        client.ask("GET", "/nothing")
        [turn] = told.wait_for("turn", 1)
        client.close()
    finally:
        server.kill()
        server.communicate()
    [record] = watch.daemon.wait_for(of_pids([client.pid]))
    assert turn["prot_specific"] == {
        "protocol": "http", "resp": 404, "method": "GET", "version": "2",
    }  # fmt: skip
    assert (record["id"], record["prot_specific"]) == (turn["id"], turn["prot_specific"])


def wait_for_port(address, port):
    for _ in range(100):
        try:
            socket.create_connection((address, port)).close()
            return
        except OSError:
            time.sleep(0.05)


def test_a_connection_that_was_open_before(lab, watch, site):
    client = asker(lab, "python", site)
    client.ask("GET", "/")
    told = Told(watch, client.pid, for_="30s")
    client.ask("GET", "/status/503")
    [turn] = told.wait_for("turn", 1)
    assert turn["prot_specific"]["resp"] == 503
    daemon = conmon.Daemon(watch.daemon.socket)
    assert daemon.record(turn["id"]).prot_specific["resp"] == 503  # while it is open
    client.close()
    [record] = watch.daemon.wait_for(of_pids([client.pid]))
    assert (record["id"], record["prot_specific"]["resp"]) == (turn["id"], 503)


def test_it_ends_by_itself_and_leaves_nothing(lab, watch, site):
    client = asker(lab, "python", site)
    told = Told(watch, client.pid, for_="1.4s")
    told.join(5)
    [end] = told.of("end")
    assert end["why"] == "time"
    assert 1.4 <= end["seconds"] < 2
    assert told.of("cost")
    client.ask("GET", "/")
    client.close()
    [record] = watch.daemon.wait_for(of_pids([client.pid]))
    assert record["prot_specific"] is None
    assert [item["kind"] for item in told.items].count("turn") == 0


def test_it_ends_with_its_reader(lab, watch, site):
    client = asker(lab, "python", site)
    reading = conmon.Daemon(watch.daemon.socket).deep(client.pid, for_="60s")
    assert next(reading)["kind"] == "begin"
    with pytest.raises(conmon.DaemonError, match="is being read already"):
        next(conmon.Daemon(watch.daemon.socket).deep(client.pid))
    reading.close()
    again = None
    for _ in range(50):
        time.sleep(0.1)
        try:
            again = Told(watch, client.pid, for_="0.2s")
            break
        except AssertionError:
            continue
    assert again is not None
    client.close()


def test_only_what_is_asked_for_is_probed(lab, watch, site):
    clients = [asker(lab, "python", site) for _ in range(2)]
    told = Told(watch, clients[0].pid, for_="30s")
    for client in clients:
        client.ask("GET", "/")
    told.wait_for("turn", 1)
    for client in clients:
        client.close()
    told.join(10)
    assert told.of("end")[0]["turns"] == 1
    [other] = watch.daemon.wait_for(of_pids([clients[1].pid]))
    assert other["prot_specific"] is None


def test_what_cannot_be_read_is_one_sentence(lab, watch):
    daemon = conmon.Daemon(watch.daemon.socket)
    with pytest.raises(conmon.NotFound, match="there is no process"):
        next(daemon.deep(0x7FFFFFFE))
    sleeper = lab.here.popen(["sleep", "60"])
    try:
        with pytest.raises(conmon.DaemonAnswerError, match="uses neither OpenSSL nor GnuTLS"):
            next(daemon.deep(sleeper.pid))
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_conmonctl_shows_turns_and_what_they_cost(lab, watch, site):
    client = asker(lab, "python", site)
    shown = subprocess.Popen(
        [sys.executable, "-m", "monitor.cli.conmonctl", "deep", "--socket", watch.daemon.socket,
         "--pid", str(client.pid), "--for", "30s"],
        cwd=ROOT, env=CLEAN_ENV, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = shown.stdout.readline()
    assert f"[{client.pid}] for 30 s" in first
    client.ask("GET", "/status/418")
    client.close()
    text, _ = shown.communicate(timeout=10)
    assert "http 1.1 GET 418" in text
    assert "1 turns; " in text and "% of a CPU" in text
    assert "ended: the process ended" in text
    assert shown.returncode == 0


def test_another_user_may_read_only_their_own(lab, watch, site):
    client = asker(lab, "python", site)
    script = (
        "import os, sys, conmon\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    next(conmon.Daemon(sys.argv[1]).deep(int(sys.argv[2])))\n"
        "except conmon.NotPermitted as exc:\n    print(exc)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, watch.daemon.socket, str(client.pid)],
        cwd=ROOT, env=CLEAN_ENV, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    client.close()
    assert "only root and its own user" in done.stdout, done.stderr


# Reads a process as nobody: prints what is told, or why nothing is.
AS_NOBODY = """
import json, os, sys, conmon
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    for item in conmon.Daemon(sys.argv[1]).deep(int(sys.argv[2]), for_="20s"):
        print(json.dumps(item), flush=True)
except conmon.NotPermitted as exc:
    print(exc)
"""
NOBODYS = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c"]


def read_as_nobody(watch, pid):
    return subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY, watch.daemon.socket, str(pid)],
        cwd=ROOT, env=CLEAN_ENV, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_users_process_that_becomes_roots_is_read_no_further(lab, watch):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        program = f"{folder}/sleep"
        shutil.copy("/usr/bin/sleep", program)
        os.chmod(program, 0o4755)
        script = (
            "import os, ssl, sys\nprint('ready', flush=True)\nsys.stdin.readline()\n"
            f"os.execv({program!r}, ['sleep', '30'])"
        )
        client = Asker(lab, [*NOBODYS, script])
        reader = read_as_nobody(watch, client.pid)
        try:
            assert json.loads(reader.stdout.readline())["kind"] == "begin"
            client._process.stdin.write("\n")
            client._process.stdin.flush()
            last = json.loads(reader.communicate(timeout=10)[0].splitlines()[-1])
            assert (last["kind"], last["why"]) == ("end", "user")
        finally:
            client._process.kill()
            client._process.communicate()


def test_what_keeps_its_user_out_is_roots_to_read(lab, watch):
    script = (
        "import ctypes, ssl, sys\nctypes.CDLL(None).prctl(4, 0)\nprint('ready', flush=True)\n"
        "sys.stdin.readline()"
    )
    client = Asker(lab, [*NOBODYS, script])
    said, _ = read_as_nobody(watch, client.pid).communicate(timeout=10)
    assert "only root and its own user" in said
    told = Told(watch, client.pid, for_="0.2s")
    told.join(5)
    assert told.of("end")[0]["why"] == "time"
    client.close()


def test_json_is_one_object_a_line(lab, watch, site):
    client = asker(lab, "node", site)
    done = subprocess.run(
        [sys.executable, "-m", "monitor.cli.conmonctl", "deep", "--socket", watch.daemon.socket,
         "--pid", str(client.pid), "--for", "1.5s", "--json"],
        cwd=ROOT, env=CLEAN_ENV, capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    client.close()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    schema = {"$ref": "#/components/schemas/DeepLine", "components": API["components"]}
    for line in lines:
        jsonschema.Draft202012Validator(schema).validate(line)
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "begin"
    assert kinds[-1] == "end"
    assert "cost" in kinds
