"""The prober as part of a running conmond: what it probes, what is kept from it, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conmon.client import Daemon as Client
from tests.lab.daemon import PROGRAM, Daemon, children_of

pytestmark = pytest.mark.kernel

LOOK_UP = """
import socket, sys
sock = socket.create_connection(("localhost", int(sys.argv[1])))
"""


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made.getsockname()[1]


def look_up(port: int) -> int:
    process = subprocess.Popen([sys.executable, "-c", LOOK_UP, str(port)])
    assert process.wait(20) == 0
    return process.pid


def prober_of(running: Daemon) -> int | None:
    for child in children_of(running.process.pid):
        comm = Path(f"/proc/{child}/comm")
        if comm.exists() and comm.read_text() == "conmond-prober\n":
            return child
    return None


def source_of(running: Daemon, pid: int) -> str | None:
    (record,) = running.wait_for(lambda r: r["pid"] == pid)
    return record["dns_source"]


def test_a_killed_prober_comes_back_and_the_daemon_goes_on(server: int) -> None:
    running = Daemon()
    try:
        assert source_of(running, look_up(server)) == "getaddrinfo"
        first = prober_of(running)
        os.kill(first, signal.SIGKILL)
        source_of(running, look_up(server))
        deadline = time.monotonic() + 30
        while prober_of(running) in (None, first) and time.monotonic() < deadline:
            time.sleep(0.1)
        while time.monotonic() < deadline:
            if source_of(running, look_up(server)) == "getaddrinfo":
                break
        else:
            pytest.fail("names are not seen again")
        assert running.stderr.count("the prober ended") == 1
    finally:
        running.stop()


def test_a_stopped_prober_holds_nobody_up(server: int) -> None:
    running = Daemon()
    try:
        prober = prober_of(running)
        os.kill(prober, signal.SIGSTOP)
        source_of(running, look_up(server))
        assert Client(running.socket).doctor()["ready"]
        os.kill(prober, signal.SIGCONT)
    finally:
        running.stop()


def excluding(folder: Path, text: str) -> tuple[str, ...]:
    config = folder / "config.toml"
    config.write_text(f"[probe]\n{text}\n")
    return (*PROGRAM[:-2], "--config", str(config))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('exclude = ["library=*/libc.so.6"]', "excluded by library=*/libc.so.6"),
        ('libraries = "none"', None),
    ],
)
def test_what_the_administrator_excludes_is_not_probed(
    server: int, tmp_path: Path, text: str, why: str | None
) -> None:
    running = Daemon(program=excluding(tmp_path, text))
    try:
        assert source_of(running, look_up(server)) is None
        doctor = Client(running.socket).doctor()
        probed = {name for library in doctor["libraries"] for name in library["functions"]}
        if why is None:
            assert probed == set()
            assert any("probe.libraries is none" in said for said in doctor["unseen"])
        else:
            assert "SSL_do_handshake" in probed
            assert why in {library["why"] for library in doctor["libraries"]}
            assert doctor["probe_counts"]["excluded"] >= 1
    finally:
        running.stop()


def test_names_alone_leave_tls_libraries_unprobed(tmp_path: Path) -> None:
    running = Daemon(program=excluding(tmp_path, 'libraries = "names"'))
    try:
        doctor = Client(running.socket).doctor()
        probed = {name for library in doctor["libraries"] for name in library["functions"]}
        assert "getaddrinfo" in probed and not any("andshake" in name for name in probed)
    finally:
        running.stop()
