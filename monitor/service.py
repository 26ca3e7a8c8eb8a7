"""What systemd is told: ready, alive, stopping (sd_notify(3)), where there is a systemd."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

__all__ = ["Service"]


class Service:
    """The service manager's end of the notification socket; does nothing where there is none.

    Args:
        environment: holds NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID under systemd.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET"))
        self.watchdog_ns = _watchdog_ns(environment) if self._address is not None else None
        """How often :meth:`alive` must be called, half of what systemd waits; None: never."""
        self._alive_due_ns = 0

    def ready(self) -> None:
        """Every probe is attached."""
        self._send("READY=1")

    def alive(self, now_ns: int) -> None:
        """The daemon does its work; to be called only where that was just seen.

        Args:
            now_ns: CLOCK_MONOTONIC; systemd is told at most twice in its watchdog's time.
        """
        if self.watchdog_ns is not None and now_ns >= self._alive_due_ns:
            self._alive_due_ns = now_ns + self.watchdog_ns
            self._send("WATCHDOG=1")

    def status(self, sentence: str) -> None:
        """Say how it goes, for ``systemctl status``."""
        self._send("STATUS=" + " ".join(sentence.split()))

    def stopping(self) -> None:
        """It ends now."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        # a service manager that is gone or busy must not end the daemon
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(text.encode("utf-8", "replace"), self._address)


def _address(path: str | None) -> str | None:
    if not path or path[0] not in "/@":
        return None
    return "\0" + path[1:] if path[0] == "@" else path


def _watchdog_ns(environment: Mapping[str, str]) -> int | None:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environment["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return microseconds * 500 if microseconds > 0 else None
