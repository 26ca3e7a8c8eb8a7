"""Every program, as each release's compiler makes it, is far from what the verifier refuses.

What it takes to verify a program depends on the compiler as much as on the source: ten times more
from one LLVM to the next has been seen. The verifier gives up after a million instructions.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitor.kernel import bpf_syscall
from monitor.kernel.image import Image, name_maps
from tests.systems import releases
from tests.systems.debian import ROOT, archive, inside

MOST_PROCESSED = 400_000
HERE = "here"
SYSTEMS = (HERE, releases.STABLE, *releases.MORE)
COMPILE = """
import sys
from pathlib import Path
from monitor.kernel.compile_child import compile_image
image, _ = compile_image(Path(sys.argv[1]) / "bpf", sys.argv[3:])
Path(sys.argv[2]).write_bytes(image.to_json())
"""

pytestmark = [pytest.mark.kernel("mmdebstrap", "unshare"), pytest.mark.seconds(300)]


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request) -> str:
    """Ready to compile: making it is not the test's time."""
    if request.param != HERE:
        if archive() is None:
            pytest.skip("apt on this machine knows no Debian archive")
        releases.root(request.param)
    return request.param


def compile_on(system: str, folder: Path, defines: list[str]) -> Image:
    command = ["-c", COMPILE]
    settings = {"PYTHONDONTWRITEBYTECODE": "1"}
    if system == HERE:
        command = [sys.executable, *command, str(ROOT), str(folder / "image")]
        done = subprocess.run(
            [*command, *defines],
            env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
    else:
        command = ["python3", *command, "/mnt/source", "/mnt/made/image"]
        mounts = {ROOT: "/mnt/source", folder: "/mnt/made"}
        settings["PYTHONPATH"] = "/mnt/source"
        done = subprocess.run(
            inside(releases.root(system), mounts, *command, *defines, **settings),
            capture_output=True,
        )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-2000:]
    return Image.from_json((folder / "image").read_bytes())


@contextmanager
def maps_of(image: Image) -> Iterator[dict[int, int]]:
    made: dict[int, int] = {}
    try:
        for place, spec in enumerate(image.maps):
            made[place] = bpf_syscall.create_map(
                spec.name,
                spec.type,
                key_size=spec.key_size,
                value_size=spec.value_size,
                max_entries=spec.max_entries,
                flags=spec.flags,
            )
        yield made
    finally:
        for descriptor in made.values():
            os.close(descriptor)


def judge(image: Image) -> tuple[dict[str, int], dict[str, str]]:
    """Program -> instructions that the verifier went through; and what it said of those refused."""
    processed, refused = {}, {}
    with maps_of(image) as maps:
        for spec in image.programs:
            log = ctypes.create_string_buffer(1 << 16)
            try:
                os.close(
                    bpf_syscall.load_program(
                        spec.name,
                        spec.type,
                        name_maps(spec.code, maps),
                        license=image.license,
                        attach_type=spec.attach_type,
                        log=log,
                    )
                )
            except bpf_syscall.RefusedError as exc:
                refused[spec.name] = str(exc)
            else:
                said = re.search(rb"processed (\d+) insns", log.value)
                assert said, log.value
                processed[spec.name] = int(said[1])
    return processed, refused


@pytest.mark.parametrize("defines", [[], ["-DINBOUND=1"]], ids=["outbound", "inbound"])
def test_programs_are_verified_with_room_to_spare(system, defines, tmp_path):
    image = compile_on(system, tmp_path, defines)
    processed, refused = judge(image)
    print(f"{system}, {defines}: {processed}")  # pytest -rP shows it
    assert not refused
    assert len(processed) == len(image.programs) > 20
    large = {name: count for name, count in processed.items() if count > MOST_PROCESSED}
    assert not large
