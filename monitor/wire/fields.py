"""HTTP/2's header fields, of which two are kept: what was asked for and how it was answered.

A whole decoder takes a millisecond for what a few packets hold, most of it in texts that nobody
asks for. This one steps over them: their length tells where the next field begins. How long they
are when decoded decides when the table lets its oldest entries go; they are taken to be as long as
they can be, so that an entry that may be gone is not known, and one that is known is right.

Source: RFC 7541.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final

__all__ = ["Fields"]

_METHOD, _STATUS = ":method", ":status"
# Both names as they are and in Huffman code.
_NAMES: Final = {
    (False, b":method"): _METHOD,
    (True, bytes.fromhex("b9495339e4")): _METHOD,
    (False, b":status"): _STATUS,
    (True, bytes.fromhex("b8848d36a3")): _STATUS,
}
_STATIC: Final = {
    2: (_METHOD, "GET", len(_METHOD)),
    3: (_METHOD, "POST", len(_METHOD)),
    **{
        8 + at: (_STATUS, code, len(_STATUS))
        for at, code in enumerate(("200", "204", "206", "304", "400", "404", "500"))
    },
}
_STATIC_ENTRIES: Final = 61
_LONGEST_NAME: Final = 27  # of those: access-control-allow-origin
_OTHER: Final = (None, "", _LONGEST_NAME)
# RFC 7541 appendix B, of the letters and digits that methods and statuses have.
_HUFFMAN: Final = {
    **{f"{code:05b}": digit for code, digit in enumerate("012")},
    **{f"{code:06b}": digit for code, digit in enumerate("3456789", 0x19)},
    "010110": "-",
    "100001": "A",
    **{f"{code:07b}": letter for code, letter in enumerate("BCDEFGHIJKLMNOPQRSTUVWY", 0x5D)},
    "11111100": "X",
    "11111101": "Z",
}
_ENTRY: Final = 32  # what an entry counts for besides its texts
_TABLE: Final = 4096  # bytes, until its writer says otherwise
_MAX_SIZES: Final = 2  # changes of that at a block's begin (RFC 7541 section 4.2)
_MAX_FIELDS: Final = 240
_MAX_VALUE: Final = {_METHOD: 20, _STATUS: 3}  # bytes, coded or not

# Name, None where the field is not kept, value, and how long the name is at most.
_Field = tuple[str | None, str, int]


class Fields:
    """The header blocks of one direction, which build on each other."""

    __slots__ = ("_left", "_let_go", "_most", "_size", "_table")

    def __init__(self) -> None:
        self._table: deque[tuple[_Field, int]] = deque()  # the newest first; what it takes at most
        self._size = 0
        self._most = _TABLE
        self._let_go = False
        self._left = _MAX_FIELDS

    def read(self, block: bytes) -> dict[str, str]:
        """Return ``:method`` and ``:status``, where they are in the block; empty if not readable.

        Raises:
            ValueError: no header block, or too many fields.
        """
        found: dict[str, str] = {}
        at = sizes = 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0xE0 == 0x20:
                    sizes += 1
                    if sizes > _MAX_SIZES:
                        raise ValueError("the table's size changes too often")
                    most, at = _integer(block, at, 0x1F)
                    self._resize(most)
                    continue
                self._left -= 1
                if self._left < 0:
                    raise ValueError("too many fields")
                if first & 0x80:
                    index, at = _integer(block, at, 0x7F)
                    name, value, _ = self._entry(index)
                else:
                    (name, value, _), at = self._literal(block, at, keep=bool(first & 0x40))
                if name is not None:
                    found.setdefault(name, value)
        except IndexError:
            raise ValueError("a header block that is cut") from None
        return found

    def _literal(self, block: bytes, at: int, *, keep: bool) -> tuple[_Field, int]:
        index, at = _integer(block, at, 0x3F if keep else 0x0F)
        if index:
            name, _, size = self._entry(index)
        else:
            coded, begin, at = _text(block, at)
            size = _longest(coded, at - begin)
            name = _NAMES.get((coded, block[begin:at])) if at - begin < 8 else None
        coded, begin, at = _text(block, at)
        value = ""
        if name is not None and begin < at <= begin + _MAX_VALUE[name]:
            value = _plain(coded, block[begin:at])
        if keep:
            self._insert((name, value, size), _ENTRY + size + _longest(coded, at - begin))
        return (name, value, size), at

    def _entry(self, index: int) -> _Field:
        if 0 < index <= _STATIC_ENTRIES:
            return _STATIC.get(index, _OTHER)
        index -= _STATIC_ENTRIES + 1
        if 0 <= index < len(self._table):
            return self._table[index][0]
        if index < 0 or not self._let_go:
            raise ValueError("no such entry")
        return _OTHER

    def _insert(self, entry: _Field, size: int) -> None:
        self._table.appendleft((entry, size))
        self._size += size
        self._shrink()

    def _resize(self, most: int) -> None:
        self._most = most
        self._shrink()
        if not most:
            self._let_go = False

    # What stays is there for certain: in truth it is no larger.
    def _shrink(self) -> None:
        while self._size > self._most:
            self._size -= self._table.pop()[1]
            self._let_go = True


# A number that begins in these bits of a byte, and where it ends (RFC 7541 section 5.1).
def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that is too large")


# Whether a text is in Huffman code, where it begins and where it ends.
def _text(block: bytes, at: int) -> tuple[bool, int, int]:
    coded = block[at] >= 0x80
    length, at = _integer(block, at, 0x7F)
    if at + length > len(block):
        raise ValueError("a text that is cut")
    return coded, at, at + length


# No symbol has fewer than 5 bits.
def _longest(coded: bool, length: int) -> int:
    return length * 8 // 5 if coded else length


# A method or status, of which a connection has few; empty where it holds what neither does.
@lru_cache(maxsize=256)
def _plain(coded: bool, text: bytes) -> str:
    if not coded:
        return text.decode("latin-1")
    found = code = ""
    for bit in f"{int.from_bytes(text, 'big'):0{8 * len(text)}b}":
        code += bit
        if code in _HUFFMAN:
            found += _HUFFMAN[code]
            code = ""
    return found if len(code) < 8 and "0" not in code else ""
