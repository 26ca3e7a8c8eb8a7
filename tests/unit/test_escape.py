"""What strangers name themselves must not reach a terminal as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conmon.escape import printable, width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("curl", "curl"),
        ("a b", "a b"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\n", "a\\x0db\\x0a"),
        ("\x7f", "\\x7f"),
        ("\x9b31m", "\\u009b31m"),
        ("user\u202egpj", "user\\u202egpj"),
        ("a\u200bb", "a\\u200bb"),
        ("a\u00a0b", "a\\u00a0b"),
        ("e\u0301", "e\\u0301"),
        ("\U000e0041", "\\U000e0041"),
        ("\udc9b", "\\x9b"),
        ("\ud800", "\\ud800"),
        ("\u3164", "\\u3164"),
        ("C:\\x1b", "C:\\\\x1b"),
        ("bücher.example", "bücher.example"),
        ("例え.jp", "例え.jp"),
    ],
)
def test_only_what_is_plainly_visible_is_shown_as_it_is(text, shown):
    assert printable(text, 80) == shown


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("例え例え", 8, "例え例え"),
        ("例え例え", 7, "例え例…"),
        ("例え例え", 6, "例え…"),
        ("ab\x1bcd", 6, "ab…"),
        ("ab\x1b", 6, "ab\\x1b"),
        ("ab\x1b", 5, "ab…"),
        ("\x1b", 3, "…"),
        ("abc", 0, ""),
    ],
)
def test_what_does_not_fit_is_cut_between_characters(text, limit, shown):
    assert printable(text, limit) == shown


@given(st.text(st.characters()), st.integers(0, 40))
def test_any_text_fits_and_holds_no_hidden_character(text, limit):
    shown = printable(text, limit)
    assert width(shown) <= limit
    shown.encode("utf-8")
    assert not {unicodedata.category(char) for char in shown.replace(" ", "")} & {
        *("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs", "Mn", "Me", "Mc")
    }


@given(st.text(st.characters()), st.text(st.characters()))
def test_two_texts_never_look_the_same(one, other):
    # Raw bytes and lone surrogates aside, which only ever come from surrogateescape.
    assert (printable(one, 10_000) == printable(other, 10_000)) == (one == other)
