"""Every error that this package raises on purpose, under one root."""

from __future__ import annotations

__all__ = ["ConmonError", "RecordError"]


class ConmonError(Exception):
    """The root: ``except ConmonError`` catches whatever this package raises on purpose."""


class RecordError(ConmonError, ValueError):
    """Text or data that is not a conmon record. The message is one sentence naming the key."""
