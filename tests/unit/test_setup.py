"""tools/setup where it cannot install: what it says, and that it changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ["bash", "dirname", "id", "tr", "sort"]


@pytest.fixture
def tree(tmp_path):
    """A tree with nothing but the set-up in it, and a PATH that leads to no package manager."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "path").mkdir()
    for tool in TOOLS:
        (tmp_path / "path" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def run_setup(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", tree / "tools/setup", *arguments],
        env={**os.environ, "PATH": str(tree / "path")},
        capture_output=True,
        text=True,
        check=False,
    )


def need(tree: Path, line: str) -> None:
    with open(tree / "tools/packages", "a") as file:
        file.write(line + "\n")


def test_without_apt_it_names_the_packages_of_three_distributions(tree):
    need(tree, "run py:no_such_module deb-name fedora-name arch-name # for this test")
    done = run_setup(tree, "run")
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.splitlines()
    assert said[0] == "setup: this system has no apt; install these packages, then try again"
    assert [line.split()[0] for line in said[1:]] == ["Fedora:", "Arch:", "Debian,"]
    for line, name in zip(said[1:], ["fedora-name", "arch-name", "deb-name"], strict=True):
        assert name in line.split()
    assert not (tree / ".venv").exists()


def test_what_only_the_tests_need_is_not_asked_for_to_run(tree):
    (tree / "tools/packages").write_text("test cmd:no-such-program a b c # for this test\n")
    need(tree, "run py:no_such_module deb-name fedora-name arch-name # for this test")
    assert "  Arch:           pacman -S arch-name \n" in run_setup(tree, "run").stderr
    assert "  Arch:           pacman -S arch-name c \n" in run_setup(tree, "test").stderr


def test_without_root_and_sudo_it_says_what_needs_root(tree):
    need(tree, "run py:no_such_module deb-name fedora-name arch-name # for this test")
    (tree / "path/apt-get").symlink_to("/bin/false")
    # Stands in for a user other than root.
    (tree / "path/id").unlink()
    (tree / "path/id").write_text("#!/bin/sh\necho 1000\n")
    (tree / "path/id").chmod(0o755)
    done = run_setup(tree, "run")
    assert done.returncode == 1
    assert "deb-name" in done.stderr
    assert "setup: needs root for: apt-get" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["everything"]])
def test_an_unknown_group_is_a_usage_error(tree, arguments):
    done = run_setup(tree, *arguments)
    assert (done.returncode, done.stderr) == (2, "usage: tools/setup run|test|vm\n")
