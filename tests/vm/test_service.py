"""conmond as a service of Debian's systemd, on other kernels: `make test-vm`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.vm.image import KERNELS
from tests.vm.machine import boot

ROOT = Path(__file__).resolve().parents[2]
# each takes two to three minutes; all of them with CONMOND_VM_KERNELS="5.10 6.1 6.12 7"
WANTED = os.environ.get("CONMOND_VM_KERNELS", "6.1 7").split()
BOOT_SECONDS = 900

pytestmark = pytest.mark.vm("qemu-system-x86_64", "mmdebstrap", "mke2fs", "dpkg-deb")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    built, out = (tmp_path_factory.mktemp(name) for name in ("built", "deb"))
    for command in (
        ["packaging/build", str(built / "root"), "/usr", "/usr/share/zsh/vendor-completions"],
        ["packaging/deb", str(built / "root"), str(out)],
    ):
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (file,) = out.iterdir()
    return file


@pytest.mark.seconds(BOOT_SECONDS + 300)
@pytest.mark.parametrize("series", WANTED)
def test_the_service_from_its_package_to_its_removal(series, package, tmp_path):
    assert series in KERNELS
    start = tmp_path / "run"
    start.write_text("exec python3 /run/payload/guest.py\n")
    results = Path(os.environ.get("CONMOND_VM_RESULTS") or tmp_path) / f"results-{series}"
    results.mkdir(parents=True, exist_ok=True)
    payload = {
        "run": start,
        "guest.py": ROOT / "tests/vm/guest.py",
        "guest_server.py": ROOT / "tests/vm/guest_server.py",
        "conmond.deb": package,
    }
    (results / "console.txt").write_text(boot(series, payload, results, timeout_s=BOOT_SECONDS))
    checks = json.loads((results / "checks.json").read_text())
    failed = [f"{check['name']}: {check['seen']}" for check in checks if not check["ok"]]
    assert not failed, "\n".join(failed)
    names = [check["name"] for check in checks]
    assert names[-1] == "the group is gone"
    (release,) = [check["seen"] for check in checks if check["name"] == "kernel"]
    assert release.startswith(f"{series}.")
    assert len(names) >= 28
