"""Where systems keep the libraries that are probed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["LOOK_AHEAD", "STANDARD", "standard_paths"]

# The dynamic linkers' standard directories, and what in them is probed before anyone uses it.
STANDARD: Final = tuple(
    f"{folder}/{name}"
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/lib/*-linux-*")
    for name in (
        "libc.so.6",
        "ld-musl-*.so.1",
        "libssl.so.*",
        "libgnutls.so.*",
        "libssl3.so",
        "libwolfssl.so.*",
        "libmbedtls.so.*",
    )
)


# Looked for in the root directory of a program that is new to us, before its dynamic linker comes
# to them: the first probe takes the kernel 15 ms, a small program needs no longer to its lookup.
LOOK_AHEAD: Final = (
    *(
        f"{folder}/{name}"
        for name in ("libc.so.6", "libssl.so.3", "libssl.so.1.1", "libgnutls.so.30")
        for folder in (f"/lib/{os.uname().machine}-linux-gnu", "/lib64", "/lib")
    ),
    f"/lib/ld-musl-{os.uname().machine}.so.1",
)


def standard_paths(patterns: Sequence[str]) -> Iterator[str]:
    """The files that fit a pattern, each once whatever links lead to it."""
    seen = set()
    for pattern in patterns:
        for path in glob.iglob(pattern):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                yield real
