"""Whether a probe is in a function of this process's own libraries, from its bytes in memory.

As a program: ``python -m tests.zoo.witness FUNCTION...`` prints each function with 1 or 0.
"""

from __future__ import annotations

import ctypes
import os
import sys

INT3 = 0xCC
FIRST = 8  # probes stand within a function's first instructions
LIBRARIES = {
    "getaddrinfo": "libc.so.6",
    "gethostbyname_r": "libc.so.6",
    "SSL_do_handshake": "libssl.so.3",
    "gnutls_handshake": "libgnutls.so.30",
}


def is_probed(function: str) -> bool:
    """Whether ``function`` of the system's own library has a probe among its first instructions."""
    library = ctypes.CDLL(LIBRARIES[function])
    address = ctypes.cast(getattr(library, function), ctypes.c_void_p).value
    assert address
    return INT3 in ctypes.string_at(address, FIRST)


def say(*functions: str) -> None:
    """Write what this process sees to the file that ZOO_WITNESS names."""
    if path := os.environ.get("ZOO_WITNESS"):
        with open(path, "a", encoding="ascii") as file:
            file.writelines(f"{function} {is_probed(function):d}\n" for function in functions)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, int(is_probed(name)))
