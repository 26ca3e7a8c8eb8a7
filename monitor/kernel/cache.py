"""A folder that only root can write, for what is costly to make anew at each start."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["CacheFolder", "only_ours"]


class CacheFolder:
    """Files of bytes by name.

    Args:
        folder: is made if it is missing; None is ``$CACHE_DIRECTORY``, which systemd sets, or
            ``/var/cache/conmond``.
    """

    def __init__(self, folder: Path | None = None) -> None:
        named = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
        self.path = folder or Path(named or "/var/cache/conmond")

    def read(self, name: str, most: int) -> bytes | None:
        """Return up to ``most`` bytes of a file; None if there is none that may be trusted."""
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        with open(fd, "rb") as file:
            if not only_ours(os.fstat(fd)) or not only_ours(os.stat(self.path)):
                return None
            return file.read(most)

    def write(self, name: str, data: bytes) -> None:
        """Keep a file; one that cannot be kept is made again next time."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not only_ours(os.stat(self.path)):
                return
            fresh = self.path / f"{name}.{os.getpid()}"
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
            fresh.rename(self.path / name)
        except OSError:
            return

    def drop(self, name: str) -> None:
        """Forget a file."""
        (self.path / name).unlink(missing_ok=True)


def only_ours(status: os.stat_result) -> bool:
    """Whether nobody but this user, and root, can have written it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
