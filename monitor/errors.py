"""The errors that conmond raises: one root, so that one handler turns them into one sentence.

Every message is that sentence: what failed, on what, why and, where there is something, what
would help.
"""

from __future__ import annotations

__all__ = ["DecodeError", "LoadError", "MonitorError", "SourceError"]


class MonitorError(Exception):
    """Anything that went wrong in a way that was foreseen."""


class SourceError(MonitorError):
    """A source of facts (a file, a probe, the kernel) cannot be read or attached."""


class DecodeError(MonitorError):
    """Bytes from the kernel are not what they should be."""


class LoadError(MonitorError):
    """The programs for the kernel cannot be compiled or loaded."""
