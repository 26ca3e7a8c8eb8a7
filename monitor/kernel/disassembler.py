"""Asks a short-lived process where functions return, and remembers what it said.

Reading machine code takes a library of 10 MB and is done on strangers' bytes, so it is another
process's work: one without any right, that is started when a file is met that nobody has read yet
and ends when nothing came for a while. What it found is kept, also over restarts, by a digest of
the very bytes that were read: a file that says it is another one gains nothing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from monitor.errors import SourceError
from monitor.kernel.cache import CacheFolder
from monitor.kernel.returns import Place, Returns

__all__ = ["CHANNEL", "Disassembler", "Function"]

CHANNEL: Final = 3  # the child's descriptor for questions
MAX_MESSAGE: Final = 64 << 10
_FILE: Final = "returns"
_FORMAT: Final = 2
_MAX_BYTES: Final = 4 << 20
_MAX_KNOWN: Final = 2048  # functions; a library has one to three
_MAX_PART: Final = 256 << 10
_PATIENCE_S: Final = 5.0  # the largest function takes 0.2 s
_IDLE_NS: Final = 2_000_000_000

Function = tuple[int, int]
"""Offset in the file of a function's first instruction, and bytes of it as its symbol says."""


class Disassembler:
    """Where functions return.

    Args:
        cache: where answers are kept; None keeps them in memory alone.
    """

    def __init__(self, cache: CacheFolder | None = None) -> None:
        self._cache = cache
        self._known: OrderedDict[str, dict[str, Any]] | None = None
        self._dirty = False
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._used_ns = 0

    def find(
        self, fd: int, machine: str, build_id: str | None, functions: Mapping[str, Function]
    ) -> dict[str, Returns | str]:
        """Read functions of one file.

        Args:
            fd: the file, open for reading.
            machine: as `elf.ElfInfo` says it.
            build_id: likewise.
            functions: name -> where it is.
        Returns:
            Of each function what is known, or a sentence that says why it may not be probed.
        """
        found: dict[str, Returns | str] = {}
        asked: dict[str, Function] = {}
        for name, (offset, size) in functions.items():
            known = self._recall(fd, _key(machine, build_id, name, offset, size))
            if known is None:
                asked[name] = offset, size
            else:
                found[name] = known
        if asked:
            answers = self._ask(fd, machine, asked)
            for name, (offset, size) in asked.items():
                answer = answers.get(name, "nothing was said of it")
                found[name] = answer
                if isinstance(answer, Returns):
                    self._learn(fd, _key(machine, build_id, name, offset, size), answer)
        return found

    def sweep(self, now_ns: int) -> None:
        """Let the child go when nothing came for a while; keep what was learnt."""
        if self._child is not None and now_ns - self._used_ns > _IDLE_NS:
            self._end_child()
        self._save()

    def close(self) -> None:
        """End the child."""
        self._end_child()
        self._save()

    # What was said before

    def _entries(self) -> OrderedDict[str, dict[str, Any]]:
        if self._known is None:
            self._known = OrderedDict()
            raw = self._cache.read(_FILE, _MAX_BYTES) if self._cache is not None else None
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                data = json.loads(raw or b"{}")
                if data["format"] == _FORMAT:
                    self._known.update(data["functions"])
        return self._known

    def _recall(self, fd: int, key: str) -> Returns | None:
        entry = self._entries().get(key)
        if entry is None:
            return None
        try:
            answer = _returns(entry["returns"])
            if entry["digest"] != _digest(fd, answer):
                return None
        except (KeyError, TypeError, ValueError):
            return None
        self._entries().move_to_end(key)
        return answer

    def _learn(self, fd: int, key: str, answer: Returns) -> None:
        digest = _digest(fd, answer)
        if digest is None:
            return
        entries = self._entries()
        entries[key] = {"digest": digest, "returns": to_json(answer)}
        entries.move_to_end(key)
        while len(entries) > _MAX_KNOWN:
            entries.popitem(last=False)
        self._dirty = True

    def _save(self) -> None:
        if self._dirty and self._cache is not None:
            self._cache.write(
                _FILE, json.dumps({"format": _FORMAT, "functions": self._entries()}).encode()
            )
        self._dirty = False

    # The child

    def _ask(
        self, fd: int, machine: str, functions: Mapping[str, Function]
    ) -> dict[str, Returns | str]:
        question = json.dumps({"machine": machine, "functions": functions}).encode()
        try:
            if self._channel is None:
                self._start_child()
            assert self._channel is not None
            socket.send_fds(self._channel, [question], [fd])
            answer = json.loads(self._channel.recv(MAX_MESSAGE))
            return {
                name: said if isinstance(said, str) else _returns(said)
                for name, said in answer.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            self._end_child()
            reason = f"its code could not be read: {exc or 'the reader ended'}"
            return dict.fromkeys(functions, reason)
        finally:
            self._used_ns = time.monotonic_ns()

    def _start_child(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",  # not from the current folder, as in monitor/kernel/loader.py
                        "-c",
                        f"import os; os.dup2({theirs.fileno()}, {CHANNEL}); "
                        "from monitor.kernel.disassembler_child import main; main()",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
            except OSError as exc:
                ours.close()
                raise SourceError(f"cannot start the disassembler: {exc.strerror}") from exc
        ours.settimeout(_PATIENCE_S)
        self._channel = ours

    def _end_child(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _key(machine: str, build_id: str | None, name: str, offset: int, size: int) -> str:
    return f"{machine} {build_id or '-'} {name} {offset:x} {size:x}"


# hashlib would load libcrypto, which takes megabytes as long as the process runs.
def _digest(fd: int, answer: Returns) -> str | None:
    try:
        from _blake2 import blake2b
    except ImportError:
        return None
    digest = blake2b(digest_size=16)
    for offset, size in answer.parts:
        if not 0 < size <= _MAX_PART or not 0 <= offset < 1 << 62:
            return None
        digest.update(os.pread(fd, size, offset))
    return str(digest.hexdigest())


def to_json(answer: Returns) -> dict[str, Any]:
    """As the child says it, and as it is kept."""
    return {
        "entry": [answer.entry.offset, answer.entry.code.hex()],
        "places": [[place.offset, place.code.hex()] for place in answer.places],
        "reason": answer.reason,
        "parts": answer.parts,
    }


def _returns(said: Mapping[str, Any]) -> Returns:
    offset, code = said["entry"]
    reason = said["reason"]
    return Returns(
        entry=Place(int(offset), bytes.fromhex(code)),
        places=tuple(Place(int(at), bytes.fromhex(what)) for at, what in said["places"]),
        reason=None if reason is None else str(reason),
        parts=tuple((int(at), int(size)) for at, size in said["parts"]),
    )
