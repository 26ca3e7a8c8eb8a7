"""Probes in the libraries that programs use, kept up to date as programs come and go.

Puts together the watch over mappings, the watch over files that are probed, and the targets; the
prober sees one object with one descriptor to wait for.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Mapping
from typing import Final

from monitor.errors import SourceError
from monitor.kernel import uprobe
from monitor.kernel.cache import CacheFolder
from monitor.kernel.disassembler import Disassembler
from monitor.kernel.exclusions import Exclusions
from monitor.kernel.file_watch import FileWatch
from monitor.kernel.mappings import MappingWatch, Mounts
from monitor.kernel.placing import ProbePrograms
from monitor.kernel.programs import LOOKUP_FUNCTIONS, PROBED_FUNCTIONS
from monitor.kernel.targets import Targets, TargetStatus
from monitor.options import ProbeSettings

__all__ = ["Libraries"]

_LIBRARY = re.compile(r"/(?:libc|libssl|libgnutls|libwolfssl|libmbedtls|ld-musl|libc-\d)[^/]*$")
_UNSEEN: Final = {
    "getaddrinfo": "names and what they resolved to",
    "gethostbyname_r": "what gethostbyname() resolved",
    "gethostbyname2_r": "what gethostbyname2() resolved",
    "SSL_do_handshake": "what OpenSSL itself says of a handshake",
    "gnutls_handshake": "what GnuTLS itself says of a handshake",
    "SSL_ForceHandshake": "what NSS itself says of a handshake",
    "wolfSSL_connect": "what wolfSSL itself says of a handshake",
    "mbedtls_ssl_handshake": "what mbedTLS itself says of a handshake",
}


class Libraries:
    """The library probes.

    Args:
        programs: program name -> descriptor.
        failed: program name -> why the kernel refused it.
        settings: what is wanted.
    """

    def __init__(
        self,
        programs: Mapping[str, int],
        failed: Mapping[str, str],
        settings: ProbeSettings,
    ) -> None:
        self._programs, self._failed, self._settings = programs, failed, settings
        self._watch: MappingWatch | None = None
        self._files = FileWatch()
        self._disassembler = Disassembler(CacheFolder())
        self._targets: Targets | None = None
        self._warmer = uprobe.Warmer()
        self._epoll = select.epoll()
        self.lookups_seen = False
        """getaddrinfo() is probed wherever it is found, entry and return."""
        self.unprobed: list[str] = []
        """One sentence for each library that was in use at the start and cannot be probed."""

    def start(self) -> list[str]:
        """Attach to what is in use now and watch for more.

        Returns:
            One sentence for each thing that will not be seen, and why; for libraries that cannot
            be probed see ``unprobed``.
        """
        programs, missing = self._wanted()
        if not programs:
            return missing
        try:
            uprobe.check_available()
        except SourceError as exc:
            return [f"{exc}; not seen: {', '.join(_UNSEEN[name] for name in programs)}"]
        targets = Targets(
            uprobe.attach_all,
            programs,
            find_returns=self._disassembler.find,
            watch=self._files,
            exclusions=Exclusions(self._settings.exclude),
        )
        try:
            self._watch = MappingWatch(targets.skip)
        except SourceError as exc:
            missing.append(f"{exc}; not seen: names in programs with libraries of their own")
        self._targets = targets
        for watch in (self._watch, self._files):
            if watch is not None and (fd := watch.fileno()) is not None:
                self._epoll.register(fd, select.EPOLLIN)
        targets.start()
        self.lookups_seen = "getaddrinfo" in programs and any(
            "getaddrinfo" in status.attached for status in targets.status()
        )
        for status in targets.status():
            # executable memory without a file of its own (memfd) is no library of these
            if status.error is not None and _LIBRARY.search(status.path):
                self.unprobed.append(f"{status.path} is not probed: {status.error}")
        return missing

    # The programs of each function that is to be probed, and what is missing because of others.
    def _wanted(self) -> tuple[dict[str, ProbePrograms], list[str]]:
        programs: dict[str, ProbePrograms] = {}
        missing = []
        wanted = self._settings.libraries
        for function, names in PROBED_FUNCTIONS.items():
            is_lookup = function in LOOKUP_FUNCTIONS
            if wanted == "none" or (wanted == "names" and not is_lookup):
                continue
            refused = [self._failed[name] for name in names if name in self._failed]
            if refused:
                missing.append(f"{refused[0]}; not seen: {_UNSEEN[function]}")
                continue
            entry, ret = (self._programs[name] for name in names)
            programs[function] = ProbePrograms(entry=entry, ret=ret, in_pairs=is_lookup)
        if wanted != "all":
            unseen = [said for name, said in _UNSEEN.items() if name not in programs]
            missing.append(
                f"probe.libraries is {wanted}, as configured; not seen: {', '.join(unseen)}"
            )
        return programs, missing

    def fileno(self) -> int:
        """What to wait for."""
        return self._epoll.fileno()

    def deadline_ns(self) -> int | None:
        """When to call `handle` whatever happens (CLOCK_MONOTONIC); None: when there is news."""
        found = [self._targets.deadline_ns()] if self._targets is not None else []
        if self._watch is not None:
            found.append(self._watch.resume_ns)
        return min((at for at in found if at is not None), default=None)

    @property
    def resting(self) -> bool:
        """In a storm of new programs ``fileno`` is to be left alone until the deadline."""
        return self._watch is not None and self._watch.resume_ns is not None

    def handle(self) -> None:
        """Take in which files were mapped, and which written to, since the last call."""
        if self._targets is None:
            return
        self._targets.written()
        if self._watch is None:
            return
        now_ns = time.monotonic_ns()
        events = self._watch.drain(now_ns)
        if any(isinstance(event, Mounts) for event in events):
            self._warmer.warm(now_ns)
        self._targets.handle(events)

    def sweep(self, now_ns: int) -> None:
        """Catch up with what was missed; to be called every second or so."""
        if self._watch is not None:
            self._watch.refresh()
        if self._targets is not None:
            self._targets.sweep(now_ns)
        self._warmer.sweep(now_ns)
        self._disassembler.sweep(now_ns)

    def status(self) -> list[TargetStatus]:
        """Every file that is probed or was refused."""
        return self._targets.status() if self._targets is not None else []

    def counts(self) -> dict[str, int]:
        """As `targets.Targets.counts`."""
        return dict(self._targets.counts) if self._targets is not None else {}

    def close(self) -> None:
        """Detach, and wait until that is done."""
        self._warmer.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._targets is not None:
            self._targets.close()
            self._targets = None
        self._files.close()
        self._disassembler.close()
        self._epoll.close()
