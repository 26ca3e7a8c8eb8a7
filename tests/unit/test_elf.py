"""monitor.kernel.elf: real libraries against nm, and the same libraries damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor.kernel.elf import ElfError, ElfInfo, inspect

NAMES = ("getaddrinfo", "SSL_do_handshake", "gnutls_handshake")

SOURCE = """
int exported_one(int x) { return x + 1; }
__attribute__((visibility("hidden"), noinline, used)) int hidden_one(int x) { return x * 3; }
int some_data = 3;
extern int not_here(int);
int calls_out(int x) { return not_here(x); }
"""
GO_NOTE = """
asm(".section .note.go.buildid,\\"a\\",@note\\n"
    ".long 4, 8, 4\\n.ascii \\"Go\\\\0\\\\0\\"\\n.ascii \\"buildid0\\"\\n.previous");
"""
# plain pytest needs no set-up; make test installs it
needs_cc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


def look(path: str | os.PathLike, names=NAMES) -> ElfInfo:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inspect(fd, names)
    finally:
        os.close(fd)


def find_library(name: str) -> str | None:
    for folder in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"):
        if os.path.exists(path := f"{folder}/{name}"):
            return path
    return None


def build(folder: Path, *options: str, extra: str = "") -> Path:
    (folder / "lib.c").write_text(SOURCE + extra)
    out = folder / "lib.so"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", *options, "-o", out, folder / "lib.c"], check=True
    )
    return out


# Offset in the file by nm's address and readelf's segments: the second witness.
def expected_offset(path: str | os.PathLike, name: str, *options: str) -> int:
    symbols = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True)
    (address,) = {
        int(line.split()[0], 16)
        for line in symbols.stdout.splitlines()
        if len(line.split()) == 3 and line.split()[2].split("@")[0] == name
    }
    segments = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True)
    for line in segments.stdout.splitlines():
        if line.split()[:1] == ["LOAD"] and " E " in line[50:]:
            offset, vaddr, _, size = (int(word, 16) for word in line.split()[1:5])
            if vaddr <= address < vaddr + size:
                return address - vaddr + offset
    raise AssertionError(f"{name} is in no executable segment")


# plain pytest needs no set-up; make test installs it
@pytest.mark.skipif(not shutil.which("nm"), reason="binutils are not installed")
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("libc.so.6", "getaddrinfo"),
        ("libssl.so.3", "SSL_do_handshake"),
        ("libgnutls.so.30", "gnutls_handshake"),
    ],
)
def test_exported_functions_stand_where_nm_says(library: str, name: str) -> None:
    path = find_library(library)
    if path is None:
        pytest.skip(f"{library} is not installed")  # any machine has one of them
    found = look(path)
    assert found.symbols == {name: expected_offset(path, name, "-D")}
    assert (found.machine, found.bits, found.is_go) == (os.uname().machine, 64, False)
    note = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True)
    assert f"Build ID: {found.build_id}" in note.stdout


@needs_cc
@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_both_hash_tables_and_the_symbol_table_are_read(tmp_path: Path, style: str) -> None:
    path = build(tmp_path, f"-Wl,--hash-style={style}")
    wanted = ("exported_one", "hidden_one", "some_data", "not_here", "ported_one")
    assert look(path, wanted).symbols == {
        "exported_one": expected_offset(path, "exported_one"),
        "hidden_one": expected_offset(path, "hidden_one"),
    }


@needs_cc
def test_a_stripped_library_keeps_what_it_exports(tmp_path: Path) -> None:
    path = build(tmp_path)
    offset = expected_offset(path, "exported_one")
    subprocess.run(["strip", path], check=True)
    assert look(path, ("exported_one", "hidden_one")).symbols == {"exported_one": offset}
    raw = bytearray(path.read_bytes())
    raw[0x28:0x30] = bytes(8)  # e_shoff: the section headers are gone altogether
    path.write_bytes(raw)
    assert look(path, ("exported_one",)).symbols == {"exported_one": offset}


@needs_cc
def test_the_default_version_of_a_name_counts(tmp_path: Path) -> None:
    script = tmp_path / "versions"
    script.write_text("V1 { }; V2 { };")
    path = build(
        tmp_path,
        f"-Wl,--version-script={script}",
        extra="__attribute__((noinline)) int old_f(int x) { return x - 7; }\n"
        "__attribute__((noinline)) int new_f(int x) { return x - 9; }\n"
        'asm(".symver old_f, twice@V1"); asm(".symver new_f, twice@@V2");',
    )
    assert look(path, ("twice",)).symbols == {"twice": expected_offset(path, "new_f")}


@needs_cc
def test_go_is_recognised_by_note_and_by_section(tmp_path: Path) -> None:
    assert not look(build(tmp_path)).is_go
    assert look(build(tmp_path, extra=GO_NOTE)).is_go
    section = 'asm(".section .gopclntab,\\"a\\"\\n.long 1\\n.previous");'
    assert look(build(tmp_path, extra=section)).is_go
    data = 'char info[] __attribute__((aligned(16))) = "\\xff Go buildinf:";'
    path = build(tmp_path, extra=data)
    raw = bytearray(path.read_bytes())
    raw[0x28:0x30] = bytes(8)
    path.write_bytes(raw)
    assert look(path).is_go


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, sentence in [
        (b"", "not an ELF file"),
        (b"#!/bin/sh\n" * 20, "not an ELF file"),
        (b"\x7fELF\2\1\1", "ends within its header"),
        (b"\x7fELF\7\1\1" + bytes(64), "header is damaged"),
        (b"\x7fELF\2\1\1" + bytes(9) + b"\1\0\x3e\0" + bytes(60), "neither a program"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ElfError, match=sentence):
            look(path)
    path.write_bytes(b"\x7fELF\1\1\1" + bytes(9) + b"\3\0\3\0" + bytes(60))
    assert look(path) == ElfInfo(
        machine="i386", bits=32, is_go=False, build_id=None,
        unsupported="32-bit little-endian programs are not supported",
    )  # fmt: skip


VICTIM = find_library("libgnutls-openssl.so.27") or find_library("libc.so.6") or "/bin/true"


# Where the numbers stand that steer the reader: headers, dynamic section, hash table.
EDIT = st.tuples(
    st.one_of(st.integers(0, 0x400), st.integers(0, os.stat(VICTIM).st_size - 8)),
    st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([bytes(8), b"\xff" * 8, b"\xff" * 4, b"\x01\0\0\0", b"\0\0\0\x80"]),
    ),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elf") / "victim"


@given(edits=st.lists(EDIT, min_size=1, max_size=8), cut=st.none() | st.integers(0, 1 << 16))
@example(edits=[(0x38, b"\xff\xff")], cut=None)
@settings(max_examples=400, deadline=None)
def test_a_damaged_library_gives_an_answer_or_elf_error_soon(
    scratch: Path, edits: list[tuple[int, bytes]], cut: int | None
) -> None:
    raw = bytearray(Path(VICTIM).read_bytes())
    for at, value in edits:
        raw[at : at + len(value)] = value
    scratch.write_bytes(raw[:cut])
    fd = os.open(scratch, os.O_RDONLY)
    start = time.thread_time()
    try:
        inspect(fd, NAMES)
    except ElfError:
        pass
    finally:
        os.close(fd)
    assert time.thread_time() - start < 0.1


def test_huge_claims_do_not_cost_much(tmp_path: Path) -> None:
    # A sparse file whose .symtab and names claim all that is allowed: every byte is a hit for 0.
    shdr = 64
    header = bytearray(64)
    header[:20] = b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\x3e\0"
    header[0x28:0x30] = shdr.to_bytes(8, "little")
    header[0x3A:0x40] = (64).to_bytes(2, "little") + (2).to_bytes(2, "little") + bytes(2)
    symtab = bytearray(64)
    symtab[4] = 2
    symtab[24:32] = (4096).to_bytes(8, "little")
    symtab[32:40] = (16 << 20).to_bytes(8, "little")
    symtab[40] = 1
    symtab[56] = 24
    strtab = bytearray(64)
    strtab[24:32] = (4096).to_bytes(8, "little")
    strtab[32:40] = (32 << 20).to_bytes(8, "little")
    path = tmp_path / "sparse"
    path.write_bytes(header + symtab + strtab)
    os.truncate(path, 40 << 20)
    start = time.thread_time()
    assert look(path).symbols == {}
    assert time.thread_time() - start < 0.25
