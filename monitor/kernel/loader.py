"""Has bpf/ compiled and loaded by a short-lived child and takes over the descriptors."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Final

from monitor.bpf_source import bpf_folder
from monitor.errors import LoadError
from monitor.kernel.compile_child import CHANNEL

__all__ = ["Loaded", "load"]

_MAX_REPORT: Final = 1 << 20
_MAX_DESCRIPTORS: Final = 64
_COMPILE_SECONDS: Final = 120  # minutes of swapping are worse than a sentence


@dataclass(slots=True)
class Loaded:
    """Programs and maps in the kernel, held by this process."""

    programs: dict[str, int]
    """Program name -> descriptor."""
    maps: dict[str, int]
    """Map name -> descriptor."""
    failed: dict[str, str]
    """Program name -> why the kernel refused it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What the child spent on each step."""

    def close(self) -> None:
        """Let go of everything; what is attached through other descriptors stays."""
        for descriptor in (*self.programs.values(), *self.maps.values()):
            os.close(descriptor)
        self.programs.clear()
        self.maps.clear()


def load(defines: dict[str, int] | None = None) -> Loaded:
    """Compile and load bpf/ in a child process.

    Args:
        defines: C constants that bpf/maps.h lets one choose (``MAX_CONNS``, ``RING_PAGES``).
    Returns:
        Everything that could be loaded; ``failed`` names the rest.
    Raises:
        LoadError: nothing could be: one sentence that says why.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    flags = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    with ours:
        with theirs:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    # descriptor 3 first: the interpreter itself must not take it
                    f"import os; os.dup2({theirs.fileno()}, {CHANNEL}); "
                    "from monitor.kernel.compile_child import main; main()",
                    str(bpf_folder()),
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        try:
            said, _ = child.communicate(timeout=_COMPILE_SECONDS)
        except subprocess.TimeoutExpired as exc:
            child.kill()
            child.wait()
            raise LoadError(f"cannot compile bpf/: not done after {_COMPILE_SECONDS} s") from exc
        ours.setblocking(False)
        try:
            message, ancillary, _, _ = ours.recvmsg(
                _MAX_REPORT, socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            message, ancillary = b"", []
    if not message:
        raise LoadError(f"cannot compile bpf/: {_last_line(said)}")
    report = json.loads(message)
    if "error" in report:
        raise LoadError(_explain(report["error"], said))
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % 4])
    names: list[str] = report["programs"]
    return Loaded(
        programs=dict(zip(names, descriptors, strict=False)),
        maps=dict(zip(report["maps"], descriptors[len(names) :], strict=True)),
        failed=report["failed"],
        seconds=report["seconds"],
    )


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the compiler ended without a word"


def _explain(error: str, said: bytes) -> str:
    # BCC prints the compiler's words and raises without them.
    for line in said.decode(errors="replace").splitlines():
        if "error:" in line:
            return f"{error} ({line.strip()})"
    return error
