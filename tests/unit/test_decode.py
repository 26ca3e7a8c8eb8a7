"""monitor.decode against bpf/event.h, which a compiler reads for us.

A generated C program fills each struct by the names of its fields, each field with a value of its
own, and writes the bytes: whatever decode.py swaps, shifts or forgets comes out as a wrong value.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor import decode as decoder
from monitor.decode import (
    CONN_BYTES,
    COUNTERS,
    ConnEvent,
    ConnFlag,
    ConnPeek,
    DnsEvent,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    HelloEvent,
    Kind,
    Library,
    LookupEvent,
    LookupFlag,
    Phase,
    PlainEvent,
    RecordFlag,
    Task,
    decode,
    decode_conn,
    peek_conns,
    peek_keys,
)
from monitor.errors import DecodeError

BPF = Path(__file__).resolve().parents[2] / "bpf"
HEADER = re.sub(r"/\*.*?\*/", "", (BPF / "event.h").read_text(), flags=re.DOTALL)
EVENTS = {
    "conn_event": Kind.CONN,
    "lookup_event": Kind.LOOKUP,
    "hello_event": Kind.HELLO,
    "exec_event": Kind.EXEC,
    "exec_long_event": Kind.EXEC,
    "exit_event": Kind.EXIT,
    "dns_event": Kind.DNS,
    "plain_event": Kind.PLAIN,
    "fork_event": Kind.FORK,
}
# Fields that say how much of the struct counts.
GIVEN = {
    "conn_event.log_len": 3,
    "lookup_event.answer_len": 5,
    "hello_event.len": 7,
    "exec_event.path_start": 250,
    "exec_event.path_cut": 0,
    "exec_long_event.path_start": 3000,
    "exec_long_event.path_cut": 0,
    "dns_event.len": 9,
    "plain_event.len": 11,
}
WIDTH = {"__u8": 1, "char": 1, "__u16": 2, "__u32": 4, "__s32": 4, "__u64": 8}
CONSTANTS = dict(re.findall(r"#define\s+(\w+)\s+(\d+)", HEADER))
# Room for the verifier and for BPF alone: not decoded.
UNDECODED = {"tx_split", "rx_split", "slack", "header", "pad", "answer_len", "len", "path_start"}


def fields_of(name: str) -> list[tuple[str, str, int | None]]:
    """(type, name, array length or None) of every field, as event.h lists them."""
    body = re.search(rf"struct {name} {{(.*?)}};", HEADER, re.DOTALL).group(1)
    found = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        match = re.fullmatch(r"(struct \w+|\w+)\s+(\w+)(?:\[(\w+)\])?", declaration)
        assert match, f"struct {name} has a field this test cannot read: {declaration}"
        kind, field, length = match.groups()
        found.append((kind, field, int(CONSTANTS.get(length, length)) if length else None))
    return found


class Filling:
    """Assignments in C, and what decode.py must read."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.number = 0

    def fill(self, struct_name: str, place: str) -> dict[str, object]:
        values: dict[str, object] = {}
        for kind, field, length in fields_of(struct_name):
            at = f"{place}.{field}"
            if field == "header":
                self.lines.append(f"{at}.kind = {int(EVENTS[struct_name])};")
                self.lines.append(f"{at}.size = sizeof({place});")
            elif kind.startswith("struct "):
                inner = kind.removeprefix("struct ")
                if length is None:
                    values[field] = self.fill(inner, at)
                else:
                    values[field] = [self.fill(inner, f"{at}[{i}]") for i in range(min(length, 5))]
            elif length is not None:
                content = self.text(length)
                for i, byte in enumerate(content):
                    self.lines.append(f"{at}[{i}] = {byte};")
                values[field] = content
            else:
                values[field] = self.scalar(f"{struct_name}.{field}", kind, at)
        return values

    def scalar(self, name: str, kind: str, at: str) -> int:
        if name in GIVEN:
            self.lines.append(f"{at} = {GIVEN[name]};")
            return GIVEN[name]
        self.number = self.number % 254 + 1
        # every byte of a value says which field it is, so that no shift goes unseen either
        raw = bytes([self.number]) * WIDTH[kind]
        self.lines.append(f"{at} = 0x{raw.hex()}ULL;")
        return int.from_bytes(raw, "little", signed=kind == "__s32")

    def text(self, length: int) -> bytes:
        self.number = self.number % 254 + 1
        return bytes((self.number + i) % 255 + 1 for i in range(length))


class Compiled:
    """What the compiler makes of event.h."""

    def __init__(self, folder: Path) -> None:
        self.expected: dict[str, dict[str, object]] = {}
        source = ["#include <stdio.h>", "#include <string.h>", '#include "event.h"']
        source.append("int main(int argc, char **argv)\n{")
        for name in EVENTS:
            filling = Filling()
            self.expected[name] = filling.fill(name, "e")
            source.append(f'if (!strcmp(argv[1], "{name}")) {{ static struct {name} e;')
            source += [*filling.lines, "fwrite(&e, sizeof(e), 1, stdout); }"]
        source.append('if (!strcmp(argv[1], "constants")) {')
        for names in re.findall(r"enum \w+ {(.*?)}", HEADER, re.DOTALL):
            for constant in re.findall(r"(\w+)\s*(?:=[^,]*)?,", names + ","):
                source.append(f'printf("{constant} %lld\\n", (long long)({constant}));')
        source.append('printf("CONN_BYTES %zu\\n", sizeof(struct conn_event));')
        source.append("}\nreturn 0;\n}")
        (folder / "fill.c").write_text("\n".join(source))
        self.program = folder / "fill"
        subprocess.run(
            ["gcc", "-std=gnu11", "-Wall", "-Wno-unused-parameter", "-Werror", f"-I{BPF}",
             "-o", self.program, folder / "fill.c"],
            check=True,
        )  # fmt: skip

    def run(self, what: str) -> bytes:
        return subprocess.run([self.program, what], capture_output=True, check=True).stdout

    def constants(self, prefix: str) -> dict[str, int]:
        """Enumerators by their name without the prefix, in their order."""
        lines = (line.split() for line in self.run("constants").decode().splitlines())
        return {n.removeprefix(prefix): int(v) for n, v in lines if n.startswith(prefix)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")  # plain pytest needs no set-up; make test installs it
    return Compiled(tmp_path_factory.mktemp("event"))


def as_written(value: object) -> object:
    """A decoded value in the form of the filling."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_written(part) for name, part in value._asdict().items()}
    return [as_written(part) for part in value] if isinstance(value, tuple) else value


def without(fields: dict[str, object], names: set[str] = UNDECODED) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in names}


def test_every_field_of_a_conn_event_is_read_from_its_place(compiled: Compiled) -> None:
    expected = dict(compiled.expected["conn_event"])
    log = expected.pop("log")
    task = expected.pop("task")
    event = decode(memoryview(compiled.run("conn_event")))
    assert isinstance(event, ConnEvent)
    assert [record._asdict() for record in event.records()] == log[:3]
    got = event._asdict()
    assert (got.pop("kind"), got.pop("size")) == (Kind.CONN, CONN_BYTES)
    del got["log"]
    assert got == {**without(expected), **task}
    raw = compiled.run("conn_event")
    assert decode_conn(raw) == event
    peek = tuple(getattr(event, name) for name in ConnPeek._fields if name != "comm")
    for fields in peek_conns(memoryview(raw.ljust(CONN_BYTES, b"\0") * 2)):
        assert (*fields[:7], *fields[8:]) == peek
        assert fields[7].rstrip(b"\0") == event.comm
    for keys in peek_keys(memoryview(raw.ljust(CONN_BYTES, b"\0") * 2)):
        assert keys == (event.sk, event.cookie, event.connect_ns, event.phase)


def test_every_field_of_a_lookup_is_read_from_its_place(compiled: Compiled) -> None:
    event = decode(memoryview(compiled.run("lookup_event")))
    assert isinstance(event, LookupEvent)
    assert as_written(event) == without(compiled.expected["lookup_event"])
    assert event.ret != 0


def test_every_field_of_a_hello_is_read_from_its_place(compiled: Compiled) -> None:
    expected = without(compiled.expected["hello_event"])
    event = decode(memoryview(compiled.run("hello_event")))
    assert isinstance(event, HelloEvent)
    expected["data"] = expected["data"][:7]
    expected["received"] = True
    assert event._asdict() == expected


@pytest.mark.parametrize(("name", "start"), [("exec_event", 250), ("exec_long_event", 3000)])
def test_every_field_of_an_exec_is_read_from_its_place(
    compiled: Compiled, name: str, start: int
) -> None:
    expected = without(compiled.expected[name], UNDECODED | {"path_cut"})
    event = decode(memoryview(compiled.run(name)))
    assert isinstance(event, ExecEvent)
    expected["path"] = expected["path"][start:]
    assert as_written(event) == expected


def test_every_field_of_an_exit_is_read_from_its_place(compiled: Compiled) -> None:
    event = decode(memoryview(compiled.run("exit_event")))
    assert isinstance(event, ExitEvent)
    assert event._asdict() == without(compiled.expected["exit_event"])


def test_every_field_of_a_fork_is_read_from_its_place(compiled: Compiled) -> None:
    event = decode(memoryview(compiled.run("fork_event")))
    assert isinstance(event, ForkEvent)
    assert event._asdict() == without(compiled.expected["fork_event"])


def test_every_field_of_a_dns_message_is_read_from_its_place(compiled: Compiled) -> None:
    expected = without(compiled.expected["dns_event"])
    event = decode(memoryview(compiled.run("dns_event")))
    assert isinstance(event, DnsEvent)
    expected["data"] = expected["data"][:9]
    assert as_written(event) == expected


def test_every_field_of_plaintext_is_read_from_its_place(compiled: Compiled) -> None:
    expected = without(compiled.expected["plain_event"])
    event = decode(memoryview(compiled.run("plain_event")))
    assert isinstance(event, PlainEvent)
    expected["data"] = expected["data"][:11]
    expected |= {"received": True, "turned": True}
    assert as_written(event) == expected


def test_the_map_is_read_with_the_size_the_compiler_gives_it(compiled: Compiled) -> None:
    assert compiled.constants("CONN_BYTES") == {"": CONN_BYTES}


@pytest.mark.parametrize(
    ("prefix", "mirror"),
    [
        ("EVENT_", Kind),
        ("PHASE_", Phase),
        ("CONN_", ConnFlag),
        ("RECORD_", RecordFlag),
        ("LIB_", Library),
    ],
)
def test_enumerations_have_the_names_and_numbers_of_event_h(compiled, prefix, mirror) -> None:
    theirs = compiled.constants(prefix)
    theirs.pop("BYTES", None)
    ours = {name: int(getattr(mirror, name)) for name in vars(mirror) if name.isupper()}
    assert theirs == ours


def test_counters_stand_in_the_order_of_event_h(compiled: Compiled) -> None:
    theirs = compiled.constants("COUNT_")
    assert theirs.pop("MAX") == len(COUNTERS)
    assert tuple(sorted(theirs, key=theirs.__getitem__)) == tuple(map(str.upper, COUNTERS))
    assert sorted(theirs.values()) == list(range(len(COUNTERS)))


def test_lookup_flags_are_those_that_event_h_describes() -> None:
    text = (BPF / "event.h").read_text()
    for name in ("LONG", "UNREADABLE", "LEFT"):
        assert f"LOOKUP_{name} = {getattr(LookupFlag, name)}," in text


# ---- what the kernel cuts short, and what it would never send ------------------------------------

SIZES = {
    Kind.CONN: decoder._CONN.size,
    Kind.LOOKUP: decoder._AFTER_TASK + decoder._LOOKUP.size,
    Kind.HELLO: decoder._HEADER.size + decoder._HELLO.size,
    Kind.EXEC: decoder._AFTER_TASK + decoder._EXEC.size,
    Kind.EXIT: decoder._HEADER.size + decoder._EXIT.size,
    Kind.DNS: decoder._AFTER_TASK + decoder._DNS.size,
    Kind.PLAIN: decoder._HEADER.size + decoder._PLAIN.size,
    Kind.FORK: decoder._HEADER.size + decoder._FORK.size,
}


def event_bytes(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("=II", kind, 8 + len(body)) + body


@pytest.mark.parametrize("kind", list(Kind))
def test_a_byte_less_than_the_fixed_part_is_an_error_and_no_byte_more_is_needed(kind) -> None:
    decode(memoryview(event_bytes(kind, bytes(SIZES[kind] - 8))))
    for size in (0, 1, 7, 8, SIZES[kind] - 1):
        with pytest.raises(DecodeError):
            decode(memoryview(event_bytes(kind, bytes(SIZES[kind]))[:size]))


@pytest.mark.parametrize("kind", [0, 9, 255, 0xFFFFFFFF])
def test_an_unknown_kind_is_an_error(kind: int) -> None:
    with pytest.raises(DecodeError):
        decode(memoryview(event_bytes(kind, bytes(4096))))


def test_a_name_ends_at_its_nul_and_may_fill_its_field() -> None:
    def lookup(comm: bytes, name: bytes) -> LookupEvent:
        body = bytes(48) + comm.ljust(16, b"\0") + bytes(32)
        body += name.ljust(256, b"\0") + b"443\0junk".ljust(32, b"\0")
        event = decode(memoryview(event_bytes(Kind.LOOKUP, body)))
        assert isinstance(event, LookupEvent)
        return event

    short = lookup(b"curl\0junk", b"one.example\0junk")
    assert (short.task.comm, short.name, short.service) == (b"curl", b"one.example", b"443")
    full = lookup(b"x" * 16, b"y" * 256)
    assert (full.task.comm, full.name) == (b"x" * 16, b"y" * 256)


def test_a_path_that_did_not_fit_or_was_not_read_is_not_known() -> None:
    def path(start: int, cut: int, text: bytes) -> bytes | None:
        body = bytes(64) + struct.pack("=QII", 1, start, cut) + text.rjust(256, b"?") + bytes(128)
        event = decode(memoryview(event_bytes(Kind.EXEC, body)))
        assert isinstance(event, ExecEvent)
        return event.path

    assert path(256 - 9, 0, b"/bin/true") == b"/bin/true"
    assert path(256 - 9, 1, b"/bin/true") is None
    assert path(256, 0, b"") is None
    assert path(0xFFFFFFFF, 0, b"") is None


def test_lengths_beyond_the_bytes_take_what_is_there() -> None:
    raw = bytearray(event_bytes(Kind.CONN, bytes(SIZES[Kind.CONN] - 8 + 16)))
    log_len = decoder.ConnEvent._fields.index("log_len")
    event = decode(memoryview(raw))
    assert isinstance(event, ConnEvent) and event.log == b""
    assert event[log_len] == 0
    hello = event_bytes(Kind.HELLO, struct.pack("=QQQIHBB", 1, 2, 3, 4, 0xFFFF, 0, 1) + b"abc")
    part = decode(memoryview(hello))
    assert isinstance(part, HelloEvent) and part.data == b"abc"


@settings(max_examples=300)
@given(st.integers(0, 7), st.binary(max_size=1200), st.sampled_from([0, 0xFF]), st.integers(0, 900))
@example(kind=1, head=b"\xff" * 1200, fill=0xFF, size=0)
@example(kind=2, head=b"\xff" * 1200, fill=0xFF, size=0)
def test_whatever_the_bytes_they_are_an_event_or_an_error(kind, head, fill, size) -> None:
    data = event_bytes(kind, head + bytes([fill]) * size)
    for raw in (data, head):
        try:
            event = decode(memoryview(raw))
        except DecodeError:
            continue
        if isinstance(event, ConnEvent):
            assert len(event.records()) <= 32
        elif isinstance(event, LookupEvent):
            assert isinstance(event.task, Task)
    try:
        decode_conn(head)
    except DecodeError:
        assert len(head) < CONN_BYTES
