"""The rule of tests/conftest.py: not asked for is skipped, asked for and missing fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKED = """
import pytest

@pytest.mark.vm("no-such-program")
def test_marked():
    pass

def test_plain():
    pass
"""


WAITING = """
import threading

def test_that_waits_for_ever():
    threading.Event().wait()

def test_after_it():
    pass
"""


def run_pytest(folder: Path, *arguments: str, tests: str = MARKED, seconds: int = 60) -> str:
    rules = (ROOT / "tests/conftest.py").read_text()
    (folder / "test_it.py").write_text(tests)
    (folder / "conftest.py").write_text(rules + f"\nTEST_SECONDS = {seconds}\n")
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_group_not_asked_for_is_skipped_with_the_reason(tmp_path):
    said = run_pytest(tmp_path)
    assert "make test-vm" in said
    assert said.splitlines()[-1].strip("= ").startswith("1 passed, 1 skipped")


def test_a_need_missing_where_the_group_was_asked_for_fails(tmp_path):
    said = run_pytest(tmp_path, "--require", "vm")
    assert "asked for with --require vm: not installed: no-such-program" in said
    assert said.splitlines()[-1].strip("= ").startswith("1 passed, 1 error")


def test_an_unknown_group_is_a_usage_error(tmp_path):
    assert "--require: no such group: kernal" in run_pytest(tmp_path, "--require", "kernal")


def test_a_test_that_hangs_fails_and_those_after_it_run(tmp_path):
    said = run_pytest(tmp_path, tests=WAITING, seconds=1)
    assert "still running after 1 s" in said
    assert said.splitlines()[-1].strip("= ").startswith("1 failed, 1 passed")
