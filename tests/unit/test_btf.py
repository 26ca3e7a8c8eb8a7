"""monitor.kernel.btf: a small hand-made BTF, damaged ones, and this kernel's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.kernel.btf import VMLINUX, Btf, BtfError, FieldOffset, has_struct, read_offsets

INT, PTR, ARRAY, STRUCT, UNION, TYPEDEF, CONST, ENUM64 = 1, 2, 3, 4, 5, 8, 10, 19
KIND_FLAG = 1 << 31


class Blob:
    """Builds BTF: each method adds one type and returns its id."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def name(self, name: str) -> int:
        if not name:
            return 0
        at = len(self.strings)
        self.strings += name.encode() + b"\0"
        return at

    def add(
        self, kind: int, name: str, size: int, *words: int, vlen: int = 0, flag: int = 0
    ) -> int:
        info = kind << 24 | vlen | flag
        self.types += struct.pack(f"={3 + len(words)}I", self.name(name), info, size, *words)
        self.count += 1
        return self.count

    def int(self, name: str, size: int, bits: int | None = None, shift: int = 0) -> int:
        return self.add(INT, name, size, shift << 16 | (8 * size if bits is None else bits))

    def struct(self, name: str, size: int, *members: tuple[str, int, int], kind=STRUCT, flag=0):
        words = [word for n, t, bits in members for word in (self.name(n), t, bits)]
        return self.add(kind, name, size, *words, vlen=len(members), flag=flag)

    def build(self) -> bytes:
        header = struct.pack(
            "=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


@pytest.fixture
def blob() -> bytes:
    made = Blob()
    u8, u32 = made.int("u8", 1), made.int("u32", 4)
    alias = made.add(TYPEDEF, "alias_t", made.add(CONST, "", u32))
    pointer = made.add(PTR, "", u8)
    row = made.add(ARRAY, "", 0, u8, u32, 16)
    grid = made.add(ARRAY, "", 0, row, u32, 3)
    old_bits = made.int("narrow", 4, bits=5, shift=2)
    made.add(ENUM64, "big", 8, made.name("A"), 1, 0, vlen=1)
    inner = made.struct("", 8, ("x", u32, 0), ("y", alias, 32), kind=UNION)
    holder = made.struct("", 16, ("", inner, 64), ("z", u8, 0))
    common = made.struct("common", 24, ("family", u8, 16), ("", holder, 64))
    made.struct("sock", 120, ("__common", common, 0), ("ptr", pointer, 192), ("grid", grid, 256))
    made.struct(
        "flags", 8, ("low", u32, 3 << 24), ("mid", u32, 7 << 24 | 3), ("plain", u32, 32),
        ("high", u32, 11 << 24 | 15), flag=KIND_FLAG,
    )  # fmt: skip
    made.struct("oldflags", 8, ("narrow", old_bits, 32))
    made.struct("twice", 4, ("x", u32, 0))
    made.struct("twice", 8, ("x", u32, 32), ("w", u32, 0))
    return made.build()


def test_named_and_anonymous_members_add_up(blob: bytes) -> None:
    btf = Btf(blob)
    assert btf.field("common", "family") == FieldOffset(offset=2, size=1)
    assert btf.field("common", "y") == FieldOffset(offset=8 + 8 + 4, size=4)
    assert btf.field("sock", "__common.x") == FieldOffset(offset=8 + 8, size=4)
    assert btf.field("sock", "ptr") == FieldOffset(offset=24, size=struct.calcsize("P"))
    assert btf.field("sock", "grid") == FieldOffset(offset=32, size=48)


def test_bitfields_in_both_encodings(blob: bytes) -> None:
    btf = Btf(blob)
    assert btf.field("flags", "low") == FieldOffset(offset=0, size=1, bit_offset=0, bit_size=3)
    assert btf.field("flags", "mid") == FieldOffset(offset=0, size=2, bit_offset=3, bit_size=7)
    assert btf.field("flags", "high") == FieldOffset(offset=1, size=3, bit_offset=7, bit_size=11)
    assert btf.field("flags", "plain") == FieldOffset(offset=4, size=4)
    assert btf.field("oldflags", "narrow") == FieldOffset(
        offset=4, size=1, bit_offset=2, bit_size=5
    )


def test_what_does_not_exist_is_left_out(blob: bytes) -> None:
    found = Btf(blob).offsets({"sock": ["ptr", "gone", "__common.gone", "ptr.x"], "gone": ["x"]})
    assert found == {"sock": {"ptr": FieldOffset(offset=24, size=8)}, "gone": {}}
    assert Btf(blob).has_struct("sock")
    assert not Btf(blob).has_struct("u32"), "an int is no struct"
    assert not Btf(blob).has_struct("ock"), "the end of a name is not that name"
    assert not Btf(blob).has_struct("")
    assert Btf(blob).has_name("u32") and not Btf(blob).has_name("ock")


def test_of_two_structs_of_one_name_the_fitting_one_is_read(blob: bytes) -> None:
    found = Btf(blob).offsets({"twice": ["x", "w"]})
    assert found["twice"] == {
        "x": FieldOffset(offset=4, size=4),
        "w": FieldOffset(offset=0, size=4),
    }


def test_a_type_that_contains_itself_ends() -> None:
    made = Blob()
    made.struct("loop", 8, ("", 1, 0), ("", 1, 32))
    made.add(TYPEDEF, "ring", 2)
    made.struct("user", 8, ("field", 2, 0))
    btf = Btf(made.build())
    assert btf.field("loop", "x") is None
    with pytest.raises(BtfError, match="does not end"):
        btf.field("user", "field")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: b"", "shorter than its header"),
        (lambda b: b"\x7fELF" + b[4:], "wrong magic"),
        (lambda b: b[1::-1] + b[2:], "endian"),
        (lambda b: b[:2] + b"\2" + b[3:], "version 2"),
        (lambda b: b[:-1], "behind the end of the file"),
        (lambda b: b[:12] + struct.pack("=I", 20) + b[16:], "last type ends"),
        (lambda b: b[:28] + struct.pack("=I", 31 << 24) + b[32:], "unknown kind 31"),
    ],
)
def test_damage_is_told_in_a_sentence(blob: bytes, change, sentence: str) -> None:
    with pytest.raises(BtfError, match=sentence) as caught:
        Btf(change(blob), name="this file")
    assert str(caught.value).startswith("this file is not usable BTF: ")


@given(st.data())
@settings(max_examples=300)
def test_any_bytes_give_offsets_or_btf_error(data: st.DataObject) -> None:
    made = Blob()
    u32 = made.int("u32", 4)
    inner = made.struct("", 8, ("x", u32, 0))
    array = made.add(ARRAY, "", 0, u32, u32, 4)
    made.struct("outer", 32, ("", inner, 0), ("many", array, 64), ("deep", inner, 192))
    raw = bytearray(made.build())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    with contextlib.suppress(BtfError):
        Btf(bytes(raw[: cut or None])).offsets({"outer": ["x", "many", "deep.x", "no"]})


def test_a_missing_file_says_what_is_needed(tmp_path) -> None:
    with pytest.raises(BtfError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf.load(tmp_path / "none")


# plain pytest runs on other systems, too; make test has it
real = pytest.mark.skipif(not os.access(VMLINUX, os.R_OK), reason="this kernel has no BTF")

WANTED = {
    "sock_common": ["skc_family", "skc_dport", "skc_num", "skc_daddr", "skc_rcv_saddr", "skc_net",
                    "skc_v6_daddr", "skc_v6_rcv_saddr", "skc_cookie", "skc_state"],
    "sock": ["sk_err", "sk_protocol", "__sk_common.skc_daddr"],
    "inet_sock": ["inet_sport"],
    "tcp_sock": ["srtt_us", "mdev_us", "total_retrans", "bytes_sent", "bytes_retrans",
                 "bytes_received"],
    "net": ["ns.inum"],
    "task_struct": ["tgid", "pid", "group_leader", "real_parent", "mm", "cred", "comm", "nsproxy"],
    "cred": ["uid"],
    "nsproxy": ["net_ns"],
    "mm_struct": ["exe_file"],
    "file": ["f_inode", "f_path"],
    "path": ["dentry", "mnt"],
    "inode": ["i_ino", "i_sb"],
    "super_block": ["s_dev"],
    "dentry": ["d_parent", "d_name"],
    "qstr": ["name", "len", "hash_len"],
    "mount": ["mnt", "mnt_parent", "mnt_mountpoint"],
    "vfsmount": ["mnt_root"],
    "linux_binprm": ["filename", "interp"],
}  # fmt: skip


@real
def test_this_kernel_has_every_field_we_read() -> None:
    found = read_offsets(VMLINUX, WANTED)
    assert {name: list(fields) for name, fields in found.items()} == WANTED
    assert has_struct("task_struct")
    assert not has_struct("no_such_struct")
    start = read_offsets(VMLINUX, {"task_struct": ["start_boottime", "real_start_time"]})
    assert len(start["task_struct"]) == 1


@real
# plain pytest needs no set-up; make test installs it
@pytest.mark.skipif(not shutil.which("bpftool"), reason="bpftool is not installed")
def test_bpftool_finds_the_same_offsets() -> None:
    dump = subprocess.run(
        ["bpftool", "-j", "btf", "dump", "file", VMLINUX], capture_output=True, check=True
    )
    types = json.loads(dump.stdout)["types"]
    by_id = {entry["id"]: entry for entry in types}

    def strip(entry):
        while entry["kind"] in ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"):
            entry = by_id[entry["type_id"]]
        return entry

    def bits_of(entry, name: str):
        for member in entry["members"]:
            if member["name"] == name:
                return member["bits_offset"], member["type_id"]
            inner = strip(by_id[member["type_id"]])
            anonymous = member["name"] == "(anon)" and inner["kind"] in ("STRUCT", "UNION")
            if anonymous and (found := bits_of(inner, name)):
                return member["bits_offset"] + found[0], found[1]
        return None

    ours = read_offsets(VMLINUX, WANTED)
    for struct_name, paths in WANTED.items():
        (top,) = (t for t in types if t["kind"] == "STRUCT" and t["name"] == struct_name)
        for path in paths:
            entry, bits = top, 0
            for part in path.split("."):
                step, type_id = bits_of(entry, part)
                bits, entry = bits + step, strip(by_id[type_id])
            assert ours[struct_name][path].offset * 8 == bits, f"{struct_name}.{path}"
            if "size" in entry:
                assert ours[struct_name][path].size == entry["size"], f"{struct_name}.{path}"
