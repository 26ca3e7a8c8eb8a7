"""The conmond command line: what is accepted, what is answered, with which exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types

import pytest

import monitor
from monitor.cli import conmonctl, conmond
from monitor.errors import SourceError
from monitor.options import Options


@pytest.fixture(autouse=True)
def usual_config(monkeypatch, tmp_path):
    """The path that stands in for /etc/conmond/config.toml; nothing is there."""
    monkeypatch.setattr(conmond, "DEFAULT_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "config.toml"


@pytest.fixture
def daemon(monkeypatch):
    """A stand-in for monitor.daemon that notes what it was given."""
    module = types.ModuleType("monitor.daemon")
    module.calls = []

    def run(options, sink):
        module.calls.append((options, sink))
        if module.raises is not None:
            raise module.raises
        return 0

    module.run = run
    module.raises = None
    monkeypatch.setitem(sys.modules, "monitor.daemon", module)
    monkeypatch.setattr(monitor, "daemon", module, raising=False)
    return module


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--json"], Options()),
        (["--json", "--live"], Options(live=True)),
        (["--table"], Options(live=True)),
        (["--format", "json"], Options()),
        (["--format=lws", "--for", "60"], Options(duration_s=60.0)),
        (["--quiet", "--for=0.5"], Options(duration_s=0.5)),
    ],
)
def test_flags_reach_the_daemon(daemon, arguments, options):
    assert conmond.main(arguments) == 0
    assert [call[0] for call in daemon.calls] == [options]


def test_the_usual_configuration_is_read_where_it_is_there(usual_config, daemon, tmp_path):
    usual_config.write_text("[record]\ninbound = true\n")
    other = tmp_path / "other.toml"
    other.write_text("[record]\ncmdline = true\n")
    for words in ([], ["--config", ""], ["--config", str(other)], ["--config", str(usual_config)]):
        assert conmond.main(["--quiet", *words]) == 0
    usual, none, named, as_service = (options for options, _ in daemon.calls)
    assert (usual.inbound, usual.cmdlines) == (True, False)
    assert none == Options()
    assert (named.inbound, named.cmdlines) == (False, True)
    # found, it is no reason to insist on its socket beside the service; named, it is
    assert (usual.serve.insist, as_service.serve.insist) == (False, True)


def test_a_mistake_in_the_usual_configuration_is_said(usual_config, daemon, capsys):
    usual_config.write_text("record = 5\n")
    with pytest.raises(SystemExit) as stop:
        conmond.main(["--quiet"])
    assert stop.value.code == 2
    said = f"conmond: {usual_config} line 1: record is a table, written [record], and no value\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_is_for_terminals_and_json_for_the_rest(monkeypatch, terminal):
    monkeypatch.setattr(os, "isatty", lambda fd: terminal)
    options, form = conmond._parse([])
    assert (form, options.live) == (("table", True) if terminal else ("json", False))


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["--for", "soon"], "'soon' is not a number of seconds above 0"),
        (["--for", "0"], "--for"),
        (["--for", "-1"], "--for"),
        (["--for", "inf"], "--for"),
        (["--for", "nan"], "--for"),
        (["--for"], "--for"),
        (["--format", "xml"], "xml"),
        (["--json", "--table"], "--table"),
        (["--json", "--format", "lws"], "--format"),
        (["--quiet", "--live"], "--live"),
        (["--format", "lws", "--live"], "--live"),
        (["--js"], "--js"),
        (["stray\nword"], "stray"),
    ],
)
def test_a_wrong_flag_or_value_is_one_sentence_and_code_2(daemon, capsys, arguments, about):
    with pytest.raises(SystemExit) as stop:
        conmond.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("conmond: ")
    assert err.count("\n") == 1
    assert about in err
    assert daemon.calls == []


def test_a_foreseen_failure_is_one_sentence_and_code_1(daemon, capsys):
    daemon.raises = SourceError("cannot read BTF: this kernel has none")
    assert conmond.main(["--quiet"]) == 1
    assert capsys.readouterr().err == "conmond: cannot read BTF: this kernel has none\n"


def test_a_defect_is_one_sentence_with_its_place_and_code_1(daemon, capsys):
    daemon.raises = KeyError("sk")
    assert conmond.main(["--quiet"]) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"conmond: internal error, .*test_conmond_cli.py:\d+: KeyError: 'sk'\n", err
    )


def test_ctrl_c_is_code_130_without_a_word(daemon, capsys):
    daemon.raises = KeyboardInterrupt()
    assert conmond.main(["--quiet"]) == 130
    assert capsys.readouterr() == ("", "")


def test_every_flag_is_explained_and_examples_come_first(capsys):
    with pytest.raises(SystemExit) as stop:
        conmond.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.index("examples:") < text.index("options:")
    for action in conmond.make_parser()._actions:
        assert action.help
        assert all(flag in text for flag in action.option_strings)


@pytest.mark.parametrize("command", [conmond, conmonctl])
def test_the_version_is_the_packages(capsys, command):
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    assert stop.value.code == 0
    name = command.__name__.rpartition(".")[2]
    assert capsys.readouterr().out == f"{name} {monitor.__version__}\n"


def test_conmonctl_answers_a_wrong_flag_with_one_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        conmonctl.main(["--nope"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_stdout_is_not_taken_by_the_next_file_opened(tmp_path):
    code = (
        "import os; from monitor.cli.conmond import _fill_standard_descriptors as fill; fill();"
        f"print(os.open({str(tmp_path / 'f')!r}, os.O_CREAT), file=open(2, 'w', closefd=False))"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" >&- <&-', sys.executable, code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stderr) > 2
