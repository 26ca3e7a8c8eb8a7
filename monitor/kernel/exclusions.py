"""What the administrator keeps probes away from."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from typing import Final

__all__ = ["KINDS", "Exclusions"]

KINDS: Final = ("exe", "comm", "unit", "library")
_UNIT: Final = re.compile(rb"/([^/\n]+\.(?:service|scope|socket|mount|slice))(?=/|\n|$)")


class Exclusions:
    """Rules such as ``exe=/opt/*``, ``comm=postgres``, ``unit=nginx.service``, ``library=*/x.so``.

    A probe lies in a file, and every process that maps the file meets it. So a rule about processes
    keeps probes out of whatever file such a process maps.

    Raises:
        ValueError: a rule of no known kind.
    """

    def __init__(self, rules: Iterable[str] = (), proc: str = "/proc") -> None:
        self._proc = proc
        self._rules: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for rule in rules:
            kind, equals, pattern = rule.partition("=")
            if kind not in self._rules or not equals or not pattern:
                raise ValueError(f"{rule!r} is none of {', '.join(f'{k}=…' for k in KINDS)}")
            self._rules[kind].append(pattern)

    @property
    def about_processes(self) -> bool:
        """Whether it must be known who maps a file."""
        return any(self._rules[kind] for kind in ("exe", "comm", "unit"))

    def of_library(self, path: str) -> str | None:
        """The rule that a file falls under, by its path as a process sees it."""
        return self._match("library", path)

    def of_process(self, pid: int) -> str | None:
        """The rule that a process falls under; None also where it has ended."""
        base = f"{self._proc}/{pid}"
        try:
            if self._rules["exe"]:
                exe = os.readlink(f"{base}/exe").removesuffix(" (deleted)")
                if rule := self._match("exe", exe):
                    return rule
            if self._rules["comm"]:
                with open(f"{base}/comm", "rb") as file:
                    if rule := self._match("comm", os.fsdecode(file.read(64).rstrip(b"\n"))):
                        return rule
            if self._rules["unit"]:
                with open(f"{base}/cgroup", "rb") as file:
                    for unit in _UNIT.findall(file.read(16 << 10)):
                        if rule := self._match("unit", os.fsdecode(unit)):
                            return rule
        except OSError:
            return None
        return None

    def _match(self, kind: str, value: str) -> str | None:
        for pattern in self._rules[kind]:
            if fnmatch.fnmatchcase(value, pattern):
                return f"{kind}={pattern}"
        return None
