"""conmon as others get it: a wheel of its own, and systems that lack what Linux has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As on Windows: no Unix sockets, no fork, no /proc, no socket cookies, no uid.
LACKING = """
import builtins, os, socket, sys, threading
import asyncio, http.client, selectors, ssl, tempfile, urllib.request, weakref  # as on Linux
for owner, names in ((socket, ("AF_UNIX", "TCP_INFO", "socketpair")), (os, ("fork", "getuid")),
                     (socket.socket, ("sendmsg",))):
    for name in names:
        if name in vars(owner): delattr(owner, name)
real_open, real_stat = builtins.open, os.stat
def no_proc(call):
    def wrapped(path, *rest, **named):
        if str(path).startswith("/proc"): raise FileNotFoundError(2, "no /proc here", str(path))
        return call(path, *rest, **named)
    return wrapped
builtins.open, os.stat = no_proc(real_open), no_proc(real_stat)
ssl.enum_certificates = ssl.enum_crls = lambda store: []  # there alone
sys.platform = "win32"
"""
WORK = """
import json, urllib.request, conmon
from conmon.cli import main

listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
def serve():
    while True:
        sock, _ = listener.accept()
        sock.recv(4096)
        sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
        sock.close()
threading.Thread(target=serve, daemon=True).start()
assert main(["probe", "--json", f"http://127.0.0.1:{port}/"]) == 0
with conmon.watch() as records:
    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
(record,) = records
assert record.prot_specific["resp"] == 200 and record.txn_resp_us >= 0, record
sock, record = conmon.connect("127.0.0.1", port)
assert record.uid is None and record.netns is None and record.tcp is None, record
assert conmon.take(sock).id == record.id
sock.close()
try:
    conmon.Daemon().processes()
except conmon.DaemonUnreachable as exc:
    assert "Unix sockets" in str(exc), exc
assert not [name for name in sys.modules if name.split(".")[0] in ("monitor", "bcc", "pyroute2")]
print("done", sys.version_info[:2])
"""


def pythons():
    """This interpreter, and the oldest and newest others that are here and new enough."""
    found = {}
    folders = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    folders += sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin"))
    for minor in range(9, 20):
        for folder in folders:
            path = folder / f"python3.{minor}"
            if minor in found or not path.exists():
                continue
            done = subprocess.run([path, "-c", "import ssl"], capture_output=True, check=False)
            if done.returncode == 0:
                found[minor] = str(path)
    ends = {min(found), max(found)} if found else set()
    return [sys.executable, *(found[minor] for minor in sorted(ends - {sys.version_info[1]}))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([ROOT / "packaging/wheel", out], check=True, capture_output=True)
    (file,) = out.iterdir()
    return file


def test_the_wheel_holds_conmon_and_asks_for_nothing(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        words = archive.read(metadata).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"conmon"}
    needs = [line for line in words.splitlines() if line.startswith("Requires-Dist")]
    assert all("extra ==" in line for line in needs)
    assert "Requires-Python: >=3.9" in words
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conmon").rglob("*.py")}
    assert wanted <= set(names)


@pytest.mark.parametrize("python", pythons(), ids=lambda path: Path(path).name)
@pytest.mark.parametrize("lacking", [False, True], ids=["linux", "lacking"])
def test_it_works_where_there_is_nothing_else(wheel, tmp_path, python, lacking):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "only")
    script = tmp_path / "work.py"
    before = LACKING if lacking else "import socket, sys, threading\n"
    work = WORK
    if not lacking:
        work = work.replace("assert record.uid is None and", "assert record.uid is not None or")
        work = work.replace('assert "Unix sockets" in str(exc), exc', "pass")
    script.write_text(before + work)
    done = subprocess.run(
        [python, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'only')!r}); "
         f"exec(open({str(script)!r}).read())"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "CONMOND_SOCKET": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout
    shutil.rmtree(tmp_path / "only")
