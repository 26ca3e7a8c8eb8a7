"""monitor.kernel.disassembler: a real child reads real code, and what it said is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from monitor.kernel import disassembler, elf
from monitor.kernel.cache import CacheFolder
from monitor.kernel.disassembler import Disassembler
from monitor.kernel.returns import Returns

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
pytest.importorskip("capstone")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    source = tmp_path / "code.c"
    source.write_text("int f(int a) { return a * 7 + 1; }\nint g(int a) { return a ? 3 : a + 9; }")
    made = tmp_path / "code.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", made, source], check=True)
    return made


def ask(reader: Disassembler, path: Path, *names: str) -> dict[str, Returns | str]:
    fd = os.open(path, os.O_RDONLY)
    try:
        info = elf.inspect(fd, names)
        functions = {name: (at, info.sizes[name]) for name, at in info.symbols.items()}
        return reader.find(fd, info.machine, info.build_id, functions)
    finally:
        os.close(fd)


def test_the_child_reads_and_has_no_rights(library: Path) -> None:
    reader = Disassembler()
    found = ask(reader, library, "f", "g")
    assert all(isinstance(said, Returns) and said.places for said in found.values())
    child = reader._child
    assert child is not None
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    reader.sweep(disassembler.time.monotonic_ns() + 3_000_000_000)
    assert child.returncode is not None


def test_what_was_said_is_kept_over_restarts(library: Path, tmp_path: Path, monkeypatch) -> None:
    cache = CacheFolder(tmp_path / "cache")
    first = Disassembler(cache)
    said = ask(first, library, "f")
    first.close()
    again = Disassembler(cache)
    monkeypatch.setattr(again, "_start_child", lambda: pytest.fail("it is known"))
    assert ask(again, library, "f") == said


def test_a_file_that_says_it_is_another_is_read_anew(library: Path, tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache")
    first = Disassembler(cache)
    (said,) = ask(first, library, "f").values()
    first.close()
    data = bytearray(library.read_bytes())
    offset, size = said.parts[0]
    data[offset : offset + size] = b"\x90" * (size - 1) + b"\xc3"
    library.write_bytes(data)  # its build id is the same
    again = Disassembler(cache)
    (other,) = ask(again, library, "f").values()
    again.close()
    assert isinstance(other, Returns) and other.entry != said.entry


@pytest.mark.parametrize(
    "kept",
    [b"", b"[]", b"{", b'{"format": 99}', b'{"format": 2, "functions": {"x": 3}}', b'"' * 9000],
)
def test_a_damaged_cache_is_none(library: Path, tmp_path: Path, kept: bytes) -> None:
    cache = CacheFolder(tmp_path / "cache")
    cache.write(disassembler._FILE, kept)
    reader = Disassembler(cache)
    found = ask(reader, library, "f")
    reader.close()
    assert isinstance(found["f"], Returns)
    raw = cache.read(disassembler._FILE, 1 << 20)
    assert raw is not None and json.loads(raw)["format"] == disassembler._FORMAT


def test_a_child_that_ends_is_said_and_started_again(library: Path, monkeypatch) -> None:
    reader = Disassembler()
    ask(reader, library, "f")
    assert reader._child is not None
    reader._child.kill()
    reader._child.wait()
    assert "could not be read" in str(ask(reader, library, "g")["g"])
    assert isinstance(ask(reader, library, "g")["g"], Returns)
    reader.close()


def test_memory_for_what_was_said_is_bounded(library: Path, monkeypatch) -> None:
    monkeypatch.setattr(disassembler, "_MAX_KNOWN", 1)
    reader = Disassembler()
    ask(reader, library, "f", "g")
    reader.close()
    assert len(reader._entries()) == 1
