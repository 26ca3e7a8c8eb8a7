"""Which sockets have been connected before: a socket's cookie names its first connection alone.
Pure."""

from __future__ import annotations

from typing import Final

from monitor.decode import ConnEvent

__all__ = ["Sockets"]

# Of sockets whose connection ended, in each of two generations: 3.3 MB at most. Whoever connects a
# socket again does so soon, mostly.
MAX_SOCKETS: Final = 16_384


class Sockets:
    """The sockets whose connections ended last, by cookie, with when the first of each began."""

    def __init__(self) -> None:
        self._newer: dict[int, int] = {}
        self._older: dict[int, int] = {}

    def ended(self, conn: ConnEvent) -> None:
        """A connection ended. What its socket begins from now on is another."""
        if conn.cookie:
            first_ns = self._older.get(conn.cookie, conn.connect_ns)
            self._newer.setdefault(conn.cookie, first_ns)
            if len(self._newer) >= MAX_SOCKETS:
                self._older, self._newer = self._newer, {}

    def again(self, conn: ConnEvent) -> bool:
        """Whether a connection, ended or open, is not the first of its socket."""
        first_ns = self._newer.get(conn.cookie) or self._older.get(conn.cookie)
        return first_ns is not None and first_ns != conn.connect_ns
