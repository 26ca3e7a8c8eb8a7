"""One virtual machine: boots a kernel, runs a payload in it, brings back what it wrote."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from tests.vm.image import VmError, kernel, root_image, run

__all__ = ["boot"]

RESULT_BYTES = 64 << 20
# KVM is not to be had everywhere (facts of nested machines), and emulation is quick enough.
QEMU = (
    "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,la57=off",
    "-smp", "2", "-m", "2048", "-nodefaults", "-display", "none",
)  # fmt: skip
COMMAND_LINE = (
    "root=/dev/nvme0n1 rw console=ttyS0 mitigations=off nokaslr quiet panic=0 systemd.show_status=0"
)


def boot(series: str, payload: dict[str, Path], results: Path, *, timeout_s: float) -> str:
    """Boot a kernel and run a payload until it powers the machine off.

    Args:
        series: of tests.vm.image.KERNELS.
        payload: name -> file; ``run`` is the script that is started at every boot.
        results: an empty folder, for what the payload wrote to the third disk as tar.
    Returns:
        The console's text.
    Raises:
        VmError: it did not end in time, or wrote nothing.
    """
    folder = kernel(series)
    payload = {**payload, "modules.tar": folder / "modules.tar"}
    with tempfile.TemporaryDirectory() as work:
        disk_in, disk_out = Path(work) / "in.tar", Path(work) / "out.tar"
        with tarfile.open(disk_in, "w") as archive:
            for name, path in payload.items():
                archive.add(path, name)
        with open(disk_in, "ab") as file:  # a disk is whole sectors
            file.truncate((file.tell() + 511) // 512 * 512)
        with open(disk_out, "wb") as file:
            file.truncate(RESULT_BYTES)
        console = Path(work) / "console"
        command = [
            *QEMU, "-kernel", str(folder / "vmlinuz"), "-append", COMMAND_LINE,
            "-serial", f"file:{console}",
            "-device", "nvme,id=disks,serial=disks",
            *_disk(1, "root", root_image(), snapshot=True),
            *_disk(2, "in", disk_in),
            *_disk(3, "out", disk_out),
        ]  # fmt: skip
        # the snapshot of the root file system is kept here
        machine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": work},
        )
        end = time.monotonic() + timeout_s
        said = b""
        while machine.poll() is None:
            try:
                _, said = machine.communicate(timeout=2)
            except subprocess.TimeoutExpired as exc:
                panicked = "Kernel panic" in _tail(console)
                if panicked or time.monotonic() > end:
                    machine.kill()
                    machine.communicate()
                    what = "the kernel panicked" if panicked else f"not done after {timeout_s} s"
                    raise VmError(f"{what}:\n{_tail(console)}") from exc
        if machine.returncode:
            raise VmError(f"qemu ended with {machine.returncode}: {said.decode(errors='replace')}")
        if not tarfile.is_tarfile(disk_out):
            raise VmError(f"no results:\n{_tail(console)}")
        run("tar", "-xf", disk_out, "-C", results)
        return _tail(console, 1 << 20)


# One controller, whose order of disks is ours to say: several are numbered as they come up.
def _disk(number: int, name: str, path: Path, *, snapshot: bool = False) -> list[str]:
    keep = "on" if snapshot else "off"
    return [
        "-drive", f"file={path},if=none,id={name},format=raw,snapshot={keep}",
        "-device", f"nvme-ns,drive={name},bus=disks,nsid={number}",
    ]  # fmt: skip


def _tail(console: Path, most: int = 4000) -> str:
    return console.read_bytes()[-most:].decode(errors="replace") if console.exists() else ""
