"""Is a return probe safe on this kernel, for every process it may meet?

On x86-64, Linux 6.11 to 6.13 made the return of a probed function a system call (uretprobe, number
335), and a process whose seccomp filter does not know that number is killed by our probe. Later
kernels let it pass. Version numbers do not tell (the cure was backported), so it is tried: a child
under such a filter calls a return-probed function.
"""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import select
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from monitor.errors import SourceError
from monitor.kernel import uprobe

__all__ = ["ReturnProbes", "SelfTest", "check_return_probes"]

_TIMEOUT_S: Final = 1.0  # it takes a few milliseconds
_UPROBE_SYSCALLS: Final = (335, 336)  # uretprobe, uprobe
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER: Final = 2
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_LOAD_NR, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_UNUSED_EXIT: Final = 97  # the child could not set itself up


class ReturnProbes(enum.Enum):
    """What a return probe does to a process in a sandbox."""

    SAFE = "safe"
    KILLS = "kills"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """The result, and in one sentence where it comes from."""

    result: ReturnProbes
    reason: str


def check_return_probes() -> SelfTest:
    """Try a return probe on a child in a sandbox; takes a few milliseconds.

    The probe is limited to that child, needs no BPF program, and is gone afterwards. Unless the
    result is SAFE, leave return probes off.
    """
    if platform.machine() != "x86_64":
        return SelfTest(
            result=ReturnProbes.SAFE,
            reason=f"on {platform.machine()} a return probe is no system call",
        )
    try:
        libc = ctypes.CDLL(None)
        function = libc.labs  # harmless, and nothing on the way to the child's end calls it
        path, offset = uprobe.place_of(ctypes.cast(function, ctypes.c_void_p).value or 0)
        with _Child(libc, function) as control, _Child(libc, function) as probed:
            probe = uprobe.attach(None, path, offset, retprobe=True, pid=probed.pid)
            try:
                control.go()
                probed.go()
                ends = control.end(), probed.end()
                (hits,) = struct.unpack("=Q", os.read(probe, 8))
            finally:
                uprobe.release([probe])
    except (SourceError, OSError, AttributeError) as exc:
        return SelfTest(result=ReturnProbes.UNKNOWN, reason=f"the self-test did not run: {exc}")
    return _judge(*ends, hits)


# An end is an exit status, or minus the signal that killed it; None where it did not end.
def _judge(control: int | None, probed: int | None, hits: int) -> SelfTest:
    if control != 0:
        return SelfTest(
            result=ReturnProbes.UNKNOWN,
            reason=f"a child in a sandbox, not probed, ended with {control}",
        )
    if probed == -signal.SIGSYS:
        return SelfTest(
            result=ReturnProbes.KILLS,
            reason="a return probe killed a child in a sandbox: here it is a system call "
            "(Linux 6.11 to 6.13) that seccomp filters do not know",
        )
    if probed != 0:
        return SelfTest(
            result=ReturnProbes.UNKNOWN,
            reason=f"a child in a sandbox, return-probed, ended with {probed}",
        )
    if not hits:
        return SelfTest(
            result=ReturnProbes.UNKNOWN, reason="the probed function was called, but not seen"
        )
    return SelfTest(result=ReturnProbes.SAFE, reason="a return-probed child in a sandbox lived on")


class _Child:
    """A forked copy of this process that waits for go() and then makes one call in a sandbox."""

    def __init__(self, libc: ctypes.CDLL, function: Callable[[int], int]) -> None:
        program = _sandbox()  # made before the fork: afterwards as little as possible runs
        gate, self._opener = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._opener)
                os.read(gate, 1)
                libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no core file
                if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
                    _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0
                ):
                    os._exit(_UNUSED_EXIT)
                function(-5)
                os._exit(0)
            finally:
                os._exit(_UNUSED_EXIT)
        os.close(gate)
        self._reaped = False

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._opener)
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def go(self) -> None:
        os.write(self._opener, b"!")

    def end(self) -> int | None:
        pidfd = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([pidfd], [], [], _TIMEOUT_S)
        finally:
            os.close(pidfd)
        if not ready:
            return None
        _, status = os.waitpid(self.pid, 0)
        self._reaped = True
        return os.waitstatus_to_exitcode(status)


# A seccomp program that allows everything except the two system calls of uprobes.
def _sandbox() -> ctypes.Array[ctypes.c_char]:
    uretprobe, uprobe_nr = _UPROBE_SYSCALLS
    code = b"".join(
        struct.pack("=HBBI", *insn)
        for insn in [
            (_LOAD_NR, 0, 0, 0),
            (_JUMP_EQUAL, 2, 0, uretprobe),
            (_JUMP_EQUAL, 1, 0, uprobe_nr),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _KILL_PROCESS),
        ]
    )
    insns = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(
        struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(insns)), 16
    )
    program.insns = insns  # type: ignore[attr-defined]  # lives as long as what points to it
    return program
