"""Defects of conmond's own: each costs what it happened in and nothing more, is counted, and said
once for each place, since whoever can cause it can do so for ever."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

__all__ = ["Faults", "place_of"]

_MOST_PLACES: Final = 100


class Faults:
    """Counts exceptions that nobody foresaw.

    Args:
        say: tells a person.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.count = 0
        self._say = say
        self._places: set[str] = set()

    def note(self, exc: Exception) -> None:
        """Take in one, from the place that catches it."""
        self.count += 1
        kind = f"{place_of(exc)}: {type(exc).__name__}"
        if kind not in self._places and len(self._places) < _MOST_PLACES:
            self._places.add(kind)
            self._say(
                f"internal error, please report it: {kind}: {exc}; what it happened in is left "
                "out, and monitoring goes on (said once; doctor counts them)"
            )

    def guard(self, step: Callable[[], object]) -> None:
        """Take a step, of which nothing that goes wrong gets out."""
        try:
            step()
        except Exception as exc:  # noqa: BLE001 - whatever it is
            self.note(exc)


def place_of(exc: BaseException) -> str:
    """Where it was raised: files and lines, the outermost first."""
    trace = exc.__traceback__
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " > ".join(places)
