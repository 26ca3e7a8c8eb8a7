"""monitor.kernel.selftest: the return-probe test on this kernel, and with a sandbox that kills."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from monitor.kernel import selftest
from monitor.kernel.selftest import ReturnProbes, check_return_probes

pytestmark = pytest.mark.kernel


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as listed:
        return set(listed.read().split())


def test_this_kernel_gives_an_answer_and_leaves_nothing_behind() -> None:
    before, open_before = children(), os.listdir("/proc/self/fd")
    threads_before = set(threading.enumerate())
    start = time.monotonic()
    got = check_return_probes()
    assert time.monotonic() - start < 0.5
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 11) or release >= (6, 14):
        assert got.result is ReturnProbes.SAFE, got.reason
    else:
        assert got.result is not ReturnProbes.UNKNOWN, got.reason
    assert children() == before
    for thread in set(threading.enumerate()) - threads_before:  # it takes the probe out
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == len(open_before)


def test_a_child_that_dies_without_a_probe_proves_nothing(monkeypatch) -> None:
    monkeypatch.setattr(selftest, "_UPROBE_SYSCALLS", (335, 231))  # 231 = exit_group
    before = children()
    got = check_return_probes()
    assert got.result is ReturnProbes.UNKNOWN
    assert f"ended with {-signal.SIGSYS}" in got.reason
    assert children() == before


def test_a_child_that_hangs_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(selftest._Child, "go", lambda self: None)
    monkeypatch.setattr(selftest, "_TIMEOUT_S", 0.05)
    before = children()
    assert check_return_probes().result is ReturnProbes.UNKNOWN
    assert children() == before


@pytest.mark.parametrize(
    ("control", "probed", "hits", "result"),
    [
        (0, 0, 1, ReturnProbes.SAFE),
        (0, -signal.SIGSYS, 0, ReturnProbes.KILLS),
        (0, 0, 0, ReturnProbes.UNKNOWN),
        (0, -signal.SIGSEGV, 1, ReturnProbes.UNKNOWN),
        (-signal.SIGSYS, -signal.SIGSYS, 0, ReturnProbes.UNKNOWN),
        (None, 0, 1, ReturnProbes.UNKNOWN),
    ],
)
def test_what_the_two_ends_mean(control, probed, hits, result) -> None:
    assert selftest._judge(control, probed, hits).result is result
