"""The TCP figures of open connections, as they stand when somebody asks.

The kernel side follows packets only as far as a record needs them, so bytes, round-trip time and
retransmissions are read from the sockets themselves: a program of ours that is attached to nothing
is run for eleven sockets at a time and writes what it finds into memory that we have mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from monitor.errors import SourceError
from monitor.kernel import bpf_syscall

__all__ = ["Live", "LiveFigures"]

_KEYS: Final = 11  # LIVE_KEYS, bpf/maps.h
_FIGURES: Final = struct.Struct("=QQQIIII")
_CLOSE_WAIT, _LAST_ACK, _CLOSING = 8, 9, 11


class LiveFigures(NamedTuple):
    """struct live_figures, of a socket that was the same before and after it was read."""

    bytes_sent: int
    """Payload, without retransmissions."""
    bytes_received: int
    rtt_us: int
    """Smoothed; 0 where never measured."""
    rttvar_us: int
    retransmits: int
    tcp_state: int


class Live:
    """Reads sockets through the program ``live_read``.

    Args:
        program: its descriptor.
        slots_map: descriptor of ``live_by_slot``.
        slots: its elements.
    Raises:
        SourceError: the map cannot be mapped.
    """

    def __init__(self, program: int, slots_map: int, slots: int) -> None:
        self._slots = slots - slots % _KEYS
        page = os.sysconf("SC_PAGE_SIZE")
        size = slots * _FIGURES.size
        try:
            self._memory = mmap.mmap(
                slots_map, (size + page - 1) // page * page, mmap.MAP_SHARED, mmap.PROT_READ
            )
        except OSError as exc:
            raise SourceError(f"cannot map live_by_slot: {exc.strerror}") from exc
        self._arguments = struct.Struct(f"={_KEYS + 1}Q")
        self._context = ctypes.create_string_buffer(self._arguments.size)
        self._run = bpf_syscall.ProgramRun(program, self._context)

    def read(self, sockets: Sequence[tuple[int, int]]) -> dict[int, LiveFigures]:
        """Return what sockets say, by their address; those that are gone are missing.

        Args:
            sockets: address of struct sock, and SO_COOKIE, of each.
        Raises:
            SourceError: the kernel does not run programs on request (before 5.10).
        """
        found: dict[int, LiveFigures] = {}
        for (sk, cookie), (seen, sent, received, *rest) in self._rows(sockets):
            if cookie and seen == cookie:
                found[sk] = LiveFigures(sent, received - _fin(received, rest[3]), *rest)
        return found

    def read_bytes(self, sockets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the payload bytes that each has sent and received, in their order; 0 and 0 of
        those that are gone. A third of the cost of :meth:`read`.

        Args, Raises: as there.
        """
        return [
            (sent, received - _fin(received, state)) if cookie and seen == cookie else (0, 0)
            for (_, cookie), (seen, sent, received, _, _, _, state) in self._rows(sockets)
        ]

    def close(self) -> None:
        """Unmap."""
        self._memory.close()

    # Each socket with the fields of its struct live_figures.
    def _rows(
        self, sockets: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], tuple[Any, ...]]]:
        for start in range(0, len(sockets), self._slots):
            some = sockets[start : start + self._slots]
            self._read_some(some)
            rows = _FIGURES.iter_unpack(self._memory[: len(some) * _FIGURES.size])
            yield from zip(some, rows, strict=True)

    def _read_some(self, sockets: Sequence[tuple[int, int]]) -> None:
        keys = [sk for sk, _ in sockets]
        keys += [0] * (-len(keys) % _KEYS)
        pack_into, context, run = self._arguments.pack_into, self._context, self._run
        try:
            for start in range(0, len(keys), _KEYS):
                pack_into(context, 0, start, *keys[start : start + _KEYS])
                run()
        except OSError as exc:
            raise SourceError(f"cannot read the figures of sockets: {exc.strerror}") from exc


# The kernel counts a received FIN as one byte (tcp_rcv_nxt_update).
def _fin(received: int, state: int) -> bool:
    return received > 0 and state in (_CLOSE_WAIT, _LAST_ACK, _CLOSING)
