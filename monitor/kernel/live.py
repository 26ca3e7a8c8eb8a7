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
from collections.abc import Sequence
from typing import Final, NamedTuple

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
        self._program = program
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

    def read(self, sockets: Sequence[tuple[int, int]]) -> dict[int, LiveFigures]:
        """Return what sockets say, by their address; those that are gone are missing.

        Args:
            sockets: address of struct sock, and SO_COOKIE, of each.
        Raises:
            SourceError: the kernel does not run programs on request (before 5.10).
        """
        found: dict[int, LiveFigures] = {}
        for start in range(0, len(sockets), self._slots):
            self._read_some(sockets[start : start + self._slots], found)
        return found

    def close(self) -> None:
        """Unmap."""
        self._memory.close()

    def _read_some(self, sockets: Sequence[tuple[int, int]], found: dict[int, LiveFigures]) -> None:
        for start in range(0, len(sockets), _KEYS):
            keys = [sk for sk, _ in sockets[start : start + _KEYS]]
            keys += [0] * (_KEYS - len(keys))
            self._arguments.pack_into(self._context, 0, start, *keys)
            try:
                bpf_syscall.run_program(self._program, self._context)
            except OSError as exc:
                raise SourceError(f"cannot read the figures of sockets: {exc.strerror}") from exc
        rows = _FIGURES.iter_unpack(self._memory[: len(sockets) * _FIGURES.size])
        for (sk, cookie), (seen, sent, received, *rest) in zip(sockets, rows, strict=True):
            if not cookie or seen != cookie:
                continue
            state = rest[3]
            # The kernel counts a received FIN as one byte (tcp_rcv_nxt_update).
            if received and state in (_CLOSE_WAIT, _LAST_ACK, _CLOSING):
                received -= 1
            found[sk] = LiveFigures(sent, received, *rest)
