"""Reads /etc/conmond/config.toml. Every key stands, with its default, in systemd/config.toml."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from monitor.api.parameters import ParameterError, duration_ns
from monitor.errors import MonitorError
from monitor.kernel.exclusions import Exclusions
from monitor.options import Config

__all__ = ["Config", "ConfigError", "parse_config", "read_config"]

MAX_BYTES: Final = 1 << 16


class ConfigError(MonitorError):
    """The file is not what it should be: one sentence with its line."""


_SIZES: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(KB|MB|GB|TB|)", re.ASCII)


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError("a path from / on, in quotes")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
        raise ValueError("the name of a group, in quotes")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _age(value: Any) -> float:
    wanted = "a duration such as 90s, 12h or 7d, in quotes"
    if not isinstance(value, str):
        raise ValueError(wanted)
    try:
        seconds = duration_ns("", value) / 1e9
    except ParameterError as exc:
        raise ValueError(wanted) from exc
    if seconds < 60:
        raise ValueError("a duration of a minute or more")
    return seconds


def _size(value: Any) -> int:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("a size such as 500MB or 2GB, in quotes")
    size = int(float(found[1]) * _SIZES[found[2]])
    if size < 10**6:
        raise ValueError("a size of 1MB or more")
    return size


def _number(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return read


def _listen(value: Any) -> tuple[str, int] | None:
    wanted = 'an address and port such as "127.0.0.1:9435" or "[::1]:9435", or ""'
    if value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(wanted)
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        number = int(port) if port.isascii() and port.isdigit() else 0
    except ValueError as exc:
        raise ValueError(wanted) from exc
    if bracketed != (address.version == 6) or not 1 <= number <= 65535:
        raise ValueError(wanted)
    return str(address), number


def _libraries(value: Any) -> str:
    if value not in ("all", "names", "none"):
        raise ValueError('"all", "names" or "none"')
    return str(value)


def _exclusions(value: Any) -> tuple[str, ...]:
    wanted = (
        'a list of rules such as ["exe=/opt/*", "comm=postgres", "unit=a.service", "library=*.so"]'
    )
    if not isinstance(value, list) or not all(isinstance(rule, str) for rule in value):
        raise ValueError(wanted)
    try:
        Exclusions(value)
    except ValueError as exc:
        raise ValueError(f"{wanted}: {exc}") from exc
    return tuple(value)


# key in the file -> field of Config, reader
_KEYS: Final[dict[tuple[str, ...], tuple[str, Callable[[Any], Any]]]] = {
    ("socket",): ("socket", _path),
    ("state_dir",): ("state_dir", _path),
    ("group",): ("group", _name),
    ("record", "cmdline"): ("record_cmdline", _flag),
    ("record", "inbound"): ("record_inbound", _flag),
    ("history", "enabled"): ("history_enabled", _flag),
    ("history", "max_age"): ("history_max_age", _age),
    ("history", "max_size"): ("history_max_size", _size),
    ("stats", "max_processes"): ("stats_max_processes", _number(1, 100_000)),
    ("stats", "max_hosts"): ("stats_max_hosts", _number(1, 100_000)),
    ("api", "max_clients"): ("api_max_clients", _number(1, 10_000)),
    ("api", "max_requests_per_second"): ("api_max_requests_per_second", _number(1, 100_000)),
    ("metrics", "listen"): ("metrics_listen", _listen),
    ("probe", "libraries"): ("probe_libraries", _libraries),
    ("probe", "exclude"): ("probe_exclude", _exclusions),
}
_TABLES: Final = {path[:-1] for path in _KEYS if len(path) > 1}


def read_config(path: str | Path) -> Config:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = raw[: exc.start].count(b"\n") + 1
        raise ConfigError(f"{path} line {line}: not UTF-8") from exc
    return parse_config(text, str(path))


def parse_config(text: str, name: str) -> Config:
    """Read a file's text.

    Args:
        name: of the file, for errors.
    Raises:
        ConfigError: something in it is wrong.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        sentence, line = _without_place(str(exc))
        raise ConfigError(f"{name} line {line or text.count(chr(10)) + 1}: {sentence}") from exc
    except (ValueError, RecursionError) as exc:  # a number or a nesting too large for it
        raise ConfigError(f"{name} line 1: cannot be read: {exc}") from exc
    values: dict[str, Any] = {}
    _read_table(data, (), values, text, name)
    return Config(**values)


def _read_table(
    data: dict[str, Any], above: tuple[str, ...], values: dict[str, Any], text: str, name: str
) -> None:
    for key, value in data.items():
        path = (*above, key)
        dotted = ".".join(path)
        if path in _TABLES and isinstance(value, dict):
            _read_table(value, path, values, text, name)
            continue
        where = f"{name} line {_line_of(path, text)}"
        if path in _TABLES:
            raise ConfigError(f"{where}: {dotted} is a table, written [{dotted}], and no value")
        if path not in _KEYS:
            known = sorted(".".join(known) for known in (*_KEYS, *_TABLES) if known[:-1] == above)
            known_keys = ", ".join(known)
            raise ConfigError(f"{where}: {_quoted(dotted)} is no key; these are: {known_keys}")
        field, read = _KEYS[path]
        try:
            values[field] = read(value)
        except ValueError as exc:
            raise ConfigError(f"{where}: {dotted} must be {exc}") from exc


def _without_place(message: str) -> tuple[str, int | None]:
    found = re.search(r"\s*\(at (?:line (\d+), column \d+|end of document)\)$", message)
    if found is None:
        return message, None
    return message[: found.start()], int(found[1]) if found[1] else None


# tomllib gives no lines for keys. The first line at which the text up to its end holds the key
# is the one; asking tomllib itself is right whatever the quoting. What holds the key holds it
# further on, too, so the line is found by halving.
def _line_of(path: tuple[str, ...], text: str) -> int:
    lines = text.split("\n")  # TOML ends a line with nothing else
    first, last = 1, len(lines)
    while first < last:
        middle = (first + last) // 2
        end, held = _next_readable(path, lines, middle)
        if held:
            last = middle
        else:
            first = end + 1
    return _next_readable(path, lines, first)[0]


# How many lines, at least so many, can be read by themselves, and whether the key is in them.
# Others end in the middle of a value.
def _next_readable(path: tuple[str, ...], lines: list[str], number: int) -> tuple[int, bool]:
    while True:
        try:
            data: Any = tomllib.loads("\n".join(lines[:number]))
            break
        except (ValueError, RecursionError):
            if number >= len(lines):
                return number, True
            number += 1
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return number, data is not None


def _quoted(text: str) -> str:
    return ascii(text[:80])
