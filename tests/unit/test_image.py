"""Images of the kernel side: instructions, JSON, and what is trusted of a folder."""

from __future__ import annotations

import os
import struct
from dataclasses import replace

import pytest

from monitor.errors import LoadError
from monitor.kernel.image import (
    Image,
    ImageCache,
    MapSpec,
    ProgramSpec,
    Refusal,
    image_key,
    name_maps,
)


def instruction(opcode: int, source: int, number: int) -> bytes:
    return struct.pack("=BBhi", opcode, source << 4 | 1, 0, number)


SECOND_HALF = bytes(8)
IMAGE = Image(
    maps=(MapSpec("events", 27, 0, 0, 4096, 0), MapSpec("conns", 1, 8, 656, 23, 1)),
    programs=(ProgramSpec("enter", 2, -1, b"\xff\x00" * 8),),
    license="Dual MIT/GPL",
)


def test_only_instructions_that_name_maps_change():
    code = (
        instruction(0x18, 1, 40)
        + SECOND_HALF
        + instruction(0x18, 0, 40)  # a plain constant
        + instruction(0x18, 1, 99)  # the second half of that one, whatever it looks like
        + instruction(0xB7, 1, 40)
        + instruction(0x18, 1, 41)
        + SECOND_HALF
    )
    named = name_maps(code, {40: 0, 41: 1})
    numbers = [struct.unpack_from("=i", named, at + 4)[0] for at in range(0, len(named), 8)]
    assert numbers == [0, 0, 40, 99, 40, 1, 0]
    assert name_maps(named, {0: 40, 1: 41}) == code


def test_a_map_that_is_not_listed_is_refused():
    with pytest.raises(LoadError, match="not made"):
        name_maps(instruction(0x18, 1, 7) + SECOND_HALF, {8: 0})


@pytest.mark.parametrize("refused", [{}, {"enter": Refusal("too large", True)}])
def test_json_round_trip(refused):
    image = replace(IMAGE, refused=refused, refused_under="boot")
    assert Image.from_json(image.to_json()) == image


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"format": 2}', b'{"format": 1}', b"\xff"])
def test_what_is_no_image_is_refused(text):
    with pytest.raises(LoadError):
        Image.from_json(text)


def test_cache_returns_what_it_was_given_and_nothing_for_another_key(tmp_path):
    cache = ImageCache(tmp_path / "new" / "folder")
    assert cache.read("key") is None
    cache.write("key", IMAGE)
    assert cache.read("key") == IMAGE
    assert cache.read("other") is None
    cache.drop("key")
    assert cache.read("key") is None


def test_cache_keeps_few(tmp_path):
    cache = ImageCache(tmp_path)
    for number in range(20):
        cache.write(f"key{number}", replace(IMAGE, license=str(number)))
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_may_write_is_not_trusted(tmp_path, mode):
    cache = ImageCache(tmp_path)
    cache.write("key", IMAGE)
    os.chmod(tmp_path / "key.json", mode)
    assert cache.read("key") is None


def test_a_folder_that_others_may_write_is_not_trusted(tmp_path):
    cache = ImageCache(tmp_path)
    cache.write("key", IMAGE)
    os.chmod(tmp_path, 0o777)
    assert cache.read("key") is None
    cache.write("more", IMAGE)
    assert not (tmp_path / "more.json").exists()


def test_a_link_is_not_followed(tmp_path):
    cache = ImageCache(tmp_path / "cache")
    cache.write("real", IMAGE)
    (tmp_path / "cache" / "key.json").symlink_to(tmp_path / "cache" / "real.json")
    assert cache.read("key") is None


def test_key_changes_with_source_and_constants(tmp_path):
    (tmp_path / "a.c").write_text("int a;")
    one = image_key(tmp_path, ["-DX=1"])
    assert image_key(tmp_path, ["-DX=1"]) == one
    assert image_key(tmp_path, ["-DX=2"]) != one
    (tmp_path / "a.c").write_text("int b;")
    assert image_key(tmp_path, ["-DX=1"]) != one
