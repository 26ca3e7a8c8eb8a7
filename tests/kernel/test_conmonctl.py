"""conmonctl against a running conmond, as people use it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jsonschema
import pytest
from textual.widgets import DataTable, Static

import conmon
from monitor.cli.conmonctl import make_parser
from monitor.cli.ctl.commands import _doctor_lines, tail
from monitor.cli.ctl.top import Top
from tests.lab.daemon import ROOT, Daemon

API = json.loads((ROOT / "monitor/api/openapi.json").read_text())
DOCTOR = API["paths"]["/v1/doctor"]["get"]["responses"]["200"]["content"]["application/json"][
    "schema"
]
pytestmark = pytest.mark.kernel("curl", "setpriv")


@pytest.fixture(scope="module")
def running():
    daemon = Daemon("--json")
    yield daemon
    daemon.stop()


def ctl(running, *words, check=0):
    done = subprocess.run(
        [sys.executable, "-m", "monitor.cli.conmonctl", *words, "--socket", running.socket],
        cwd=ROOT, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def refused(running):
    subprocess.run(["curl", "-s", "http://127.0.0.1:1/"], check=False)
    (record,) = running.wait_for(lambda r: r["comm"] == "curl" and r["rport"] == 1)
    return record


def test_ps(running, refused):
    text = ctl(running, "ps", "--comm", "curl").stdout
    head, row = text.splitlines()
    assert head.split()[:3] == ["PID", "COMM", "USER"]
    assert row.split()[:6] == [str(refused["pid"]), "curl", "root", "0", "1", "1"]
    answer = json.loads(ctl(running, "ps", "--json", "--by", "comm", "--since", "5m").stdout)
    assert {row["comm"]: row["failures"] for row in answer["processes"]}["curl"] == {
        "ECONNREFUSED": 1
    }


def test_show_says_why_it_failed(running, refused):
    text = ctl(running, "show", refused["id"]).stdout
    assert "failed: ECONNREFUSED" in text
    assert "127.0.0.1 refused" in text
    assert json.loads(ctl(running, "show", refused["id"], "--json").stdout) == refused
    assert "no record has this id" in ctl(running, "show", "00000000-0", check=1).stderr


def test_conns_and_doctor(running):
    assert ctl(running, "conns").stdout.startswith("PID")
    assert "hook inet_sock_set_state: attached" in ctl(running, "doctor").stdout
    assert json.loads(ctl(running, "doctor", "--json").stdout)["lost_total"] == 0


def test_the_doctor_tells_a_stranger_nothing_of_others(running, refused, tmp_path):
    historied = Daemon("--json", "--state-dir", str(tmp_path), history=True)
    try:
        for daemon in (running, historied):
            done = subprocess.run(
                ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                 "curl", "-s", "--unix-socket", daemon.socket, "http://c/v1/doctor"],
                capture_output=True, text=True, check=True, timeout=10,
            )  # fmt: skip
            answer = json.loads(done.stdout)
            jsonschema.Draft202012Validator(DOCTOR).validate(answer)
            everybodys = [answer[key] for key in ("lost", "lost_total", "clients", "libraries",
                                                  "records", "open", "stats")]  # fmt: skip
            everybodys += [fill["entries"] for fill in answer["maps"]]
            everybodys += [v for k, v in (answer["history"] or {}).items() if k != "enabled"]
            assert set(everybodys) == {None}
            assert "/" not in "".join(answer["unseen"])
            assert [line for line in _doctor_lines(answer) if line.startswith("maps, lost")]
            own = conmon.Daemon(daemon.socket).doctor()
            jsonschema.Draft202012Validator(DOCTOR).validate(own)
            assert None not in (own["lost_total"], own["clients"], own["maps"][0]["entries"])
    finally:
        historied.stop()


def test_tail_shows_what_was_and_what_comes(running, refused):
    process = subprocess.Popen(
        [sys.executable, "-m", "monitor.cli.conmonctl", "tail", "--failed", "--since", "1h",
         "--comm", "curl", "--socket", running.socket], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        # where the tests run in the background, Ctrl-C is ignored by all that they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert "FAILED ECONNREFUSED" in process.stdout.readline()
        subprocess.run(["curl", "-s", "http://127.0.0.1:1/"], check=False)
        assert "curl[" in process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130
        process.stdout.close()


class EndsMeanwhile(conmon.Daemon):
    """One connection ends before the last page of the backlog is read, one after it."""

    def records(self, **parameters):
        subprocess.run([self.program, "-s", "http://127.0.0.1:1/first"], check=False)
        yield from super().records(**parameters)
        subprocess.run([self.program, "-s", "http://127.0.0.1:1/second"], check=False)


@pytest.mark.parametrize("as_json", [True, False])
def test_tail_loses_nothing_that_ends_while_it_reads_what_was(capsys, tmp_path, as_json):
    comm = "tailed"
    (tmp_path / comm).symlink_to(shutil.which("curl"))
    daemon = Daemon("--json")
    asked = EndsMeanwhile(daemon.socket)
    asked.program = tmp_path / comm
    words = ["tail", "--since", "1h", "--comm", comm, *(["--json"] if as_json else [])]
    stop = threading.Thread(
        target=lambda: (daemon.wait_for(lambda r: r["comm"] == comm, 2), time.sleep(1),
                        daemon.stop())
    )  # fmt: skip
    stop.start()
    try:
        with pytest.raises(conmon.DaemonUnreachable):
            tail(asked, make_parser().parse_args(words))
    finally:
        stop.join()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 2
    if as_json:
        ids = [json.loads(line)["id"] for line in lines]
        assert ids == [r["id"] for r in daemon.records(lambda r: r["comm"] == comm)]


def test_output_that_cannot_be_written_is_one_sentence(running, refused):
    with open("/dev/full", "wb") as full:
        for words in (["tail", "--json", "--since", "1h"], ["ps"], ["doctor"]):
            done = subprocess.run(
                [sys.executable, "-m", "monitor.cli.conmonctl", *words,
                 "--socket", running.socket],
                cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False,
            )  # fmt: skip
            assert done.returncode == 1
            assert done.stderr == "conmonctl: cannot go on: No space left on device\n"


def test_exit_codes(running, tmp_path):
    words = [sys.executable, "-m", "monitor.cli.conmonctl"]
    done = subprocess.run([*words, "ps", "--socket", str(tmp_path / "none")],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 3
    assert "is it running?" in done.stderr
    ctl(running, "ps", "--since", "yesterday", check=2)
    ctl(running, "ps", "--sort", "bogus", check=2)
    ctl(running, "tail", "--slow", "abc", check=2)
    # these are for the daemon to refuse
    assert "and at most 3600 s" in ctl(running, "deep", "--pid", "1", "--for", "2h", check=2).stderr
    assert "percent" in ctl(running, "deep", "--pid", "1", "--most", "all", check=2).stderr
    ctl(running, "ps", "--by", "moon", check=2)
    ctl(running, "frobnicate", check=2)


def test_a_reader_that_goes_away_is_no_error(running):
    command = f"{sys.executable} -m monitor.cli.conmonctl doctor --socket {running.socket} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stderr == ""


def test_probe_and_conns_need_no_daemon(running, tmp_path):
    words = [sys.executable, "-m", "monitor.cli.conmonctl"]
    done = subprocess.run([*words, "probe", "--json", "tcp://127.0.0.1:1"], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    mine = json.loads(done.stdout)
    (theirs,) = running.wait_for(lambda record: record["pid"] == mine["pid"])
    assert mine["error"] == theirs["error"] == "ECONNREFUSED"
    assert "STATE" in ctl(running, "conns", "--userspace").stdout
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        with sock:
            lines = ctl(running, "conns", "--userspace", "--json").stdout.splitlines()
            (row,) = [r for r in map(json.loads, lines) if r["lport"] == sock.getsockname()[1]]
    assert (row["source"], row["sockconn_us"]) == ("psutil", None)


class Screen:
    """What top shows, read from its widgets."""

    def __init__(self, app, pilot):
        self.app, self.pilot = app, pilot

    def rows(self):
        table = self.app.screen.query_one(DataTable)
        return [[str(cell) for cell in table.get_row_at(i)] for i in range(table.row_count)]

    def words(self):
        return " ".join(str(static.render()) for static in self.app.screen.query(Static))

    async def until(self, what, seconds=8.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if what():
                return
            await self.pilot.pause(0.05)
        raise AssertionError(f"{self.words()}\n{self.rows() if self.app.is_running else None}")


def drive(daemon, script, size=(100, 30), **filters):
    async def run():
        app = Top(conmon.Daemon(daemon.socket), filters)
        async with app.run_test(size=size) as pilot:
            await script(Screen(app, pilot), pilot)

    asyncio.run(run())


def test_top_goes_from_all_to_one_record_and_back(running, refused):
    async def script(screen, pilot):
        await screen.until(lambda: any(row[:2] == [str(refused["pid"]), "curl"]
                                       for row in screen.rows()))  # fmt: skip
        await pilot.press("g")
        await screen.until(lambda: "by comm" in screen.words())
        await screen.until(lambda: any(row[0] == "curl" for row in screen.rows()))
        await pilot.press("slash", *"no such")
        await screen.until(lambda: screen.rows() == [])
        await pilot.press("escape")
        await screen.until(lambda: any(row[0] == "curl" for row in screen.rows()))
        await pilot.press("slash", *"rl", "enter")
        await screen.until(lambda: [row[0] for row in screen.rows()] == ["curl"])
        assert "with 'rl'" in screen.words()
        await pilot.press("enter")
        await screen.until(lambda: any(row[1] == "ECONNREFUSED" for row in screen.rows()))
        states = [row[1] for row in screen.rows()]
        await pilot.press(*["down"] * states.index("ECONNREFUSED"))  # another curl may be newer
        await pilot.press("enter")
        await screen.until(lambda: "refused" in screen.words())
        await pilot.press("escape", "escape")
        await pilot.press("w", "s")
        await screen.until(lambda: "last 1m, open first" in screen.words())
        await pilot.press("space")
        await screen.until(lambda: "FROZEN" in screen.words())
        await pilot.press("question_mark")
        await screen.until(lambda: "whole" in screen.words() or "freeze" in screen.words())

    drive(running, script)


def test_top_shows_the_newest_of_many(running):
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        made = [socket.create_connection(server.getsockname()) for _ in range(107)]
        client = conmon.Daemon(running.socket)
        first, last = (conmon.take(sock, path=client.path).id for sock in (made[0], made[-1]))

        async def script(screen, pilot):
            await screen.until(lambda: screen.rows())
            await pilot.press("enter")
            await screen.until(lambda: last in getattr(screen.app.screen, "records", ()))
            assert next(iter(screen.app.screen.records)) == last
            assert first not in screen.app.screen.records

        drive(running, script, pid=os.getpid())
        for sock in made:
            sock.close()


def test_top_says_when_the_daemon_is_gone(tmp_path):
    daemon = Daemon("--json")

    async def script(screen, pilot):
        await screen.until(lambda: "by process" in screen.words())
        daemon.stop()
        await screen.until(lambda: "trying again" in screen.words())

    drive(daemon, script, size=(80, 24))


def test_top_without_a_terminal_is_a_usage_error(running):
    assert "needs a terminal" in ctl(running, "top", check=2).stderr
