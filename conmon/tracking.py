"""What is known of the sockets that a watched program connects: lookups, attempts, races.

Fed by the wrappers of conmon/watching.py; makes the records.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import ssl
import threading
import weakref
from collections import deque
from typing import Any, Callable

from .measure import Lookup, Measurement, is_literal, now_ns
from .names import plain_address
from .reasons import IN_PROGRESS
from .record import Record

__all__ = ["MAX_RACES", "State", "Tracker"]

_MAX_LOOKUPS = 256
_LOOKUP_AGE_NS = 600_000_000_000
_SAME_RACE_NS = 10_000_000_000  # a failed attempt belongs to one that got through so soon after
MAX_RACES = 1024
_LOOKED_AT = 8  # of the oldest, each time a race begins
_FAMILIES = frozenset(
    family for family in (socket.AF_INET, getattr(socket, "AF_INET6", None)) if family is not None
)


class State:
    """One socket."""

    __slots__ = ("measurement", "number", "over_tls", "pending", "race", "ref", "tls")

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        self.number = -1
        self.pending = False
        self.race: _Race | None = None
        self.tls = False  # what passes the socket itself is no payload
        self.over_tls: ssl.SSLObject | None = None
        self.ref: weakref.ref[socket.socket] | None = None


class _Race:
    """The attempts that follow from one lookup, to one port."""

    __slots__ = ("at_ns", "first", "key", "lookup", "pending", "tries", "winner")

    def __init__(self, key: tuple[int, int], lookup: Lookup, first: Measurement) -> None:
        self.key = key
        self.lookup = lookup
        self.first = first
        self.at_ns = now_ns()
        self.pending = 0
        self.tries: list[Any] = []  # that failed
        self.winner: Measurement | None = None


class Tracker:
    """Sockets by their ``id()``, for as long as they live.

    Args:
        emit: is handed each record, in the thread that ended its connection.
    """

    def __init__(self, emit: Callable[[Record], None]) -> None:
        self.lock = threading.RLock()
        self.states: dict[int, State] = {}
        self.lookups: deque[tuple[int, Lookup]] = deque(maxlen=_MAX_LOOKUPS)
        self._hand_on = emit
        self._races: dict[tuple[int, int], _Race] = {}

    def clear(self) -> None:
        """Forget all."""
        self.states.clear()
        self.lookups.clear()
        self._races.clear()

    def lookup_failed(self, lookup: Lookup, exc: Any) -> None:
        """A name could not be looked up, so nothing was connected to."""
        with contextlib.suppress(Exception):
            lookup.failed(exc, now_ns())
            measurement = Measurement()
            measurement.looked_up(lookup)
            self.emit(measurement)

    def _lookup_of(self, address: str) -> tuple[Lookup, str] | None:
        thread, oldest_ns = threading.get_ident(), now_ns() - _LOOKUP_AGE_NS
        other = None
        for owner, lookup in reversed(tuple(self.lookups)):
            if address in lookup.addresses and lookup.end_ns >= oldest_ns:
                if owner == thread:
                    return lookup, "thread"
                other = other or lookup
        return (other, "process") if other is not None else None

    def attempt(self, sock: Any, address: Any) -> State | None:
        """connect() is about to be called; None: not of a kind that is timed."""
        try:
            if sock.type != socket.SOCK_STREAM or sock.family not in _FAMILIES:
                return None
            host, port = str(address[0]), int(address[1])
            known = self.states.get(id(sock))
            if known is not None and known.pending:
                return known  # asked again how it goes
            at_ns = now_ns()
            state = State(Measurement())
            measurement = state.measurement
            found = self._lookup_of(plain_address(host)) if is_literal(host) else None
            if found is not None:
                measurement.looked_up(*found)
                with self.lock:
                    state.race = self._race(found[0], port, measurement)
                    state.race.pending += 1
            elif not is_literal(host):
                lookup = Lookup(host, at_ns)  # connect() itself looks it up
                measurement.lookup, measurement.lookup_match = lookup, "thread"
            state.pending = True
            state.number = measurement.attempt(host, port, at_ns)
            self.keep(sock, state)
            return state
        except Exception:  # noqa: BLE001 - whatever is wrong with it is the original's to say
            return None

    def _race(self, lookup: Lookup, port: int, first: Measurement) -> _Race:
        key = (id(lookup), port)
        race = self._races.get(key)
        if race is None or now_ns() - race.at_ns > _SAME_RACE_NS or race.winner is not None:
            self.flush()
            race = self._races[key] = _Race(key, lookup, first)
        return race

    def keep(self, sock: socket.socket, state: State) -> None:
        """From now on this socket object is the connection."""
        key = id(sock)

        def gone(_: Any) -> None:
            if self.states.get(key) is state:
                self.ended(state, None)
                self.states.pop(key, None)

        state.ref = weakref.ref(sock, gone)
        self.states[key] = state

    def attempt_returned(self, sock: Any, state: State, exc: BaseException | None) -> None:
        """connect() returned, or raised; it may have said "in progress"."""
        with contextlib.suppress(Exception):
            if isinstance(exc, OSError) and exc.errno in IN_PROGRESS:
                return
            if isinstance(exc, OSError) and exc.errno == errno.EISCONN:
                exc = None
            if not state.pending:
                return
            at_ns = now_ns()
            measurement = state.measurement
            lookup = measurement.lookup
            if state.race is None and lookup is not None and not lookup.literal:
                # the name was looked up inside connect(): what of the time that took is not known
                if isinstance(exc, socket.gaierror):
                    lookup.failed(exc, at_ns)
                    measurement.tries.clear()
                    measurement.looked_up(lookup)
                    self.states.pop(id(sock), None)
                    self.emit(measurement)
                    return
                if exc is None:
                    measurement.tries[state.number].raddr = plain_address(sock.getpeername()[0])
            self.decided(sock, state, exc, at_ns)

    def decided(self, sock: Any, state: State, exc: BaseException | None, at_ns: int) -> None:
        """The attempt got through, or why it did not."""
        measurement, race = state.measurement, state.race
        with self.lock:
            if not state.pending:
                return
            state.pending = False
            measurement.attempted(state.number, exc, at_ns)
            if race is not None:
                race.pending -= 1
            if exc is None:
                measurement.connected(sock)
                if race is not None and race.winner is None:
                    race.winner = measurement
                    measurement.tries[:0] = race.tries
                    race.tries = []
                self._over(race)
                return
            self.states.pop(id(sock), None)
            self._lost(state)

    def _lost(self, state: State) -> None:
        measurement, race = state.measurement, state.race
        if race is None:
            measurement.fail(None, now_ns())
            self.emit(measurement)
            return
        if race.winner is not None:
            race.winner.tries.extend(measurement.tries)
            return
        race.tries.extend(measurement.tries)
        tried = {one.raddr for one in race.tries}
        if not race.pending and tried.issuperset(race.lookup.addresses):
            self._give_up(race)

    def _over(self, race: _Race | None) -> None:
        """Forget a race that was won and in which nobody runs any more."""
        if race is not None and race.winner is not None and not race.pending:
            self._forget(race)

    def _forget(self, race: _Race) -> None:
        if self._races.get(race.key) is race:
            del self._races[race.key]

    def _give_up(self, race: _Race) -> None:
        self._forget(race)
        if race.tries and race.winner is None:
            race.first.tries = race.tries
            race.first.fail(None, now_ns())
            self.emit(race.first)

    def flush(self, *, all_of_them: bool = False) -> None:
        """Races that nobody won and in which nobody runs any more are failures.

        Args:
            all_of_them: whatever their age; else those that can have no further attempt.
        """
        now = now_ns()
        most = len(self._races) if all_of_them else _LOOKED_AT
        for race in list(itertools.islice(self._races.values(), most)):
            old = all_of_them or now - race.at_ns >= _SAME_RACE_NS
            if (old and not race.pending) or len(self._races) > MAX_RACES:
                self._give_up(race)

    def ended(self, state: State, sock: Any) -> None:
        """The socket is being closed; None: it is gone already."""
        with contextlib.suppress(Exception):
            measurement = state.measurement
            with self.lock:
                if state.pending:
                    state.pending = False
                    measurement.abandoned(state.number, now_ns())
                    if state.race is not None:
                        state.race.pending -= 1
                    self._lost(state)
                    self._over(state.race)
                    return
                if sock is not None:
                    measurement.look_at(sock)
                if (
                    measurement.tls_begin_ns is not None
                    and measurement.tls is None
                    and not measurement.failed
                ):
                    # this program gave it up, for whatever reason
                    given_up = OSError(errno.ECANCELED, "closed in mid-handshake")
                    measurement.tls_failed(given_up, now_ns(), None)
                measurement.closed(now_ns())
                self.emit(measurement)

    def emit(self, measurement: Measurement) -> None:
        """The connection ended."""
        with contextlib.suppress(Exception):
            self._hand_on(measurement.record())

    def find(self, sock: socket.socket) -> Measurement | None:
        """What is known of a socket."""
        state = self.states.get(id(sock))
        return state.measurement if state is not None else None
