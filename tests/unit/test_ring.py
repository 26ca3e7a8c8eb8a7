"""monitor.kernel.ring on a file that has a ring's layout, written as the kernel would."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.errors import SourceError
from monitor.kernel.ring import Ring

PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = PAGE
BUSY, DISCARD = 1 << 31, 1 << 30


class Producer:
    """The kernel's end. What it writes stands in both copies of the data, as the kernel's does."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(2 * PAGE + 2 * SIZE))
        self.fd = os.open(path, os.O_RDWR)
        self.memory = mmap.mmap(self.fd, 0)
        self.position = 0

    def add(self, data: bytes, flags: int = 0) -> int:
        """Returns where its header stands, for ``finish``."""
        header = self.position
        record = struct.pack("=II", len(data) | flags, 0) + data
        for i, byte in enumerate(record):
            at = 2 * PAGE + (header + i) % SIZE
            self.memory[at] = self.memory[at + SIZE] = byte
        self.position += (len(record) + 7) & ~7
        struct.pack_into("=Q", self.memory, PAGE, self.position)
        return header

    def finish(self, header: int, size: int) -> None:
        for copy in (0, SIZE):
            struct.pack_into("=I", self.memory, 2 * PAGE + header % SIZE + copy, size)

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
