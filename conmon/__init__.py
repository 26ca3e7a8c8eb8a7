"""What a connection took: the conmon record, for any program to read and write.

Standard library only, any operating system, Python 3.9 or later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .client import Daemon, take
from .errors import (
    BadRequest,
    ConmonError,
    ConnectFailed,
    DaemonAnswerError,
    DaemonError,
    DaemonUnreachable,
    NotFound,
    NotPermitted,
    RecordError,
)
from .record import Attempt, Record, Tcp, Tls, Turns

if TYPE_CHECKING:
    from .connecting import connect, open_connection
    from .watching import watch

__all__ = [
    "Attempt",
    "BadRequest",
    "ConmonError",
    "ConnectFailed",
    "Daemon",
    "DaemonAnswerError",
    "DaemonError",
    "DaemonUnreachable",
    "NotFound",
    "NotPermitted",
    "Record",
    "RecordError",
    "Tcp",
    "Tls",
    "Turns",
    "connect",
    "open_connection",
    "take",
    "watch",
]


# These bring ssl and selectors, which a program that only reads records does not need.
_LATER = {"connect": "connecting", "open_connection": "connecting", "watch": "watching"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        import importlib

        found = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
