"""The sockets that the query socket's server listens on."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from monitor.errors import SourceError

__all__ = ["PathInUse", "listen_tcp", "listen_unix"]


class PathInUse(SourceError):
    """Another daemon answers on this path."""


def listen_unix(path: str) -> socket.socket:
    """Listen on a Unix socket that everyone may connect to; a stale one is replaced.

    Raises:
        PathInUse: another process listens there.
        SourceError: the path cannot be used; one sentence.
    """
    try:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setblocking(False)
            listener.bind(path)
            # whoever may connect is told what SO_PEERCRED permits
            os.chmod(path, 0o666)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise SourceError(f"cannot listen on {path}: {reason}") from exc
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise SourceError(f"cannot listen on {path}: something that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise PathInUse(
        f"cannot listen on {path}: another conmond answers there; --socket names another path"
    )


def listen_tcp(address: tuple[str, int]) -> socket.socket:
    """Listen on a TCP port.

    Args:
        address: host, as an address, and port.
    Raises:
        SourceError: it cannot be had; one sentence.
    """
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(16)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise SourceError(
            f"cannot listen on {host} port {port} for metrics: {exc.strerror}"
        ) from exc
    return listener
