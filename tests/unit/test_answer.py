"""What answers are made of."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.api.answer import error, to_json


@pytest.mark.parametrize(
    "text", ["\x1b]0;x\x07", "\x7f", "\x9b31m", "a\u202eb", "é漢", "\U0001f600", "\n", '\\"',
             "\udcff", "\udcff\x9b\x7f"]
)  # fmt: skip
def test_an_answer_is_one_line_of_printable_ascii(text):
    for line in (to_json({text: [text, None, {"a": f"x{text}y"}]}), error(400, text).body):
        assert all(0x20 <= byte < 0x7F for byte in line[:-1])
        assert line[-1:] == b"\n"
    assert json.loads(to_json({text: [text]})) == {text: [text]}


@given(st.text())
def test_any_text_comes_back_as_it_was(text):
    line = to_json(text)
    assert line.isascii()
    assert json.loads(line) == text
