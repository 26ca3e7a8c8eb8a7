"""Gets bpf/ into the kernel: from the image of an earlier start, or compiled anew by a child."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from monitor.bpf_source import bpf_folder
from monitor.errors import LoadError, SourceError
from monitor.kernel import bpf_syscall
from monitor.kernel.compile_child import CHANNEL
from monitor.kernel.image import (
    Image,
    ImageCache,
    MapSpec,
    ProgramSpec,
    Refusal,
    image_key,
    name_maps,
)
from monitor.kernel.programs import LICENSE, PROGRAMS

__all__ = ["Loaded", "load"]

_MAX_REPORT: Final = 4 << 20
_COMPILE_SECONDS: Final = 120  # minutes of swapping are worse than a sentence


@dataclass(slots=True)
class Loaded:
    """Programs and maps in the kernel, held by this process."""

    programs: dict[str, int] = field(default_factory=dict)
    """Program name -> descriptor."""
    maps: dict[str, int] = field(default_factory=dict)
    """Map name -> descriptor."""
    specs: dict[str, MapSpec] = field(default_factory=dict)
    """Map name -> how it was made."""
    failed: dict[str, str] = field(default_factory=dict)
    """Program name -> why the kernel refused it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each step took; ``compile`` and others are missing where an image was at hand."""
    waiting: dict[str, ProgramSpec] = field(default_factory=dict)
    """Programs that are loaded on request."""

    def load_waiting(self, names: Iterable[str]) -> dict[str, int]:
        """Load programs that were not loaded at the start; the descriptors are the caller's.

        Raises:
            LoadError: the kernel refuses one: one sentence.
        """
        made: dict[str, int] = {}
        try:
            for name in names:
                made[name] = _load_program(self.waiting[name], LICENSE, self.maps)
        except BaseException as exc:
            for descriptor in made.values():
                os.close(descriptor)
            if isinstance(exc, SourceError):
                raise LoadError(str(exc)) from exc
            raise
        return made

    def close(self) -> None:
        """Let go of everything; what is attached through other descriptors stays."""
        for descriptor in (*self.programs.values(), *self.maps.values()):
            os.close(descriptor)
        self.programs.clear()
        self.maps.clear()


def load(defines: dict[str, int] | None = None, *, cache: ImageCache | None = None) -> Loaded:
    """Load bpf/ into the kernel.

    Args:
        defines: C constants that bpf/maps.h lets one choose (``MAX_CONNS``, ``RING_PAGES``).
        cache: where images are kept.
    Returns:
        Everything that the kernel accepted; ``failed`` names the rest.
    Raises:
        LoadError: nothing could be compiled or no map made: one sentence that says why.
    """
    _raise_memory_limit()
    flags = [f"-D{name}={value}" for name, value in sorted((defines or {}).items())]
    cache = cache or ImageCache()
    key = image_key(bpf_folder(), flags)
    now = _boot_and_rights()
    image = cache.read(key)
    if image is not None:
        loaded, refused = _load_image(image, now)
        if refused.keys() <= image.refused.keys():
            if (refused, now) != (image.refused, image.refused_under):
                cache.write(key, replace(image, refused=refused, refused_under=now))
            return loaded
        loaded.close()  # made for another kernel, whatever the key says
        cache.drop(key)
    image, seconds = _compile(flags)
    loaded, refused = _load_image(image, now)
    loaded.seconds |= seconds
    cache.write(key, replace(image, refused=refused, refused_under=now))
    return loaded


# What a verdict depends on besides the kernel and the program: its command line and lockdown, and
# what this process may do. Empty where that cannot be known: then no verdict is taken over.
def _boot_and_rights() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            rights = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return ""
    return f"{boot} {rights}"


# Before 5.11 the kernel counts maps as locked memory, of which 64 KB are allowed by default.
def _raise_memory_limit() -> None:
    with suppress(OSError, ValueError):
        resource.setrlimit(
            resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )


def _load_image(image: Image, now: str) -> tuple[Loaded, dict[str, Refusal]]:
    started = time.monotonic()
    loaded = Loaded()
    refused: dict[str, Refusal] = {}
    known = image.refused if now and now == image.refused_under else {}
    on_request = {program.name for program in PROGRAMS if program.on_request}
    try:
        for spec in image.maps:
            loaded.specs[spec.name] = spec
            loaded.maps[spec.name] = bpf_syscall.create_map(
                spec.name,
                spec.type,
                key_size=spec.key_size,
                value_size=spec.value_size,
                max_entries=spec.max_entries,
                flags=spec.flags,
            )
        for program in image.programs:
            name = program.name
            if name in on_request:
                loaded.waiting[name] = program
                continue
            if name in known and known[name].verdict:
                refused[name] = known[name]
                continue
            try:
                loaded.programs[name] = _load_program(program, image.license, loaded.maps)
            except bpf_syscall.RefusedError as exc:
                refused[name] = Refusal(str(exc), exc.verdict)
    except SourceError as exc:
        loaded.close()
        raise LoadError(str(exc)) from exc
    except BaseException:
        loaded.close()
        raise
    loaded.failed = {name: refusal.reason for name, refusal in refused.items()}
    loaded.seconds["load"] = time.monotonic() - started
    return loaded, refused


def _load_program(program: ProgramSpec, license: str, maps: dict[str, int]) -> int:
    return bpf_syscall.load_program(
        program.name,
        program.type,
        name_maps(program.code, dict(enumerate(maps.values()))),
        license=license,
        attach_type=program.attach_type,
    )


def _compile(flags: list[str]) -> tuple[Image, dict[str, float]]:
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as words:
        with theirs:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # not from the current folder, where a stranger may have put a monitor
                    "-c",
                    # the channel first: the interpreter itself must not take that descriptor
                    f"import os; os.dup2({theirs.fileno()}, {CHANNEL}); "
                    "from monitor.kernel.compile_child import main; main()",
                    str(bpf_folder()),
                    *flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        report = _receive(ours)
        try:
            child.wait(timeout=_COMPILE_SECONDS)
        except subprocess.TimeoutExpired as exc:
            child.kill()
            child.wait()
            raise LoadError(f"cannot compile bpf/: not done after {_COMPILE_SECONDS} s") from exc
        words.seek(0)
        said = words.read(_MAX_REPORT)
    about, _, image = report.partition(b"\n")
    if not about:
        raise LoadError(f"cannot compile bpf/: {_last_line(said)}")
    facts = json.loads(about)
    if "error" in facts:
        raise LoadError(_explain(facts["error"], said))
    return Image.from_json(image), facts["seconds"]


# Up to the end of the child, or of our patience.
def _receive(channel: socket.socket) -> bytes:
    channel.settimeout(_COMPILE_SECONDS)
    parts = []
    size = 0
    with suppress(TimeoutError, ConnectionError):
        while size < _MAX_REPORT and (part := channel.recv(1 << 16)):
            parts.append(part)
            size += len(part)
    return b"".join(parts)


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the compiler ended without a word"


def _explain(error: str, said: bytes) -> str:
    # BCC prints the compiler's words and raises without them.
    for line in said.decode(errors="replace").splitlines():
        if "error:" in line:
            return f"{error} ({line.strip()})"
    return error
