"""Words for people, on stderr."""

from __future__ import annotations

import sys
from contextlib import suppress

from conmon.escape import printable

__all__ = ["SENTENCE_LIMIT", "say"]

SENTENCE_LIMIT = 4096  # as PATH_MAX, and a path is the longest thing in one


def say(sentence: str) -> None:
    """Print one sentence on stderr, which may be gone."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"conmond: {printable(sentence, SENTENCE_LIMIT)}", file=sys.stderr, flush=True)
