"""Throwaway network namespaces, always removed, those of a crashed run too."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

PREFIX = "conmond-lab-"
RUN_DIR = Path("/run/netns")
ETC_DIR = Path("/etc/netns")
CLONE_NEWNET = 0x40000000

# Clients see nothing of the tester's surroundings: no proxies, no certificate bundles.
CLEAN_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
}

_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


def _ip(*args: str) -> str:
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def _setns(path: str | Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"setns {path}: {os.strerror(number)}")
    finally:
        os.close(fd)


def remove_stale() -> list[str]:
    """Remove the namespaces whose test run is no longer alive; their names are returned."""
    removed = []
    known = RUN_DIR.iterdir() if RUN_DIR.is_dir() else iter(())
    leftover = ETC_DIR.iterdir() if ETC_DIR.is_dir() else iter(())
    for name in sorted({path.name for path in itertools.chain(known, leftover)}):
        owner = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and owner.isdigit() and not Path("/proc", owner).exists():
            _remove(name)
            removed.append(name)
    return removed


def _remove(name: str) -> None:
    if (RUN_DIR / name).exists():
        for pid in _ip("netns", "pids", name).split():
            # Only this run's own threads enter with setns(); everything else in here is a client.
            if int(pid) != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", name)
    shutil.rmtree(ETC_DIR / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        ETC_DIR.rmdir()


class Namespace:
    """One network namespace with its own resolv.conf, hosts and nsswitch.conf.

    Args:
        nameserver: the only resolver that programs in here will ask.
        resolver_options: the ``options`` line of resolv.conf. One attempt of one second
            by default, so that a silent resolver costs a test one second.
    """

    def __init__(
        self,
        *,
        nameserver: str = "127.0.0.1",
        resolver_options: str = "timeout:1 attempts:1",
    ) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        etc = ETC_DIR / self.name
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text(
            f"nameserver {nameserver}\noptions {resolver_options}\n", encoding="ascii"
        )
        # The machine's own name too, as on any machine: libldap, inside curl, looks it up.
        (etc / "hosts").write_text(
            f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {os.uname().nodename}\n",
            encoding="ascii",
        )
        (etc / "nsswitch.conf").write_text(
            "passwd: files\ngroup: files\nservices: files\nhosts: files dns\n", encoding="ascii"
        )
        try:
            _ip("netns", "add", self.name)
            self.ip("link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        return RUN_DIR / self.name

    @property
    def inode(self) -> int:
        """The number that the kernel gives for this namespace (``netns`` in a record)."""
        return self.path.stat().st_ino

    def ip(self, *args: str) -> str:
        """Run ``ip`` inside."""
        return _ip("-n", self.name, *args)

    def add_loopback(self, *addresses: str) -> None:
        """Give lo more addresses, IPv4 or IPv6, each on its own."""
        for address in addresses:
            self.ip("addr", "add", f"{address}/{128 if ':' in address else 32}", "dev", "lo")

    def sysctl(self, name: str, value: int | str) -> None:
        """Set ``net.…`` of this namespace, with dots or slashes in ``name``."""
        path = Path("/proc/sys", name.replace(".", "/"))
        # /proc/sys/net shows the opener's own namespace
        self.call(lambda: path.write_text(f"{value}\n", encoding="ascii"))

    def call(self, function: Callable[[], _T]) -> _T:
        """Run ``function`` in a thread of this process that stands inside the namespace.

        Sockets made there stay there, whoever uses them later.
        """
        outcome: list[Any] = []

        def work() -> None:
            try:
                _setns(self.path)
                outcome.append((function(), None))
            except BaseException as exc:  # noqa: BLE001 - handed to the caller, whatever it is
                outcome.append((None, exc))

        thread = threading.Thread(target=work, name=f"in {self.name}")
        thread.start()
        thread.join()
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv`` as a command line that runs it inside; the pid stays the child's."""
        # Before ordinary work, so that what they measure is the lab and not a busy machine.
        return ["nice", "-n", "-15", "ip", "netns", "exec", self.name, *argv]

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a program inside, with a clean environment plus ``env``."""
        for stream in ("stdin", "stdout", "stderr"):
            options.setdefault(stream, subprocess.DEVNULL if stream == "stdin" else subprocess.PIPE)
        return subprocess.Popen(
            self.command(argv), env={**CLEAN_ENV, **(env or {})}, text=True, **options
        )

    def close(self) -> None:
        """Remove it, and end the clients that still run inside."""
        _remove(self.name)


@contextlib.contextmanager
def namespace(**options: Any) -> Iterator[Namespace]:
    """A ``Namespace`` for the length of a ``with`` block."""
    made = Namespace(**options)
    try:
        yield made
    finally:
        made.close()
