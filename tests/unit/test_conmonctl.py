"""conmonctl's command line where no daemon is asked: wrong values, and where output cannot go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conmon import BadRequest, Daemon, cli
from monitor.api import routes
from monitor.cli import conmonctl

ROOT = Path(__file__).resolve().parents[2]
CTL = [sys.executable, "-m", "monitor.cli.conmonctl"]


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        ("ps --sort bogus", "bogus"),
        ("ps --since yesterday", "'yesterday': it must be a duration such as 5m, or a time"),
        ("tail --since 2026-13-01", "2026-13-01"),
        ("tail --slow abc", "'abc': it must be a duration"),
        ("tail --slow 300w9", "300w9"),
        ("ps --pid 9999999999", "is not the id of a process"),
        ("ps --pid 0", "is not the id of a process"),
        ("conns --uid 9999999999", "whole number"),
        ("conns --uid no-such-user-here", "there is no user"),
        ("conns --limit -1", "--limit"),
        ("deep --pid 1 --for soon", "'soon'"),
        ("deep --pid 99999999999999", "is not the id of a process"),
    ],
)
def test_a_wrong_value_is_usage(capsys, arguments, about):
    with pytest.raises(SystemExit) as stop:
        conmonctl.main(arguments.split())
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert about in err


def test_what_the_daemon_refuses_is_usage(monkeypatch, capsys):
    def refuse(self, path, **parameters):
        raise BadRequest("most must be percent of one CPU, such as 25")

    monkeypatch.setattr(Daemon, "get", refuse)
    assert conmonctl.main(["ps"]) == 2
    assert capsys.readouterr().err == "conmonctl: most must be percent of one CPU, such as 25\n"


LONG = "a-name-that-the-kernel-cuts"
HELD = [
    {"pid": pid, "comm": comm, "uid": uid, "laddr": "127.0.0.1", "lport": 1000,
     "raddr": "127.0.0.2", "rport": 443, "tcp_state": "ESTABLISHED"}
    for pid, comm, uid in ((1, "one", 0), (2, "two", 0), (3, "two", 7), (4, LONG, 7),
                           (None, None, None))
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "pids"),
    [
        ("", [1, 2, 3, 4, None]),
        ("--pid 2", [2]),
        ("--comm two", [2, 3]),
        ("--comm tw", []),
        (f"--comm {LONG}", [4]),
        (f"--comm {LONG[:15]}", [4]),  # as conmond has it
        ("--uid 7", [3, 4]),
        ("--uid 0 --comm two", [2]),
        ("--limit 2", [1, 2]),
        ("--limit 1 --uid 7", [3]),
        ("--limit 0", [1, 2, 3, 4, None]),
    ],
)
def test_what_the_system_tells_is_chosen_from(monkeypatch, capsys, words, pids):
    monkeypatch.setattr(cli, "userspace_connections", lambda: HELD)
    assert conmonctl.main(["conns", "--userspace", "--json", *words.split()]) == 0
    out = capsys.readouterr().out
    assert [json.loads(line)["pid"] for line in out.splitlines()] == pids
    assert conmonctl.main(["conns", "--userspace", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + len(pids)
    assert ("more; --limit 0 shows all" in err) == (words in ("--limit 2", "--limit 1 --uid 7"))


@pytest.mark.parametrize("what", ["unit", "container", "host"])
def test_what_the_system_does_not_tell_is_usage(monkeypatch, capsys, what):
    monkeypatch.setattr(cli, "userspace_connections", lambda: HELD)
    assert conmonctl.main(["conns", "--userspace", f"--{what}", "x"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"--{what}" in err


def test_what_can_be_sorted_by_is_what_the_daemon_knows():
    assert conmonctl.SORTS == routes._SORT


PRINTS = ["man", "completion bash", "--help", "--version", "ps --help",
          "probe --json tcp://127.0.0.1:1"]  # fmt: skip


@pytest.mark.parametrize("words", PRINTS)
def test_output_that_cannot_be_written_is_one_sentence(words):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*CTL, *words.split()], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "conmonctl: cannot go on: No space left on device\n"


@pytest.mark.parametrize("words", PRINTS[:-1])
def test_a_reader_that_has_gone_is_no_error(words):
    process = subprocess.Popen([*CTL, *words.split()], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()
