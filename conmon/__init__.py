"""What a connection took: the conmon record, for any program to read and write.

Standard library only, any operating system, Python 3.9 or later.
"""

from __future__ import annotations

from .errors import ConmonError, RecordError
from .record import Attempt, Record, Tcp, Tls, Turns

__all__ = ["Attempt", "ConmonError", "Record", "RecordError", "Tcp", "Tls", "Turns"]
