"""monitor.wire.fields: hpack's decoder within its bounds."""

from __future__ import annotations

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from monitor.wire.fields import Fields


def test_method_and_status_are_kept_over_blocks_that_build_on_each_other():
    encoder, fields = Encoder(), Fields()
    for status in ("103", "299", "299"):
        block = encoder.encode([(":status", status), ("server", "lab"), ("x-y", "z" * 20)])
        assert fields.read(block) == {":status": status}
    assert Fields().read(Encoder().encode([(":method", "PROPFIND")])) == {":method": "PROPFIND"}


def test_a_table_that_the_reader_has_allowed_to_be_large_is_read():
    block = bytes.fromhex("3fe1ff03") + Encoder().encode([(":status", "404")])
    assert Fields().read(block) == {":status": "404"}


@pytest.mark.parametrize(
    "block", [b"\xbf", b"\x00\x05abc", b"\x82" * 400, b"\0\0\0" * 170, bytes(5000), b"\x20" * 3],
    ids=["no such entry", "cut", "many fields", "many literal ones", "long", "sizes"],
)  # fmt: skip
def test_what_cannot_or_shall_not_be_read_is_refused(block):
    with pytest.raises(ValueError, match="header fields"):
        Fields().read(block)


@given(st.lists(st.binary(max_size=400), max_size=6))
def test_any_bytes_are_read_or_refused(blocks):
    fields = Fields()
    try:
        for block in blocks:
            assert fields.read(block).keys() <= {":method", ":status"}
    except ValueError:
        pass
