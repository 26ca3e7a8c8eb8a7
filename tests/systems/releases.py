"""Which releases are tried, and what of them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from tests.systems.debian import root_of

__all__ = ["MORE", "PACKAGES", "STABLE", "root"]

STABLE = "trixie"
# CONMOND_SYSTEMS="forky sid": others, which change daily and are not part of a usual run
MORE = tuple(os.environ.get("CONMOND_SYSTEMS", "").split())
# conmond and what it imports, and clients
PACKAGES = (
    "python3", "python3-bpfcc", "python3-capstone", "python3-cryptography", "python3-dnspython",
    "python3-h11", "python3-hpack", "python3-orjson", "python3-prometheus-client",
    "python3-pyroute2", "python3-six", "curl", "wget",
)  # fmt: skip
# A mirror may lag behind a release that changes daily by more than that allows.
_LAGGING = ('--aptopt=Acquire::Check-Valid-Until "false"',)


@cache
def root(release: str) -> Path:
    """The root file system of one of them.

    Raises:
        DebianError: it cannot be made.
    """
    return root_of(release, PACKAGES, *(() if release == STABLE else _LAGGING))
