"""monitor.wire.fields against a whole decoder and its encoder (hpack)."""

from __future__ import annotations

import random

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given
from hypothesis import strategies as st

from monitor.wire.fields import Fields

METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "M-SEARCH", "PROPFIND", "QXZKW"]


def wanted(fields: list) -> dict[str, str]:
    kept = {}
    for name, value in fields:
        if name in (b":method", b":status"):
            kept.setdefault(name.decode(), value.decode("latin-1"))
    return kept


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize("size", [256, 1000, 4096, 65_536])
def test_as_a_whole_decoder_reads_them(huffman, size):
    chance = random.Random(5)
    for _ in range(100):
        encoder, decoder, fields = Encoder(), Decoder(), Fields()
        decoder.max_allowed_table_size = size
        encoder.header_table_size = size
        for _ in range(6):
            some = [
                (":method", chance.choice(METHODS)),
                (":status", str(chance.randrange(100, 600))),
            ]
            some += [(f"x-{chance.randrange(9)}", "v" * chance.randrange(9)) for _ in range(5)]
            chance.shuffle(some)
            block = encoder.encode(some, huffman=huffman)
            found, whole = fields.read(block), wanted(decoder.decode(block, raw=True))
            assert found.items() <= whole.items()
            if size >= 4096:
                assert found == whole


def test_every_status_and_method_in_huffman_code():
    for text in [*map(str, range(100, 1000)), *METHODS]:
        name = ":status" if text.isdecimal() else ":method"
        assert Fields().read(Encoder().encode([(name, text)])) == {name: text}


def test_names_spelled_out():
    for name in (b":method", b":status"):
        for text in (name, Encoder().huffman_coder.encode(name)):
            bit = 0 if text == name else 0x80
            block = b"\0" + bytes([len(text) | bit]) + text + b"\x03200"
            assert Fields().read(block) == {name.decode(): "200"}


def test_a_value_that_neither_has_is_empty():
    block = Encoder().encode([(":method", "lower"), (":status", "x200")])
    assert Fields().read(block) == {":method": "", ":status": ""}


def test_an_entry_that_the_table_may_have_let_go_is_not_known():
    fields = Fields()
    assert fields.read(b"\x48\x03302") == {":status": "302"}
    assert fields.read(b"\xbe") == {":status": "302"}
    for _ in range(2):
        assert fields.read(b"\x40\x01a\x7f\xe1\x0f" + bytes(2144)) == {}
    assert fields.read(b"\xc0") == {}
    assert fields.read(b"\x48\x03307") == {":status": "307"}  # the newest are there for certain
    assert fields.read(b"\xbe") == {":status": "307"}
    assert fields.read(b"\x88\xc0") == {":status": "200"}  # what needs no table still is
    assert fields.read(b"\x20\x3f\xe1\x1f\x48\x03404") == {
        ":status": "404"
    }  # emptied by its writer
    assert fields.read(b"\xbe") == {":status": "404"}


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # no such index
        b"\xbe",  # not in the table
        b"\xff\xff\xff\xff\xff\x7f",
        b"\xff",
        b"\x40\x05a",
        b"\x40\x01a\x05b",
        b"\x20" * 3,
        b"\x82" * 300,
    ],
)
def test_what_is_no_header_block(block):
    with pytest.raises(ValueError):
        Fields().read(block)


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_any_bytes_are_read_or_refused(blocks):
    fields = Fields()
    for block in blocks:
        try:
            assert set(fields.read(block)) <= {":method", ":status"}
        except ValueError:
            break


def test_damaged_blocks_are_never_read_otherwise_than_by_a_whole_decoder():
    chance = random.Random(8)
    alike = 0
    for _ in range(20_000):
        encoder = Encoder()
        some = [(":status", "302"), ("location", "/a"), (":method", "PATCH"), ("x", "yz")]
        block = bytearray(encoder.encode(some) + encoder.encode(some))
        block[chance.randrange(len(block))] = chance.randrange(256)
        try:
            whole = Decoder().decode(bytes(block), raw=True)
        except (HPACKError, IndexError, ValueError):
            continue
        try:
            found = Fields().read(bytes(block))
        except ValueError:
            continue
        for name, value in wanted(whole).items():
            assert found[name] in (value, "")
        alike += 1
    assert alike > 5_000
