"""What was lost: counted without a system call, and told by every record it could belong to."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from monitor.correlate import Lost
from monitor.decode import COUNTERS, ConnFlag
from monitor.errors import SourceError
from monitor.kernel.losses import Losses
from tests.unit.events import World, at, conn, ended, lookup

NAME, V4 = "a.example", "192.0.2.7"
TLS = int(ConnFlag.PACKETS | ConnFlag.TLS)
H2 = int(ConnFlag.PACKETS | ConnFlag.H2)


def only(records):
    (record,) = records
    return record


# ---- the kernel side's counts --------------------------------------------------------------------


def test_a_count_is_seen_at_once_and_as_a_change_once(tmp_path: Path) -> None:
    file = tmp_path / "losses"
    file.write_bytes(bytes(4096))
    with file.open("r+b", buffering=0) as written:
        losses = Losses(written.fileno())
        assert not losses.changed()
        assert set(losses.read()) == set(COUNTERS)
        written.seek(16 * COUNTERS.index("lost_hello"))
        written.write(struct.pack("=QQ", 3, 1234))
        assert losses.changed() and not losses.changed()
        assert losses.read()["lost_hello"] == (3, 1234)
        assert losses.read()["lost_dns"] == (0, 0)
        losses.close()


def test_counts_that_cannot_be_mapped_are_told_in_a_sentence(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(SourceError, match="cannot map the counters of what is lost: "):
        Losses(fd)
    os.close(fd)


# ---- which records -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "begun", "marked"),
    [
        (Lost(1, 0, lookup_ns=at(100)), 50, True),
        (Lost(1, 0, lookup_ns=at(100)), 101, True),  # its lookup came just before
        (Lost(1, 0, lookup_ns=at(100)), 10_099, True),
        (Lost(1, 0, lookup_ns=at(100)), 10_101, False),
        (Lost(1, 0, conn_ns=at(100)), 101, True),  # an attempt, then the one that won
        (Lost(1, 0, conn_ns=at(100)), 1_101, False),
        (Lost(1, at(100)), 100, True),
        (Lost(1, at(100)), 101, False),
        (Lost(1, 0, hello_ns=at(100)), 50, False),  # nothing of TLS was seen on it
    ],
)
def test_a_record_says_that_what_was_lost_could_be_its_own(lost, begun, marked) -> None:
    world = World()
    assert world.feed(lost) == []
    record = only(world.feed(conn(begun, V4, end=begun + 20)))
    assert record.lost_before is marked
    # whether a name was looked up is not known either
    assert record.dns_disp == (None if marked else 0)


def test_a_later_loss_takes_nothing_back() -> None:
    world = World()
    world.feed(Lost(1, 0, lookup_ns=at(100), hello_ns=at(90)))
    world.feed(Lost(1, at(7), conn_ns=at(8)))
    assert only(world.feed(conn(200, V4, end=300))).lost_before


@pytest.mark.parametrize("flags", [TLS, H2])
@pytest.mark.parametrize(("lost_ms", "told"), [(60, False), (40, True)])
def test_what_depends_on_a_hello_that_may_be_lost_is_not_told(flags, lost_ms, told) -> None:
    world = World()
    world.feed(Lost(1, 0, hello_ns=at(lost_ms)))
    opened = conn(
        50, V4, flags=flags, first_tx_ns=at(61), first_rx_ns=at(80), first_resp_ns=at(80),
        turn_count=1, turn_sum_ns=19_000_000, turn_max_ns=19_000_000,
    )  # fmt: skip
    record = only(world.feed(ended(opened, 90)))
    assert record.lost_before is not told
    assert (record.turns is not None) is (told and flags == H2)
    assert (record.txn_resp_us is not None) is (told and flags == H2)
    assert record.sockconn_us == 10_000


def test_the_name_of_an_earlier_lookup_is_not_given_where_its_own_was_lost() -> None:
    world = World()
    world.feed(lookup(0, NAME, V4, end=5))
    before, after = conn(6, V4), conn(7, V4, flags=int(ConnFlag.PACKETS | ConnFlag.LOOKUP_LOST))
    assert only(world.feed(ended(before, 20))).host == NAME
    world.feed(Lost(1, 0, lookup_ns=at(6.5)))
    record = only(world.feed(ended(after, 20)))
    assert (record.host, record.dns, record.dns_disp, record.lost_before) == (None,) * 3 + (True,)


# ---- a connection whose end nobody saw -----------------------------------------------------------


@pytest.mark.parametrize("took", [10, None])
def test_an_end_that_was_not_seen_is_no_end(took) -> None:
    world = World()
    world.feed(lookup(0, NAME, V4, end=5))
    opened = conn(6, V4, took=took, bytes_sent=10**18, bytes_received=7, sk_err=104)
    gone = ended(opened, 9_000, flags=opened.flags | ConnFlag.END_UNSEEN)._replace(phase=5)
    record = only(world.feed(gone))
    assert (record.state, record.error, record.lost_before) == ("closed", None, True)
    assert (record.duration_us, record.tcp, record.host) == (None, None, NAME)
    attempt = only(record.attempts)
    assert (attempt.result, attempt.us) == (("ok", 10_000) if took else (None, None))
    assert world.finish() == []
