"""monitor.kernel.ring on a file that has a ring's layout, written as the kernel would."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.errors import SourceError
from monitor.kernel.ring import Ring, Shares

PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = PAGE
BUSY, DISCARD = 1 << 31, 1 << 30


class Producer:
    """The kernel's end. What it writes stands in both copies of the data, as the kernel's does."""

    def __init__(self, path: Path, size: int = SIZE) -> None:
        self.size = size
        path.write_bytes(bytes(2 * PAGE + 2 * size))
        self.fd = os.open(path, os.O_RDWR)
        self.memory = mmap.mmap(self.fd, 0)
        self.position = 0

    def add(self, data: bytes, flags: int = 0) -> int:
        """Returns where its header stands, for ``finish``."""
        header = self.position
        record = struct.pack("=II", len(data) | flags, 0) + data
        for i, byte in enumerate(record):
            at = 2 * PAGE + (header + i) % self.size
            self.memory[at] = self.memory[at + self.size] = byte
        self.position += (len(record) + 7) & ~7
        struct.pack_into("=Q", self.memory, PAGE, self.position)
        return header

    def finish(self, header: int, size: int) -> None:
        for copy in (0, self.size):
            struct.pack_into("=I", self.memory, 2 * PAGE + header % self.size + copy, size)

    @property
    def consumed(self) -> int:
        return struct.unpack_from("=Q", self.memory, 0)[0]


@pytest.fixture
def producer(tmp_path: Path) -> Iterator[Producer]:
    made = Producer(tmp_path / "ring")
    yield made
    made.memory.close()
    os.close(made.fd)


@pytest.fixture
def ring(producer: Producer) -> Iterator[Ring]:
    made = Ring(producer.fd, SIZE)
    yield made
    made.close()


def read(ring: Ring) -> list[bytes]:
    found = []
    for data in ring.read():
        found.append(bytes(data))
        data.release()
    return found


def test_records_come_in_order_and_once(producer: Producer, ring: Ring) -> None:
    records = [bytes([n]) * n for n in (1, 7, 8, 9, 23, 100)]
    for record in records:
        producer.add(record)
    assert ring.waiting == producer.position > 0
    assert read(ring) == records
    assert (ring.waiting, producer.consumed) == (0, producer.position)
    assert ring.fullest == producer.position
    assert read(ring) == []


def test_a_record_over_the_end_of_the_ring_is_whole(producer: Producer, ring: Ring) -> None:
    told = []
    for n in range(200):
        record = bytes([n]) * (n % 97 + 1)
        producer.add(record)
        told += read(ring)
        assert told[-1] == record
    assert len(told) == 200 and producer.position > 2 * SIZE


def test_a_record_being_written_ends_the_reading_until_it_is_done(producer, ring) -> None:
    producer.add(b"first")
    header = producer.add(b"second", BUSY)
    producer.add(b"third")
    assert read(ring) == [b"first"]
    assert read(ring) == []
    producer.finish(header, 6)
    assert read(ring) == [b"second", b"third"]


def test_a_discarded_record_is_passed_over(producer: Producer, ring: Ring) -> None:
    producer.add(b"dropped" * 9, DISCARD)
    producer.add(b"kept")
    assert read(ring) == [b"kept"]
    assert ring.waiting == 0


def test_what_comes_while_reading_waits_for_the_next_time(producer, ring) -> None:
    producer.add(b"one")
    reading = ring.read()
    assert bytes(next(reading)) == b"one"
    producer.add(b"two")
    assert list(reading) == []
    assert read(ring) == [b"two"]


def test_reading_that_breaks_off_leaves_the_rest(producer: Producer, ring: Ring) -> None:
    producer.add(b"one")
    producer.add(b"two")
    reading = ring.read()
    next(reading)
    reading.close()
    assert read(ring) in ([b"one", b"two"], [b"two"])  # never lost: at worst told again


def test_what_cannot_be_mapped_is_told_in_a_sentence(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(SourceError, match="cannot map the ring buffer: "):
        Ring(fd, SIZE)
    os.close(fd)


def test_a_ring_larger_than_what_is_mapped_of_it_is_read_whole(tmp_path: Path) -> None:
    size = 2 << 20
    producer = Producer(tmp_path / "ring", size)
    ring = Ring(producer.fd, size)
    numbers = iter(range(1 << 20))
    for _ in range(5):  # twice round and more
        written = []
        while producer.position - producer.consumed < size - 3 * PAGE:
            written.append(struct.pack("=I", next(numbers)) + bytes(4000))
            producer.add(written[-1][:4] + bytes(next(numbers) % 4000))
        assert [record[:4] for record in written] == [record[:4] for record in read(ring)]
        assert ring.waiting == 0
    assert producer.position > 2 * size
    mapped = Path("/proc/self/smaps").read_text().split(str(tmp_path / "ring"))[1:]
    mapped_kb = sum(int(part.split("Rss:")[1].split()[0]) for part in mapped)
    assert mapped_kb < 2 * size / 1024 + 2048  # the producer's own, and a window
    ring.close()
    producer.memory.close()
    os.close(producer.fd)


def test_shares_are_free_again_once_the_ring_was_read_to_its_end(producer, tmp_path) -> None:
    path = tmp_path / "shares"
    path.write_bytes(struct.pack("=4Q", 100, 0, 23, 0).ljust(PAGE, b"\0"))
    fd = os.open(path, os.O_RDWR)

    def held() -> list[int]:
        a, b, c, d = struct.unpack_from("=4Q", path.read_bytes())
        return [a - b, c - d]

    ring = Ring(producer.fd, SIZE, Shares(fd, 2))
    producer.add(b"one")
    header = producer.add(b"two", BUSY)
    assert read(ring) == [b"one"]
    assert held() == [100, 23]  # what is being written may be theirs
    producer.finish(header, 3)
    reading = ring.read()
    next(reading)
    os.pwrite(fd, struct.pack("=Q", 107), 0)  # came while it was read
    assert list(reading) == []
    assert held() == [7, 0]
    ring.close()
    os.close(fd)
