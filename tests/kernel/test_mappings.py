"""monitor.kernel.mappings against real processes of this machine."""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys
import time

import pytest

from monitor.kernel.mappings import Event, Exec, Exit, Fork, Lost, Mapping, MappingWatch, scan

pytestmark = pytest.mark.kernel


@pytest.fixture
def watch():
    made = MappingWatch()
    made.drain(time.monotonic_ns())
    yield made
    made.close()


# Drives the watch as an event loop does, until the process has been seen to exit.
def follow(watch: MappingWatch, pid: int) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 5
    while Exit(pid) not in events:
        assert time.monotonic() < deadline, "the exit was not seen"
        if watch.resume_ns is None:
            select.select([watch], [], [], 0.2)
        else:
            time.sleep(max(0, watch.resume_ns - time.monotonic_ns()) / 1e9)
        events += watch.drain(time.monotonic_ns())
    return events


def kernel_dev(dev: int) -> int:
    return os.major(dev) << 20 | os.minor(dev)


def test_an_exec_shows_its_program_its_libraries_and_its_end(watch: MappingWatch) -> None:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    events = follow(watch, child.pid)
    mine = [e for e in events if not isinstance(e, Lost) and e.pid == child.pid]
    assert any(isinstance(event, Fork) and event.parent == os.getpid() for event in mine)
    assert Exec(child.pid) in mine
    true, libc = os.stat("/bin/true"), os.stat("/lib/x86_64-linux-gnu/libc.so.6")
    keys = {event.key[:2] for event in mine if isinstance(event, Mapping)}
    assert (kernel_dev(true.st_dev), true.st_ino) in keys
    assert (kernel_dev(libc.st_dev), libc.st_ino) in keys
    assert watch.lost == 0


def test_dlopen_is_seen_at_the_place_that_map_files_names(watch: MappingWatch) -> None:
    ctypes.CDLL("libresolv.so.2")
    seen = [
        event
        for event in watch.drain(time.monotonic_ns())
        if isinstance(event, Mapping) and event.path.endswith(b"/libresolv.so.2")
    ]
    assert [event.pid for event in seen] == [os.getpid()]
    link = f"/proc/self/map_files/{seen[0].start:x}-{seen[0].end:x}"
    assert os.stat(link).st_ino == seen[0].key[1]


def test_skipped_files_are_not_told(watch: MappingWatch) -> None:
    subprocess.run(["/bin/true"], check=True)
    keys = {e.key for e in watch.drain(time.monotonic_ns()) if isinstance(e, Mapping)}
    assert keys
    quiet = MappingWatch(keys)
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    events = follow(quiet, child.pid)
    quiet.close()
    assert not [e for e in events if isinstance(e, Mapping) and e.pid == child.pid]


def test_scan_finds_this_process_and_its_interpreter() -> None:
    exe = os.stat(os.path.realpath(sys.executable))
    found = {m.key for m in scan() if m.pid == os.getpid()}
    assert (kernel_dev(exe.st_dev), exe.st_ino, None) in found


def test_a_storm_of_execs_loses_nothing(watch: MappingWatch) -> None:
    child = subprocess.Popen(["sh", "-c", "for i in $(seq 211); do /bin/true; done"])
    events = follow(watch, child.pid)
    child.wait()
    true = os.stat("/bin/true").st_ino
    assert len([e for e in events if isinstance(e, Mapping) and e.key[1] == true]) == 211
    assert watch.lost == 0
