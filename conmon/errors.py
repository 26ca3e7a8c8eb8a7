"""Every error that this package raises on purpose, under one root."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .record import Record

__all__ = [
    "BadRequest",
    "ConmonError",
    "ConnectFailed",
    "DaemonAnswerError",
    "DaemonError",
    "DaemonUnreachable",
    "NotFound",
    "NotPermitted",
    "RecordError",
]


class ConmonError(Exception):
    """The root: ``except ConmonError`` catches whatever this package raises on purpose."""


class RecordError(ConmonError, ValueError):
    """Text or data that is not a conmon record. The message is one sentence naming the key."""


class ConnectFailed(ConmonError, OSError):
    """No connection came about. ``record`` says which phase failed, why, and what it took."""

    def __init__(self, sentence: str, record: Record) -> None:
        super().__init__(sentence)
        self.record = record


class DaemonError(ConmonError):
    """The daemon did not give what was asked of it."""


class DaemonUnreachable(DaemonError):
    """No daemon answers, or it broke off in mid-answer."""


class NotPermitted(DaemonError):
    """It answers root and members of its group alone."""


class NotFound(DaemonError):
    """It knows no such record, or none that the asker may see."""


class DaemonAnswerError(DaemonError):
    """It refused the question, or its answer cannot be read."""


class BadRequest(DaemonAnswerError):
    """It was asked for what it does not have: a wrong parameter, or a wrong value of one."""
