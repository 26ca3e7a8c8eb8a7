"""bpf/ as compiled: maps and instructions, to be loaded into this kernel, now or at a later start.

Compiling takes over a second and 100 MB, loading a quarter of a second and nothing. The image
depends on the source, the kernel and the constants alone, so it is kept in a folder that only
root can write; what is loaded from there the kernel's verifier checks as it would anything. What
the verifier refused is kept with it, since a second look may take it a second and ends no other
way.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import source_hash
from pathlib import Path
from typing import Final

from monitor.errors import LoadError
from monitor.kernel.cache import CacheFolder

__all__ = ["Image", "ImageCache", "MapSpec", "ProgramSpec", "Refusal"]

_FORMAT: Final = 3
_MAX_BYTES: Final = 4 << 20
_MAX_IMAGES: Final = 8
_LOAD_IMM64: Final = 0x18
_PSEUDO_MAP_FD: Final = 1  # source register of an instruction that names a map
_INSTRUCTION: Final = struct.Struct("=BBhi")


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What BPF_MAP_CREATE needs."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """What BPF_PROG_LOAD needs. In ``code`` a map is named by its place among the maps."""

    name: str
    type: int
    attach_type: int
    code: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """That the kernel did not take a program."""

    reason: str
    verdict: bool
    """The verifier judged the program; else something was short, and it is worth another try."""


@dataclass(frozen=True, slots=True)
class Image:
    """Everything that is loaded."""

    maps: tuple[MapSpec, ...]
    programs: tuple[ProgramSpec, ...]
    license: str
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    """Program name -> that this kernel refused it when it had just been compiled."""
    refused_under: str = ""
    """Boot and rights of that time, on which a verdict depends too."""

    def to_json(self) -> bytes:
        """As :meth:`from_json` reads it."""
        return json.dumps(
            {
                "format": _FORMAT,
                "license": self.license,
                "refused": {name: asdict(refusal) for name, refusal in self.refused.items()},
                "refused_under": self.refused_under,
                "maps": [asdict(spec) for spec in self.maps],
                "programs": [
                    {**asdict(spec), "code": base64.b64encode(spec.code).decode()}
                    for spec in self.programs
                ],
            }
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Image:
        """Read an image.

        Raises:
            LoadError: it is none, or of another version of conmond.
        """
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise LoadError("an image of another version")
            return cls(
                maps=tuple(MapSpec(**spec) for spec in data["maps"]),
                programs=tuple(
                    ProgramSpec(**{**spec, "code": base64.b64decode(spec["code"], validate=True)})
                    for spec in data["programs"]
                ),
                license=str(data["license"]),
                refused={name: Refusal(**said) for name, said in data["refused"].items()},
                refused_under=str(data["refused_under"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise LoadError(f"an image that cannot be read: {exc}") from exc


def name_maps(code: bytes, places: dict[int, int]) -> bytes:
    """Replace one way to name maps by another in instructions.

    Args:
        code: instructions of 8 bytes.
        places: how a map is named now (a descriptor, or its place) -> how it shall be.
    Raises:
        LoadError: an instruction names a map that is not listed.
    """
    out = bytearray(code)
    at = 0
    while at + 8 <= len(out):
        opcode, registers, offset, number = _INSTRUCTION.unpack_from(out, at)
        if opcode == _LOAD_IMM64:
            if registers >> 4 == _PSEUDO_MAP_FD:
                if number not in places:
                    raise LoadError("a program names a map that was not made")
                _INSTRUCTION.pack_into(out, at, opcode, registers, offset, places[number])
            at += 8  # this one takes two
        at += 8
    return bytes(out)


class ImageCache:
    """Images by what they were made from.

    Args:
        folder: is made if it is missing; None is ``$CACHE_DIRECTORY``, which systemd sets, or
            ``/var/cache/conmond``.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = CacheFolder(folder)

    def read(self, key: str) -> Image | None:
        """Return the image for a key; None if there is none that may be trusted."""
        raw = self._folder.read(_name(key), _MAX_BYTES)
        try:
            return Image.from_json(raw) if raw is not None else None
        except LoadError:
            return None

    def write(self, key: str, image: Image) -> None:
        """Keep an image; one that cannot be kept is compiled again next time."""
        self._folder.write(_name(key), image.to_json())
        with suppress(OSError):
            self._forget_oldest()

    def drop(self, key: str) -> None:
        """Forget an image that this kernel refuses."""
        self._folder.drop(_name(key))

    def _forget_oldest(self) -> None:
        images = sorted(self._folder.path.glob(_name("*")), key=lambda path: path.stat().st_mtime)
        for path in images[:-_MAX_IMAGES]:
            path.unlink(missing_ok=True)


def _name(key: str) -> str:
    return f"{key}.json"


def image_key(folder: Path, flags: list[str]) -> str:
    """Name everything that an image depends on: source, constants, and the kernel, by its build."""
    parts = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".c", ".h")):
        parts.append(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    parts.append("\0".join([*flags, *os.uname()[2:]]).encode())
    try:
        parts.append(Path("/sys/kernel/notes").read_bytes())  # the build id among them
        parts.append(str(os.stat("/sys/kernel/btf/vmlinux").st_size).encode())
    except OSError:
        pass
    # The interpreter's own hash of source, 64 bits at a time: nobody but root chooses what is
    # hashed, and hashlib would load libcrypto, which takes megabytes as long as the daemon runs.
    data = b"\0".join(parts)
    return (source_hash(data) + source_hash(b"conmond" + data)).hex()
