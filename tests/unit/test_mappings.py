"""monitor.kernel.mappings: records as they stand in a ring, and a made-up /proc."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.errors import SourceError
from monitor.kernel import mappings
from monitor.kernel.mappings import (
    Event,
    Exec,
    Exit,
    Fork,
    Lost,
    Mapping,
    MappingWatch,
    Mounts,
    parse_records,
)

SDA1 = 8 << 20 | 1


def record(kind: int, body: bytes, misc: int = 0, at_ns: int = 5) -> bytes:
    body += bytes(-len(body) % 8) + struct.pack("=Q", at_ns)
    return struct.pack("=IHH", kind, misc, 8 + len(body)) + body


def mmap2(path: bytes, *, inode: int = 77, prot: int = 5, pid: int = 41) -> bytes:
    head = struct.pack(
        "=IIQQQIIQQII", pid, 43, 0x7F0000001000, 0x2000, 0x1000, 8, 1, inode, 9, prot, 2
    )
    return record(10, head + path + b"\0")


def task(kind: int, *ids: int, at_ns: int = 5) -> bytes:
    return record(kind, struct.pack("=IIIIQ", *ids, 0), at_ns=at_ns)


def parse(data: bytes, skip=()) -> list[Event]:
    return [event for _, event in parse_records(data, skip)]


def test_every_record_kind_is_told_apart() -> None:
    data = b"".join([
        mmap2(b"/usr/lib/libc.so.6"),
        task(7, 50, 41, 50, 41),
        task(7, 41, 41, 51, 41),  # a thread begins
        record(3, struct.pack("=II", 50, 50) + b"curl\0", misc=1 << 13),
        record(3, struct.pack("=II", 50, 50) + b"renamed\0"),
        task(4, 41, 41, 51, 41),  # a thread ends
        task(4, 50, 41, 50, 41),
        record(2, struct.pack("=QQ", 1, 23)),
        record(99, bytes(16)),
    ])  # fmt: skip
    libc = Mapping(41, 0x7F0000001000, 0x7F0000003000, (SDA1, 77, 9), b"/usr/lib/libc.so.6")
    assert parse(data) == [libc, Fork(50, 41), Exec(50), Exit(50), Lost(23)]


def test_uninteresting_mappings_are_left_out() -> None:
    anonymous, data_only, known = mmap2(b"//anon", inode=0), mmap2(b"/x", prot=1), mmap2(b"/k")
    assert parse(anonymous + data_only + known, {(SDA1, 77, 9)}) == []
    assert len(parse_records(known, {(SDA1, 77, 8), (SDA1, 78, 9)})) == 1


@pytest.mark.parametrize("size", [0, 7, 8, 15, 4096])
def test_a_record_of_an_impossible_size_ends_the_reading(size: int) -> None:
    with pytest.raises(SourceError, match=f"claims {size} bytes"):
        parse_records(struct.pack("=IHH", 10, 0, size) + bytes(64))


@given(st.lists(st.sampled_from([mmap2(b"/a"), mmap2(b"/b" * 20), task(4, 5, 1, 5, 1)])))
def test_records_come_back_in_their_order(records: list[bytes]) -> None:
    one_by_one = [event for data in records for event in parse_records(data)]
    assert parse_records(b"".join(records)) == one_by_one


def test_scan_yields_each_executable_file_once_per_process(tmp_path: Path) -> None:
    (tmp_path / "23").mkdir()
    (tmp_path / "23" / "maps").write_bytes(
        b"55d0-55d1 r--p 00000000 08:01 1001                       /usr/bin/a\n"
        b"55d1-55d2 r-xp 00001000 08:01 1001                       /usr/bin/a\n"
        b"7f00-7f01 rwxp 00000000 00:00 0 \n"
        b"7f10-7f12 r-xp 00002000 103:0b 77                        /lib/x y.so (deleted)\n"
        b"7f12-7f13 rwxp 00004000 103:0b 77                        /lib/x y.so (deleted)\n"
        b"7fff-8000 r-xp 00000000 00:00 0                          [vdso]\n"
    )
    (tmp_path / "24").mkdir()  # a process that just went
    (tmp_path / "self").mkdir()
    assert list(mappings.scan(str(tmp_path))) == [
        Mapping(23, 0x55D1, 0x55D2, (8 << 20 | 1, 1001, None), b"/usr/bin/a"),
        Mapping(23, 0x7F10, 0x7F12, (0x103 << 20 | 0xB, 77, None), b"/lib/x y.so (deleted)"),
    ]


class FakeRing:
    def __init__(self, cpu: int, size: int) -> None:
        if cpu == 7:
            raise OSError(19, "No such device")
        self.cpu = cpu
        self.pending = b""
        self.fd, self.other = os.pipe()

    def take(self) -> bytes:
        data, self.pending = self.pending, b""
        return data

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.other)


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setattr(mappings, "_Ring", FakeRing)
    monkeypatch.setattr(mappings, "_online_cpus", lambda: {0, 1})
    made = MappingWatch()
    yield made
    made.close()


def test_a_storm_of_wakes_makes_it_rest_and_calm_wakes_it_again(watch: MappingWatch) -> None:
    now = 5_000_000_000
    for _ in range(100):
        now += 500_000
        watch.drain(now)
        assert watch.resume_ns is None
    now += 500_000
    watch.drain(now)
    assert watch.resume_ns == now + 4_000_000
    now += 150_000_000
    watch.drain(now)
    assert watch.resume_ns is None


def test_losses_are_counted_and_told(watch: MappingWatch) -> None:
    watch._rings[1].pending = record(2, struct.pack("=QQ", 1, 23))
    assert watch.drain(1) == [Lost(23)]
    watch._rings[0].pending = record(2, struct.pack("=QQ", 1, 4))
    watch.drain(2)
    assert watch.lost == 27


def test_events_of_several_cpus_come_in_order_of_time(watch: MappingWatch) -> None:
    watch._rings[0].pending = task(4, 50, 1, 50, 1, at_ns=30)
    watch._rings[1].pending = task(7, 50, 1, 50, 1, at_ns=10) + record(
        3, struct.pack("=II", 50, 50), misc=1 << 13, at_ns=20
    )
    assert watch.drain(1) == [Fork(50, 1), Exec(50), Exit(50)]


def test_cpus_come_and_go(watch: MappingWatch, monkeypatch) -> None:
    monkeypatch.setattr(mappings, "_online_cpus", lambda: {1, 3, 7})  # 7 goes again at once
    watch.refresh()
    assert set(watch._rings) == {1, 3}
    os.close(watch._rings[3].other)  # hangs up
    watch._rings[3].other = os.dup(0)
    watch.drain(1)
    assert set(watch._rings) == {1}


def test_the_list_of_online_cpus_is_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "online").write_text("0-2,5,8-9\n")
    monkeypatch.setattr(mappings, "_ONLINE_CPUS", tmp_path / "online")
    assert mappings._online_cpus() == {0, 1, 2, 5, 8, 9}


def namespaces_record(pid: int, mounts: int) -> bytes:
    spaces = b"".join(struct.pack("=QQ", 4, mounts if i == 5 else 100 + i) for i in range(7))
    body = struct.pack("=IIQ", pid, pid, 7) + spaces + struct.pack("=Q", 1)
    return struct.pack("=IHH", 16, 0, 8 + len(body)) + body


def test_only_a_change_of_mount_namespace_is_news(watch: MappingWatch) -> None:
    ring = watch._rings[0]

    def told(*records: bytes) -> list[Mounts]:
        ring.pending = b"".join(records)
        return [event for event in watch.drain(1) if isinstance(event, Mounts)]

    assert told(namespaces_record(10, 500)) == []  # where it was before is not known
    assert told(namespaces_record(10, 500)) == []
    assert told(namespaces_record(10, 501)) == [Mounts(10, 501)]
    fork = struct.pack("=IHH", 7, 0, 8 + 24 + 8) + struct.pack("=IIIIQ", 11, 10, 11, 10, 1)
    fork += struct.pack("=Q", 1)
    assert told(fork, namespaces_record(11, 501)) == []  # where its parent is
    assert told(fork, namespaces_record(11, 502)) == [Mounts(11, 502)]
