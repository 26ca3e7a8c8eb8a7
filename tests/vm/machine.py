"""One virtual machine: boots a kernel, runs a payload in it, brings back what it wrote."""

from __future__ import annotations

import struct
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import IO

from tests.systems.debian import DebianError, run
from tests.vm.image import kernel, root_image

__all__ = ["boot"]

RESULT_BYTES = 64 << 20
# KVM is not to be had everywhere (facts of nested machines), and emulation is quick enough.
QEMU = (
    "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,la57=off",
    "-smp", "2", "-m", "2048", "-nodefaults", "-display", "none",
)  # fmt: skip
COMMAND_LINE = (
    "root=/dev/nvme0n1p1 rw console=ttyS0 mitigations=off nokaslr quiet panic=0 "
    "systemd.show_status=0"
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
        DebianError: it did not end in time, or wrote nothing.
    """
    folder = kernel(series)
    payload = {**payload, "modules.tar": folder / "modules.tar"}
    with tempfile.TemporaryDirectory() as work:
        packed, disk, console = (Path(work) / name for name in ("in.tar", "disk", "console"))
        with tarfile.open(packed, "w") as archive:
            for name, path in payload.items():
                archive.add(path, name)
        results_at = _make_disk(disk, root_image(), packed)
        command = [
            *QEMU, "-kernel", str(folder / "vmlinuz"), "-append", COMMAND_LINE,
            "-serial", f"file:{console}", "-drive", f"file={disk},if=none,id=disk,format=raw",
            "-device", "nvme,drive=disk,serial=disk",
        ]  # fmt: skip
        machine = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
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
                    raise DebianError(f"{what}:\n{_tail(console)}") from exc
        if machine.returncode:
            raise DebianError(
                f"qemu ended with {machine.returncode}: {said.decode(errors='replace')}"
            )
        written = Path(work) / "out.tar"
        with open(disk, "rb") as file:
            file.seek(results_at)
            written.write_bytes(file.read(RESULT_BYTES))
        if not any(written.read_bytes()[:512]):
            raise DebianError(f"no results:\n{_tail(console)}")
        run("tar", "-xf", written, "-C", results)
        return _tail(console, 1 << 20)


# Root, payload and results are partitions: several disks are numbered as they come up.
def _make_disk(disk: Path, root: Path, packed: Path) -> int:
    """Write them one after the other; where the results are, in bytes."""
    table = bytearray(512)
    table[510:] = b"\x55\xaa"
    at = 1 << 20
    with open(disk, "wb") as file:
        for number, (path, size) in enumerate(
            ((root, root.stat().st_size), (packed, packed.stat().st_size), (None, RESULT_BYTES))
        ):
            sectors = (size + 511) // 512
            struct.pack_into("<4xB3xII", table, 446 + 16 * number, 0x83, at // 512, sectors)
            begin = at
            if path is not None:
                _copy(path, file, at)
            at = (at + sectors * 512 + (1 << 20) - 1) >> 20 << 20
        file.truncate(at)
        file.seek(0)
        file.write(table)
    return begin


def _copy(path: Path, file: IO[bytes], at: int) -> None:
    with open(path, "rb") as source:
        while chunk := source.read(1 << 20):
            if any(chunk):  # what is empty stays a hole
                file.seek(at)
                file.write(chunk)
            at += len(chunk)


def _tail(console: Path, most: int = 4000) -> str:
    return console.read_bytes()[-most:].decode(errors="replace") if console.exists() else ""
