"""Probes in the libraries that programs use, kept up to date as programs come and go.

Puts together the self-test of return probes, the watch over mappings and the targets; the daemon
sees one object with one descriptor to wait for.
"""

from __future__ import annotations

import re
import time

from monitor.errors import SourceError
from monitor.kernel import uprobe
from monitor.kernel.loader import Loaded
from monitor.kernel.mappings import MappingWatch, Mounts
from monitor.kernel.programs import PROBED_FUNCTIONS
from monitor.kernel.selftest import ReturnProbes, check_return_probes
from monitor.kernel.targets import ProbePrograms, Targets, TargetStatus

__all__ = ["Libraries"]

_LIBRARY = re.compile(r"/(?:libc|libssl|libgnutls|libwolfssl|libmbedtls|ld-musl|libc-\d)[^/]*$")
_UNSEEN = {
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
        loaded: the programs.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._watch: MappingWatch | None = None
        self._targets: Targets | None = None
        self._warmer = uprobe.Warmer()
        self.lookups_seen = False
        """getaddrinfo() is probed wherever it is found, entry and return."""
        self.return_probes = False
        """Probes at return harm nobody here, so there are some."""
        self.unprobed: list[str] = []
        """One sentence for each library that was in use at the start and cannot be probed."""

    def start(self) -> list[str]:
        """Attach to what is in use now and watch for more.

        Returns:
            One sentence for each thing that will not be seen, and why; for libraries that cannot
            be probed see ``unprobed``.
        """
        test = check_return_probes()
        if test.result is not ReturnProbes.SAFE:
            return [
                f"{test.reason}, so no library is probed; not seen: {', '.join(_UNSEEN.values())}"
            ]
        self.return_probes = True
        missing = []
        programs = {}
        for function, names in PROBED_FUNCTIONS.items():
            refused = [self._loaded.failed[name] for name in names if name in self._loaded.failed]
            if refused:
                missing.append(f"{refused[0]}; not seen: {_UNSEEN[function]}")
                continue
            entry, ret = (self._loaded.programs[name] for name in names)
            programs[function] = ProbePrograms(entry=entry, ret=ret)
        try:
            uprobe.check_available()
        except SourceError as exc:
            return [f"{exc}; not seen: {', '.join(_UNSEEN.values())}"]
        targets = Targets(uprobe.attach, programs)
        try:
            self._watch = MappingWatch(targets.skip)
        except SourceError as exc:
            missing.append(f"{exc}; not seen: names in programs with libraries of their own")
        self._targets = targets
        targets.start()
        self.lookups_seen = "getaddrinfo" in programs and any(
            "getaddrinfo" in status.attached for status in targets.status()
        )
        for status in targets.status():
            # executable memory without a file of its own (memfd) is no library of these
            if status.error is not None and _LIBRARY.search(status.path):
                self.unprobed.append(f"{status.path} is not probed: {status.error}")
        return missing

    def fileno(self) -> int | None:
        """What to wait for; None where mappings cannot be watched."""
        return self._watch.fileno() if self._watch is not None else None

    @property
    def resume_ns(self) -> int | None:
        """Until when ``fileno`` is to be left alone (CLOCK_MONOTONIC); None: wait for it."""
        return self._watch.resume_ns if self._watch is not None else None

    def handle(self) -> None:
        """Take in which files were mapped since the last call."""
        if self._watch is None or self._targets is None:
            return
        now_ns = time.monotonic_ns()
        events = self._watch.drain(now_ns)
        if any(isinstance(event, Mounts) for event in events):
            self._warmer.warm(now_ns)
        self._targets.handle(events)

    def sweep(self, now_ns: int) -> None:
        """Let go of what nobody uses any more; to be called every second or so."""
        if self._watch is not None:
            self._watch.refresh()
        if self._targets is not None:
            self._targets.sweep(now_ns)
        self._warmer.sweep(now_ns)

    def status(self) -> list[TargetStatus]:
        """Every file that is probed or was refused."""
        return self._targets.status() if self._targets is not None else []

    def close(self) -> None:
        """Detach."""
        self._warmer.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._targets is not None:
            self._targets.close()
            self._targets = None
