"""monitor.kernel.returns: where real machine code returns, and code that is not what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from monitor.kernel.elf import ElfFile
from monitor.kernel.returns import CodeError, Returns, decoder, find_returns

pytestmark = [
    pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the code below is x86-64's"),
]
capstone = pytest.importorskip("capstone")

Find = Callable[..., Returns]


@pytest.fixture(scope="module")
def find(tmp_path_factory) -> Find:
    folder = tmp_path_factory.mktemp("code")
    decode = decoder("x86_64")

    def find(text: str, name: str = "f", *options: str, change=None) -> Returns:
        source = folder / "code.c"
        source.write_text(text)
        made = folder / "code.so"
        made.unlink(missing_ok=True)
        command = ["gcc", "-shared", "-fPIC", "-O2", "-fno-builtin", "-fcf-protection=none"]
        subprocess.run([*command, *options, "-w", "-o", str(made), str(source)], check=True)
        fd = os.open(made, os.O_RDONLY)
        try:
            file = ElfFile(fd)
            info = file.inspect([name])
            offset, size = info.symbols[name], info.sizes[name]
            if change is not None:
                offset, size = change(offset, size)
            found = find_returns(file, fd, "x86_64", offset, size, decode)
            for place in (found.entry, *found.places):
                assert os.pread(fd, len(place.code), place.offset) == place.code
            return found
        finally:
            os.close(fd)

    return find


def assembly(body: str, name: str = "f", cfi: bool = True) -> str:
    begin, end = (".cfi_startproc", ".cfi_endproc") if cfi else ("", "")
    return (
        f'__asm__(".text\\n.p2align 4\\n.globl {name}\\n.type {name},@function\\n{name}:{begin}\\n'
        f'{body}\\n{end}\\n.size {name},.-{name}\\n");\n'
    )


def returning(found: Returns) -> list[int]:
    return [place.offset - found.parts[0][0] for place in found.places]


def test_every_return_of_a_function_is_found(find: Find) -> None:
    found = find(assembly(r"test %edi,%edi\n je 1f\n xor %eax,%eax\n ret\n1: mov $1,%eax\n ret"))
    assert returning(found) == [6, 12]
    assert found.reason is None
    assert {place.code for place in found.places} == {b"\xc3"}


def test_an_entry_is_probed_behind_the_first_push(find: Find) -> None:
    plain = find(assembly(r"push %rbx\n mov %rdi,%rbx\n pop %rbx\n ret"))
    assert plain.entry.offset - plain.parts[0][0] == 1
    marked = find(assembly(r"endbr64\n push %r12\n mov %rdi,%r12\n pop %r12\n ret"))
    assert marked.entry.offset - marked.parts[0][0] == 6
    none = find(assembly(r"sub $8,%rsp\n add $8,%rsp\n ret"))
    assert none.entry.offset == none.parts[0][0]
    # something jumps right behind the push, where the stack is not as at entry
    looped = find(assembly(r"push %rbx\n1: dec %edi\n jne 1b\n pop %rbx\n ret"))
    assert looped.entry.offset == looped.parts[0][0]


def test_a_switch_is_no_way_out(find: Find) -> None:
    text = "int g(int); int f(int a) { switch (a) {" + "".join(
        f"case {n}: return g({n * n % 37}) * {n + 3} ^ a;" for n in range(40)
    )
    found = find(text + "} return g(a) - 1; }")
    assert found.places and found.reason is None


def test_a_part_that_the_compiler_moved_away_is_read_too(find: Find) -> None:
    body = r"test %edi,%edi\n jne f_cold\n ret"
    cold = assembly(r"mov $7,%eax\n ret", "f_cold")
    found = find(assembly(body) + cold)
    assert len(found.places) == 2 and len(found.parts) == 2


@pytest.mark.parametrize("hidden", [True, False], ids=["direct", "through the linkage table"])
def test_a_function_that_ends_in_another_of_its_file_returns_where_that_one_does(
    find: Find, hidden: bool
) -> None:
    other = ".hidden g\\n" if hidden else ""
    text = f'__asm__("{other}");\n' + assembly("jmp g" if hidden else "jmp g@PLT")
    found = find(text + assembly(r"test %edi,%edi\n je 1f\n ret\n1: inc %edi\n ret", "g"))
    assert found.reason is None
    assert len(found.places) == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (r"test %edi,%edi\n je 1f\n ret\n1: mov 8(%rdi),%rax\n jmp *%rax", "may lead anywhere"),
        (r"test %edi,%edi\n je 1f\n ret\n1: jmp strlen@PLT", "another file"),
        (r"1: jmp 1b", "does not return"),
        (r"mov $1,%eax\n nop\n mov $2,%eax", "runs on"),
        (r".rept 70\n test %edi,%edi\n je 1f\n ret\n1:\n .endr\n ret", "in 71 places"),
    ],
)
def test_with_another_way_out_no_return_is_probed(find: Find, body: str, reason: str) -> None:
    found = find(assembly(body))
    assert found.places == ()
    assert reason in (found.reason or "")


def shifted(by: int):
    return lambda offset, size: (offset + by, size - by)


LONG = r"movabs $0x1122334455667788,%rax\n add %rdi,%rax\n ret"


@pytest.mark.parametrize(
    ("text", "change", "reason"),
    [
        (assembly(LONG), shifted(3), "middle of another function"),
        (assembly(LONG, cfi=False), shifted(3), "middle of code"),
        (assembly(r"mov %edi,%eax\n ret", cfi=False), lambda o, s: (o, s - 1), "runs on"),
        (assembly(r"jmp 1f+1\n1: movabs $0xc3c3,%rax\n ret"), None, "middle of an instruction"),
        (assembly(r".byte 0x06,0x07,0x0e\n ret"), None, "cannot be read"),
        (assembly(LONG), lambda o, s: (1 << 40, s), "outside the code"),
        (assembly(LONG), lambda o, s: (o - o % 4096 - 4096, s), "outside the code"),
        (assembly(LONG, cfi=False), lambda o, s: (o, 0), "where it ends"),
        (assembly(LONG, cfi=False), lambda o, s: (o, 1 << 60), "longer than"),
    ],
)
def test_what_is_not_the_function_that_it_says_is_not_probed(
    find: Find, text: str, change, reason: str
) -> None:
    assert reason in said_of(find, text, change)


def said_of(find: Find, text: str, change) -> str:
    try:
        found = find(text, change=change)
    except CodeError as exc:
        return str(exc)
    assert found.places == ()
    return found.reason or ""


def test_there_are_machines_without_a_disassembler() -> None:
    with pytest.raises(CodeError, match="vax"):
        decoder("vax")
