"""conmond under Debian 13's Python, BCC and libraries, on this kernel, sees what runs there."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.lab import world
from tests.lab.daemon import Daemon, Record
from tests.lab.programs import Done, run
from tests.lab.servers import Behaviour
from tests.lab.world import Lab, Site
from tests.systems import releases
from tests.systems.debian import ROOT, archive, inside

# The release has no package of it; pure Python, so this machine's serves.
BROUGHT = ("ddsketch", "six")
ANSWER = "x" * 23
PYTHON = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile="/mnt/lab/ca.pem")
print(urllib.request.urlopen(sys.argv[1], context=context).read().decode(), end="")
"""
HOLD = """
import ctypes, sys
for name in sys.argv[1:]:
    ctypes.CDLL(name)
print(flush=True)
sys.stdin.read()
"""
LIBRARIES = ("libc.so.6", "libssl.so.3", "libgnutls.so.30")
WAIT_S = 20
PROGRAMS = {
    "curl": ("openssl", ["curl", "-s", "--cacert", "/mnt/lab/ca.pem"]),
    "wget": ("gnutls", ["wget", "-qO-", "--ca-certificate=/mnt/lab/ca.pem"]),
    "python3": ("openssl", ["python3", "-c", PYTHON]),
}

pytestmark = [pytest.mark.kernel("mmdebstrap", "unshare", "ip"), pytest.mark.seconds(120)]


@dataclass
class System:
    """The release, its conmond, and what its programs may reach."""

    root: Path
    mounts: dict[Path, str]
    lab: Lab
    daemon: Daemon
    plain: Site
    tls: Site
    name: str

    def inside(self, *command: str) -> list[str]:
        """The command line for one of its programs."""
        etc = Path("/etc/netns") / self.lab.here.name
        files = {etc / name: f"/etc/{name}" for name in ("resolv.conf", "hosts", "nsswitch.conf")}
        mounts = {**files, self.lab.folder: "/mnt/lab"}
        return inside(self.root, mounts, *command)

    def doctor(self) -> dict[str, Any]:
        arguments = ["-m", "monitor.cli.conmonctl", "doctor", "--json"]
        done = subprocess.run(
            python(self.root, self.mounts, *arguments, "--socket", self.daemon.socket),
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1) and not done.stderr  # 1: what other programs lack
        return json.loads(done.stdout)

    def record_of(self, done: Done) -> Record:
        (record,) = self.daemon.wait_for(lambda r: r["pid"] == done.pid)
        return record


@pytest.fixture(scope="module")
def system(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if archive() is None:
        pytest.skip("apt on this machine knows no Debian archive")
    root = releases.root(releases.STABLE)
    brought = tmp_path_factory.mktemp("brought")
    for name in BROUGHT:
        origin = Path(find_spec(name).origin)
        if origin.name == "__init__.py":
            shutil.copytree(origin.parent, brought / name)
        else:
            shutil.copy(origin, brought)
    mounts = {ROOT: "/mnt/source", brought: "/mnt/brought", Path("/tmp"): "/tmp"}
    daemon = Daemon(program=conmond(root, mounts))
    try:
        yield System(
            root=root,
            mounts=mounts,
            lab=lab,
            daemon=daemon,
            plain=lab.serve(Behaviour(), world.FAR4),
            tls=lab.serve(Behaviour(tls=lab.tls("1.3")), world.FAR4),
            name=lab.name("release", world.FAR4),
        )
    except BaseException:
        daemon.kill()
        raise
    daemon.stop()


def python(root: Path, mounts: dict[Path, str], *arguments: str) -> list[str]:
    settings = {"PYTHONPATH": "/mnt/source:/mnt/brought", "PYTHONDONTWRITEBYTECODE": "1"}
    return inside(root, mounts, "python3", *arguments, **settings)


def conmond(root: Path, mounts: dict[Path, str]) -> list[str]:
    return python(root, mounts, "-m", "monitor.cli.conmond", "--config", "")


@pytest.fixture(scope="module")
def held(system: System) -> Iterator[None]:
    """The release's TLS libraries are in use, and so probed before a program needs that."""
    inodes = set()
    for name in LIBRARIES:
        inodes.add((system.root / "usr/lib/x86_64-linux-gnu" / name).stat().st_ino)
    holder = system.lab.here.popen(
        system.inside("python3", "-c", HOLD, *LIBRARIES), stdin=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline()
        until = time.monotonic() + WAIT_S
        while inodes:
            assert time.monotonic() < until, system.doctor()["libraries"]
            for library in system.doctor()["libraries"]:
                if library["probed"]:
                    inodes.discard(int(library["inode"].split(":")[2]))
        yield
    finally:
        holder.communicate(timeout=WAIT_S)


def test_nothing_is_missing(system):
    assert system.daemon.stderr == "ready"
    said = system.doctor()
    assert [hook for hook in said["hooks"] if not hook["attached"]] == []
    assert said["lookups_seen"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_names_tls_and_response(system, held, program):
    source, command = PROGRAMS[program]
    done = run(
        system.lab.here, system.inside(*command, f"https://{system.name}:{system.tls.port}/")
    )
    assert (done.code, done.stdout) == (0, ANSWER)
    record = system.record_of(done)
    assert record["state"] == "closed"
    assert (record["host"], record["dns_source"]) == (system.name, "getaddrinfo")
    assert (record["peer"], record["dns"]) == (world.FAR4, [world.FAR4])
    assert record["exe"].startswith(f"{system.root}/usr/bin/{program}")
    assert (record["tls"]["source"], record["tls"]["version"]) == (source, "TLSv1.3")
    assert record["dns_us"] > 0
    for name in ("sockconn_us", "tls_us", "txn_resp_us"):
        assert record[name] >= world.RTT_US, name


def test_http_in_the_clear(system):
    url = f"http://{system.name}:{system.plain.port}/"
    done = run(system.lab.here, system.inside("curl", "-s", url))
    assert done.stdout == ANSWER
    record = system.record_of(done)
    assert record["prot_specific"]["resp"] == 200
    assert record["turns"]["count"] == 1
