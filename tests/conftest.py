"""Which tests run on this machine, and what happens when one of them lacks what it needs.

Plain ``pytest`` runs what needs no root, and of the marked groups (kernel, client, vm) nothing.
``--require GROUP,...`` asks for groups, and once asked for, a missing need fails the test.
``--require auto``, which is ``make test``, asks for every group that this machine can run; the
others are skipped with the reason.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib.util
import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No examples are kept between runs: they would make one run differ from the next, and a run as
# root would leave a folder that the next one without root cannot write.
settings.register_profile("conmond", database=None, deadline=None)
settings.load_profile("conmond")

# A test that waits for what never comes fails by name, instead of holding up all that follow.
TEST_SECONDS = 180

SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
BPF_MAP_CREATE = 0


@functools.cache
def machine_lacks() -> str | None:
    """Why no test can load programs here, whatever is installed; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    number = SYS_BPF.get(platform.machine())
    if number is None:
        return f"needs x86_64, aarch64 or riscv64, and this is {platform.machine()}"
    # A 1-entry array of 4-byte values: the smallest thing that bpf() makes.
    attributes = (ctypes.c_uint32 * 18)(2, 4, 4, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, BPF_MAP_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if fd < 0:
        return f"needs the bpf() system call, refused here: {errno.errorcode[ctypes.get_errno()]}"
    os.close(fd)
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        return "needs /sys/kernel/btf/vmlinux: this kernel was built without its BTF"
    return None


def setup_lacks() -> str | None:
    """What tools/setup should have installed and is missing for every kernel test."""
    return None if importlib.util.find_spec("bcc") else "the module bcc is missing: run tools/setup"


# group -> why this machine cannot run it, or None. A group that set-up can make ready is possible.
GROUPS: dict[str, Callable[[], str | None]] = {
    "kernel": machine_lacks,
    "client": machine_lacks,
    "vm": lambda: "boots other kernels for minutes: make test-vm",
}


REQUIRED = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        metavar="GROUP,...",
        default="",
        help="run these groups (kernel, client, vm; auto: all that this machine can), and fail "
        "where a need of theirs is missing",
    )


def pytest_configure(config: pytest.Config) -> None:
    asked = {name for name in config.getoption("--require").split(",") if name}
    if unknown := asked - {"auto", *GROUPS}:
        raise pytest.UsageError(f"--require: no such group: {', '.join(sorted(unknown))}")
    if "auto" in asked:
        asked |= {name for name, lacks in GROUPS.items() if lacks() is None}
    config.stash[REQUIRED] = asked


# Unit tests measure processor time and those of conmonctl top wait for an idle process, so they run
# before the lab has threads and its daemon records what floods; the zoo begins without any daemon;
# the tests over all records run after the clients that made them.
_TESTS = Path(__file__).parent
_ORDER = ("unit", "zoo", "kernel", "systems", "lab", "clients", "vm")
_OVER_ALL_RECORDS = "test_records_of_the_session.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> tuple[int, bool]:
        folder = item.path.relative_to(_TESTS).parts[0]
        place = _ORDER.index(folder) if folder in _ORDER else len(_ORDER)
        return place, item.path.name == _OVER_ALL_RECORDS

    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = item.config.stash[REQUIRED]
    for name, lacks in GROUPS.items():
        mark = item.get_closest_marker(name)
        if mark is None:
            continue
        if name not in required:
            pytest.skip(lacks() or f"not asked for: --require {name}, or make test")
        programs = [program for program in mark.args if shutil.which(program) is None]
        missing = f"not installed: {', '.join(programs)}" if programs else None
        if name != "vm":
            missing = machine_lacks() or setup_lacks() or missing
        if missing:
            pytest.fail(f"asked for with --require {name}: {missing}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    mark = item.get_closest_marker("seconds")
    most = mark.args[0] if mark else TEST_SECONDS

    def give_up(*_: object) -> None:
        pytest.fail(f"still running after {most} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(most)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
