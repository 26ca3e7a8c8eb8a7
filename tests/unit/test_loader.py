"""What is loaded at a start: from the image of an earlier one, or compiled anew."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from monitor.kernel import bpf_syscall, loader
from monitor.kernel.image import Image, ImageCache, MapSpec, ProgramSpec

NAMES = ("sock_set_state", "packet_ingress", "packet_egress")


class FakeKernel:
    """Takes what it does not refuse, and notes what it was asked to judge."""

    def __init__(self) -> None:
        self.refuses: set[str] = set()
        self.is_short: set[str] = set()
        self.judged: list[str] = []

    def create_map(self, name: str, kind: int, **_: int) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    def load_program(self, name: str, kind: int, code: bytes, **_: object) -> int:
        self.judged.append(name)
        if name in self.refuses | self.is_short:
            raise bpf_syscall.RefusedError(f"no {name}", verdict=name in self.refuses)
        return os.open("/dev/null", os.O_RDONLY)


class Start:
    """conmond starting again and again, on one kernel and with one cache."""

    def __init__(self, kernel: FakeKernel, cache: ImageCache) -> None:
        self.kernel = kernel
        self.compiled = 0
        self._cache = cache

    def compile(self, flags: list[str]) -> tuple[Image, dict[str, float]]:
        self.compiled += 1
        programs = tuple(ProgramSpec(name, 8, 0, bytes(16)) for name in NAMES)
        return Image((MapSpec("events", 27, 0, 0, 4096, 0),), programs, "GPL"), {"compile": 1.0}

    def __call__(self) -> tuple[dict[str, str], set[str], list[str], int]:
        """What failed, what was loaded, what the verifier was asked, how often was compiled."""
        self.compiled = 0
        self.kernel.judged.clear()
        before = os.listdir("/proc/self/fd")
        loaded = loader.load(cache=self._cache)
        assert ("compile" in loaded.seconds) == bool(self.compiled)
        found = (loaded.failed, set(loaded.programs), list(self.kernel.judged), self.compiled)
        loaded.close()
        assert os.listdir("/proc/self/fd") == before
        return found


@pytest.fixture
def start(tmp_path, monkeypatch) -> Start:
    kernel = FakeKernel()
    made = Start(kernel, ImageCache(tmp_path))
    monkeypatch.setattr(bpf_syscall, "create_map", kernel.create_map)
    monkeypatch.setattr(bpf_syscall, "load_program", kernel.load_program)
    monkeypatch.setattr(loader, "_compile", made.compile)
    monkeypatch.setattr(loader, "_raise_memory_limit", lambda: None)
    monkeypatch.setattr(loader, "_boot_and_rights", lambda: "boot rights")
    return made


def without(names: Iterable[str]) -> set[str]:
    return set(NAMES) - set(names)


def test_what_was_compiled_is_not_compiled_again(start):
    assert start() == ({}, set(NAMES), list(NAMES), 1)
    assert start() == ({}, set(NAMES), list(NAMES), 0)


def test_an_image_with_a_refused_program_is_kept_and_the_verifier_not_asked_again(start):
    start.kernel.refuses = {"packet_ingress"}
    failed = {"packet_ingress": "no packet_ingress"}
    assert start() == (failed, without(failed), list(NAMES), 1)
    for _ in range(3):
        assert start() == (failed, without(failed), ["sock_set_state", "packet_egress"], 0)


@pytest.mark.parametrize("before", [set(), {"packet_egress"}])
def test_an_image_that_the_kernel_refuses_only_now_is_another_kernels(start, before):
    start.kernel.refuses = before
    start()
    start.kernel.refuses = before | {"packet_ingress"}
    failed, loaded, _, compiled = start()
    assert (set(failed), loaded, compiled) == (
        start.kernel.refuses,
        without(start.kernel.refuses),
        1,
    )
    assert start()[3] == 0


def test_a_program_that_lacked_something_is_tried_at_every_start(start):
    start.kernel.is_short = {"packet_ingress"}
    assert start()[2:] == (list(NAMES), 1)
    assert start()[2:] == (list(NAMES), 0)
    start.kernel.is_short = set()
    assert start() == ({}, set(NAMES), list(NAMES), 0)


def test_after_another_boot_or_with_other_rights_a_verdict_is_asked_for_anew(start, monkeypatch):
    start.kernel.refuses = {"packet_ingress"}
    start()
    monkeypatch.setattr(loader, "_boot_and_rights", lambda: "boot more rights")
    assert start()[2:] == (list(NAMES), 0)
    assert start()[2:] == (["sock_set_state", "packet_egress"], 0)
    start.kernel.refuses = set()
    monkeypatch.setattr(loader, "_boot_and_rights", lambda: "another boot")
    assert start() == ({}, set(NAMES), list(NAMES), 0)


def test_where_boot_and_rights_are_not_known_no_verdict_is_taken_over(start, monkeypatch):
    monkeypatch.setattr(loader, "_boot_and_rights", lambda: "")
    start.kernel.refuses = {"packet_ingress"}
    start()
    assert start()[2:] == (list(NAMES), 0)
