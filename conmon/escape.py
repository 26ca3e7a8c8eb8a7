"""Text that strangers chose, made safe for a terminal.

A process names itself (comm), its files and the hosts it asks for as it likes. Shown raw, such a
name could move the cursor, recolour the screen, answer for the keyboard, turn the line around
(bidi) or hide in it. Nothing reaches a terminal but through ``printable()``.
"""

from __future__ import annotations

import unicodedata

__all__ = ["printable", "width"]

# Of these categories nothing is shown as it is: controls (ESC and C1 among them), format (bidi,
# zero-width), surrogates, private use, unassigned, line and paragraph separators, marks that
# combine with what stands before them, and every space but the one.
_ESCAPED_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs", "Mn", "Me", "Mc"))

# Letters and symbols by category, but drawn as nothing.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")

_CUT = "…"


def _token(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return "\\\\"  # so that an escape is always ours
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if char == " " or (
        unicodedata.category(char) not in _ESCAPED_CATEGORIES and char not in _BLANK
    ):
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Return the terminal cells that printable text takes: two for a wide East Asian character."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def printable(text: str, limit: int) -> str:
    """Return text with everything that is not plainly visible escaped, in at most limit cells.

    ``\\x1b`` is a control character or a byte that was not UTF-8, ``\\u202e`` any other character,
    ``\\\\`` a backslash. What does not fit ends in ``…``; an escape is never cut in two.
    """
    if limit <= 0:
        return ""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text if len(text) <= limit else text[: limit - 1] + _CUT
    tokens: list[str] = []
    used = 0
    room_with_cut = 0  # tokens that leave a cell for the mark
    for char in text:
        token = _token(char)
        used += width(token)
        if used > limit:
            return "".join(tokens[:room_with_cut]) + _CUT
        tokens.append(token)
        if used < limit:
            room_with_cut = len(tokens)
    return "".join(tokens)
