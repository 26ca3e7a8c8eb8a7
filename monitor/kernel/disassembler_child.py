"""The process that reads machine code, with no right but to read the descriptors it is handed.

Started by monitor/kernel/disassembler.py with one end of a socket pair as descriptor 3. Each
question is one message with a file's descriptor; it ends when the other end does.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
from contextlib import suppress
from typing import Any, Final

from monitor.errors import SourceError
from monitor.kernel.disassembler import CHANNEL, MAX_MESSAGE, to_json
from monitor.kernel.elf import ElfFile
from monitor.kernel.returns import Decode, decoder, find_returns

_NOBODY: Final = 65534
_MAX_SECONDS: Final = 10  # of CPU, for all questions of one life
_MAX_MEMORY: Final = 512 << 20
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CAPABILITY_VERSION_3: Final = 0x20080522


def _give_up_rights(libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with suppress(OSError):  # a service may not have the right to become another user
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    libc.capset(header, bytes(24))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_SECONDS, _MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(fd: int, machine: str, functions: dict[str, Any], decode: Decode) -> dict[str, Any]:
    """What is known of some functions of one file."""
    file = ElfFile(fd)
    said: dict[str, Any] = {}
    try:
        file.inspect(())
    except (SourceError, OSError) as exc:
        return dict.fromkeys(functions, str(exc))
    for name, (offset, size) in functions.items():
        try:
            said[name] = to_json(find_returns(file, fd, machine, offset, size, decode))
        except (SourceError, OSError, OverflowError, struct.error) as exc:
            said[name] = str(exc)
    return said


def main() -> None:
    """Answer until the other end is closed."""
    channel = socket.socket(fileno=CHANNEL)
    decoders: dict[str, Decode] = {}
    native = os.uname().machine
    with suppress(SourceError):
        decoders[native] = decoder(native)
    _give_up_rights(ctypes.CDLL(None))
    while True:
        question, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
        if not question:
            break
        asked = json.loads(question)
        decode = decoders.get(asked["machine"])
        if decode is None:
            said: dict[str, Any] = dict.fromkeys(
                asked["functions"], f"there is no disassembler for {asked['machine']}"
            )
        else:
            said = answer(descriptors[0], asked["machine"], asked["functions"], decode)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(json.dumps(said).encode())
    os._exit(0)
