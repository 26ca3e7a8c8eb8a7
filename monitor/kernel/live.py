"""The TCP figures of open connections, as they stand when somebody asks.

The kernel side follows packets only as far as a record needs them, so bytes, round-trip time and
retransmissions are read from the sockets themselves: a program of ours that is attached to nothing
is run for eleven sockets at a time and writes what it finds into memory that we have mapped.

A socket is known by its address and its cookie. The memory of one that is gone keeps its cookie
until it is used anew, so neither is proof of life: a living TCP socket has references as well, and
its state is not CLOSE. (Both are set before the memory is given back, and the cookie is cleared
before they are set anew.)
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
_FIGURES: Final = struct.Struct("=QQQIIIIBB6x")
_FLOW_SHIFT: Final = 48  # bpf/udp.bpf.c: above it a socket's address has ones, a flow's key a hash
_KERNEL_ADDRESS: Final = 0xFFFF << _FLOW_SHIFT
_CLOSE, _CLOSE_WAIT, _LAST_ACK, _CLOSING = 7, 8, 9, 11
_TCP: Final = 6


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
        for (sk, cookie), row in self._rows(sockets):
            if not _is_open_tcp(cookie, row):
                continue
            _, sent, received, rtt_us, rttvar_us, retransmits, _, state, _ = row
            received -= _fin(received, state)
            found[sk] = LiveFigures(sent, received, rtt_us, rttvar_us, retransmits, state)
        return found

    def read_bytes(self, sockets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the payload bytes that each has sent and received, in their order; 0 and 0 of
        those that are gone. A third of the cost of :meth:`read`.

        Args, Raises: as there.
        """
        return [
            (row[1], row[2] - _fin(row[2], row[7])) if _is_open_tcp(cookie, row) else (0, 0)
            for (_, cookie), row in self._rows(sockets)
        ]

    def gone(self, connections: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether the socket of each connection is certainly gone, or closed, in their order.

        Args:
            connections: their keys in ``conn_by_sk``, which for datagrams may be a flow's, and
                SO_COOKIE or 0 of each.
        Raises: as :meth:`read`.
        """
        sockets = [(sk | _KERNEL_ADDRESS, cookie) for sk, cookie in connections]
        return [_is_gone(cookie, row) for (_, cookie), row in self._rows(sockets)]

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


def _is_open_tcp(cookie: int, row: tuple[int, ...]) -> bool:
    seen, refs, state, protocol = row[0], *row[6:]
    return cookie != 0 and seen == cookie and refs > 0 and state != _CLOSE and protocol == _TCP


# What changed while it was read has cookie 0, and is looked at again another time.
def _is_gone(cookie: int, row: tuple[int, ...]) -> bool:
    seen, refs, state, protocol = row[0], *row[6:]
    if refs == 0 or protocol == 0 or (protocol == _TCP and state == _CLOSE):
        return True
    return cookie != 0 and seen not in (cookie, 0)


# The kernel counts a received FIN as one byte (tcp_rcv_nxt_update).
def _fin(received: int, state: int) -> bool:
    return received > 0 and state in (_CLOSE_WAIT, _LAST_ACK, _CLOSING)
