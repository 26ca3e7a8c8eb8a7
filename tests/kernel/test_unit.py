"""conmond.service: what systemd says of it, and that conmond lacks nothing under its limits."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon

pytestmark = pytest.mark.kernel("systemd-analyze")

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd/conmond.service"
CONFINE = ROOT / "tests/kernel/confine.py"


def test_the_exposure_is_what_the_docs_say():
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"Overall exposure level for conmond.service: (\d+\.\d) (\w+)", said)
    assert found is not None and found[2] == "OK", said[-200:]
    written = re.search(r"exposure level (\d+\.\d)", (ROOT / "systemd/README.md").read_text())
    # versions of systemd weigh a little differently
    assert abs(float(found[1]) - float(written[1])) < 0.5


def test_systemd_understands_every_line(tmp_path):
    # the same but for the command, which is not installed here, and the manual pages
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M)
    unit = tmp_path / "conmond.service"
    unit.write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "conmond" in line]) == (
        0,
        [],
    )


@pytest.fixture
def confined(tmp_path):
    """A conmond under the limits of its unit that must compile: its cache is empty."""
    os.chmod(tmp_path, 0o700)
    # what the lab's daemon makes lies in the same folder, which alone may be written to
    environment = {"TMPDIR": str(tmp_path), "CACHE_DIRECTORY": str(tmp_path / "cache")}
    prefix = [
        "env", *(f"{key}={value}" for key, value in environment.items()),
        sys.executable, str(CONFINE), str(UNIT), "/tmp",
    ]  # fmt: skip
    daemon = Daemon("--json", prefix=prefix)
    yield daemon
    daemon.stop()


def test_nothing_is_missing_under_the_limits_of_the_unit(confined, tmp_path):
    status = Path(f"/proc/{confined.process.pid}/status").read_text()
    assert re.search(r"^Seccomp:\s2$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s1$", status, re.M)
    assert list((tmp_path / "cache").glob("*.json")), "an image was compiled and kept"
    assert confined.stderr == "ready"  # no sentence on what is not seen

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"""
import socket
with socket.create_connection(("localhost", {port})) as sock:
    sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    sock.recv(1)
"""
        with subprocess.Popen([sys.executable, "-c", code]) as client:
            peer, _ = server.accept()
            peer.recv(100)
            peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            peer.close()
        assert client.returncode == 0
    (record,) = confined.wait_for(lambda record: record["rport"] == port)
    assert (record["host"], record["dns_source"]) == ("localhost", "getaddrinfo")  # a uprobe
    assert record["prot_specific"]["resp"] == 200  # packets
    assert record["txn_resp_us"] is not None and record["exe"]
