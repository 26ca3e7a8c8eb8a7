"""The configuration file: every key documented, every mistake one sentence with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.config import _KEYS, Config, ConfigError, parse_config, read_config

EXAMPLE = Path(__file__).resolve().parents[2] / "systemd" / "config.toml"


def test_the_example_names_every_key_at_its_default():
    assert read_config(EXAMPLE) == Config()
    bare = re.sub(r"^#(?=\w+ = )", "", EXAMPLE.read_text(), flags=re.M)
    assert parse_config(bare, "x") == Config()
    for path in _KEYS:
        assert re.search(rf"^{path[-1]} = ", bare, re.M), path


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1", 1, "'a' is no key"),
        ('\n[history]\nmax_age = "7x"', 3, "history.max_age must be a duration"),
        ('history.max_size = "9"', 1, "1MB or more"),
        ("[api]\n\nmax_clients = true", 3, "whole number from 1"),
        ('metrics = {listen = "localhost:1"}', 1, "metrics.listen must be an address"),
        ('socket = """\nx"""\n', 2, "socket must be a path"),
        ("[history]\nenabled = 1\n", 2, "true or false"),
        ("socket = \n", 1, ""),
        ("history = 3", 1, "history is a table, written [history]"),
        ("\nrecord = 5", 2, "record is a table, written [record], and no value"),
        ("[[stats]]", 1, "stats is a table, written [stats]"),
        ("# two\u2028in one\n[api]\nmax_clients = 0", 3, "whole number from 1"),
        ("#\n" * 9000 + "[stats]\nmax_hosts = -1\n" + "#\n" * 9000, 9002, "whole number"),
        ('"soc\\nket" = 1', 1, "is no key"),
    ],
)
def test_a_mistake_is_one_sentence(text, line, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "/etc/c.toml")
    sentence = str(caught.value)
    assert sentence.startswith(f"/etc/c.toml line {line}: ")
    assert words in sentence
    assert "\n" not in sentence


def test_values_are_read():
    config = parse_config('history.max_age="12h"\nmetrics.listen="[::1]:9435"', "x")
    assert (config.history_max_age, config.metrics_listen) == (43_200, ("::1", 9435))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"\n\xff")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        read_config(tmp_path / "bad")


# What may stand around a mistake: values of several lines, and lines that only look like keys.
AROUND = [
    "# metrics.listen = 2",
    "",
    'group = """\\\nconmond\\\n"""',
    "socket = '''/a\nmetrics.listen = 3\n[api]'''",
    "stats.max_hosts = 5",
    '"history" . "max\\u005fage" = "12h"',
]


@given(st.permutations(AROUND), st.integers(0, len(AROUND)))
def test_the_line_is_right_whatever_stands_around(parts, place):
    before = "".join(part + "\n" for part in parts[:place])
    text = "\n".join([before + "metrics.listen = 1", *parts[place:]])
    with pytest.raises(ConfigError, match=rf"^x line {before.count(chr(10)) + 1}: metrics.listen"):
        parse_config(text, "x")


@given(st.text(max_size=60) | st.sampled_from(["a=", "[", "[[history]]", "x = " + "[" * 5000]))
def test_whatever_stands_there(text):
    sentence = "x line "
    try:
        parse_config(text, "x")
    except ConfigError as exc:
        sentence = str(exc)
    assert sentence.startswith("x line ")
