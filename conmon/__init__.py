"""What a connection took: the conmon record, for any program to read and write.

Standard library only, any operating system, Python 3.9 or later.
"""

from __future__ import annotations

from .client import Daemon, take
from .errors import (
    ConmonError,
    DaemonAnswerError,
    DaemonError,
    DaemonUnreachable,
    NotFound,
    NotPermitted,
    RecordError,
)
from .record import Attempt, Record, Tcp, Tls, Turns

__all__ = [
    "Attempt",
    "ConmonError",
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
    "take",
]
