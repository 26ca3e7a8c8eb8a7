"""Manual pages and completion: all of --help is in them, and the tools that read them take them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from monitor.cli import conmonctl, conmond
from monitor.cli.manual import manual

PARSERS = {"conmond": conmond.make_parser, "conmonctl": conmonctl.make_parser}


def words_of(parser):
    for action in parser._actions:
        yield from action.option_strings
        for choice in getattr(action, "choices", None) or ():
            if hasattr(action, "_choices_actions"):
                yield choice
                yield from words_of(action.choices[choice])


@pytest.mark.parametrize("program", PARSERS)
def test_every_flag_and_command_is_in_the_page(program):
    page = manual(PARSERS[program]())
    plain = page.replace("\\-", "-")
    words = set(words_of(PARSERS[program]()))
    assert len(words) > 10
    assert [word for word in sorted(words) if word not in plain] == []
    assert "conmond" in plain
    assert ".SH EXIT STATUS\n0 done, 1 failed" in page
    assert ".SH EXAMPLES" in page


@pytest.mark.parametrize("program", PARSERS)
def test_man_shows_the_page_without_a_warning(program, tmp_path):
    path = tmp_path / f"{program}.1"
    path.write_text(manual(PARSERS[program]()))
    done = subprocess.run(
        ["man", "--warnings", "-l", "-Tutf8", str(path)],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert "--socket PATH" in re.sub(".\b", "", done.stdout)  # bold is struck over


def test_bash_completes():
    script = subprocess.run(
        [sys.executable, "-m", "monitor.cli.conmonctl", "completion", "bash"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    def complete(*line):
        done = subprocess.run(
            ["bash", "--norc", "-c", f"""{script}
            COMP_WORDS=({" ".join(line)} "$1"); COMP_CWORD={len(line)}
            _shtab_conmonctl; printf '%s\\n' "${{COMPREPLY[@]}}" """, "-", ""],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return {word.strip() for word in done.stdout.split()}

    assert {"ps", "conns", "tail", "show", "top", "doctor"} <= complete("conmonctl")
    assert {"process", "host"} <= complete("conmonctl", "ps", "--by")


def test_zsh_gets_a_script_for_both():
    for program in PARSERS:
        done = subprocess.run(
            [sys.executable, "-m", "monitor.cli.conmonctl", "completion", "zsh", program],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith(f"#compdef {program}")
