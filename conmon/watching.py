"""Times every connection that Python code in this process makes, without a change to it.

Theory of operation. While somebody watches, methods of ``socket.socket``, ``ssl.SSLSocket`` and
``ssl.SSLObject`` and the resolver's functions are wrapped. A wrapper notes the time, calls the
original with what it was given, and hands on what comes back, results and exceptions alike; an
error of its own is swallowed. When nobody watches any more, every attribute is what it was.

===================  =======================================================================
lookup to socket     the same thread's newest lookup that gave the address, else any thread's
non-blocking         connect() says "in progress"; SO_ERROR or the first byte says how it ended
TLS in a socket      ``SSLContext.wrap_socket()`` takes the descriptor over from a socket
TLS beside a socket  asyncio drives an ``SSLObject``: the thread that sends a ClientHello has
                     just called its handshake
attempts             sockets of one lookup and port that did not get through, while or before
                     another one did (Happy Eyeballs, the next address)
===================  =======================================================================
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Callable

from . import connecting
from .http1 import is_client_hello
from .measure import Lookup, Measurement, now_ns
from .record import Record
from .tracking import MAX_RACES, State, Tracker

__all__ = ["Records", "watch"]

MAX_RECORDS = 100_000
_PEEK = 512


class Records(list[Record]):
    """The records of connections that ended, in that order.

    ``dropped`` counts those there was no room for.
    """

    def __init__(self, most: int, on_record: Callable[[Record], None] | None) -> None:
        super().__init__()
        self.dropped = 0
        self._most = most
        self._on_record = on_record

    def take_in(self, record: Record) -> None:
        """Add one, if there is room."""
        if self._on_record is not None:
            self._on_record(record)
        elif len(self) < self._most:
            self.append(record)
        else:
            self.dropped += 1


@contextlib.contextmanager
def watch(
    *, most: int = MAX_RECORDS, on_record: Callable[[Record], None] | None = None
) -> Iterator[Records]:
    """Time every connection that this process's Python code makes inside the ``with`` block.

    Those still open at its end are added then, with ``state`` open. Blocks may be nested and
    overlap, in any threads: each gets the records of all threads. Not seen: what C code does with
    sockets of its own (uvloop, pycurl, database drivers in C).

    Args:
        most: records kept; more are counted in ``dropped``.
        on_record: called with each record instead, in the thread that ended the connection.
    """
    records = Records(most, on_record)
    _watcher.begin(records)
    try:
        yield records
    finally:
        _watcher.end(records)


class _Handshakes(threading.local):
    """The SSLObject whose handshake this thread called last."""

    newest: weakref.ref[ssl.SSLObject] | None = None


class _Watcher:
    def __init__(self) -> None:
        self._watching: list[Records] = []
        self._restore: list[tuple[Any, str, bool, Any]] = []
        self._detached: dict[int, State] = {}
        self._handshakes = _Handshakes()
        self._begun: weakref.WeakKeyDictionary[ssl.SSLObject, int] = weakref.WeakKeyDictionary()
        self._beside: weakref.WeakKeyDictionary[ssl.SSLObject, Measurement] = (
            weakref.WeakKeyDictionary()
        )
        self._track = Tracker(self._hand_out)

    def _hand_out(self, record: Record) -> None:
        for records in tuple(self._watching):
            records.take_in(record)

    # -- begin and end ------------------------------------------------------------------------

    def begin(self, records: Records) -> None:
        with self._track.lock:
            self._watching.append(records)
            if len(self._watching) == 1:
                self._patch()

    def end(self, records: Records) -> None:
        with self._track.lock:
            if len(self._watching) == 1:
                self._unpatch()
            self._track.flush(all_of_them=True)
            for state in list(self._track.states.values()):
                sock = state.ref() if state.ref is not None else None
                if sock is not None and state.measurement.won is not None:
                    state.measurement.look_at(sock)
                    records.take_in(state.measurement.record())
            self._watching = [one for one in self._watching if one is not records]
            if not self._watching:
                self._track.clear()
                self._detached.clear()
                self._beside.clear()
                self._begun.clear()

    def _patch(self) -> None:
        for module in (_socket, socket):
            for name in ("gethostbyname", "gethostbyname_ex"):
                self._wrap(module, name, self._gethostbyname)
        self._wrap(_socket, "getaddrinfo", self._getaddrinfo)
        for name, wrapper in (
            ("connect", self._connect),
            ("connect_ex", self._connect_ex),
            ("getsockopt", self._getsockopt),
            ("send", self._send),
            ("sendall", self._send),
            ("sendmsg", self._sendmsg),
            ("recv", self._recv),
            ("recv_into", self._recv_into),
            ("detach", self._detach),
            ("_real_close", self._close),
        ):
            self._wrap(socket.socket, name, wrapper)
        for name, wrapper in (
            ("do_handshake", self._socket_handshake),
            ("send", self._secure_send),
            ("write", self._secure_send),
            ("read", self._secure_read),
        ):
            self._wrap(ssl.SSLSocket, name, wrapper)
        for name, wrapper in (
            ("do_handshake", self._object_handshake),
            ("write", self._object_write),
            ("read", self._object_read),
        ):
            self._wrap(ssl.SSLObject, name, wrapper)

    def _wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name, None)
        if original is None:  # sendmsg on Windows
            return
        own = name in vars(owner)
        self._restore.append((owner, name, own, original))
        setattr(owner, name, functools.wraps(original)(make(original)))

    def _unpatch(self) -> None:
        while self._restore:
            owner, name, own, original = self._restore.pop()
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    # -- lookups ------------------------------------------------------------------------------

    def _getaddrinfo(self, original: Any) -> Any:
        def getaddrinfo(*given: Any, **named: Any) -> Any:
            name = _text(_first(given, named, "host"))
            if name is None:
                return original(*given, **named)
            lookup = Lookup(name, now_ns())
            try:
                found = original(*given, **named)
            except (OSError, UnicodeError) as exc:
                if not lookup.literal:
                    self._track.lookup_failed(lookup, exc)
                raise
            with contextlib.suppress(Exception):
                lookup.done(found, now_ns())
                self._track.lookups.append((threading.get_ident(), lookup))
            return found

        return getaddrinfo

    def _gethostbyname(self, original: Any) -> Any:
        def gethostbyname(*given: Any, **named: Any) -> Any:
            name = _text(_first(given, named, "host"))
            if name is None:
                return original(*given, **named)
            lookup = Lookup(name, now_ns())
            try:
                found = original(*given, **named)
            except (OSError, UnicodeError) as exc:
                if not lookup.literal:
                    self._track.lookup_failed(lookup, exc)
                raise
            with contextlib.suppress(Exception):
                addresses = (found,) if isinstance(found, str) else tuple(found[2])
                lookup.end_ns = now_ns()
                lookup.addresses = addresses
                self._track.lookups.append((threading.get_ident(), lookup))
            return found

        return gethostbyname

    # -- connect ------------------------------------------------------------------------------

    def _connect(self, original: Any) -> Any:
        def connect(sock: Any, /, *given: Any, **named: Any) -> Any:
            state = self._track.attempt(sock, given[0]) if len(given) == 1 else None
            if state is None:
                return original(sock, *given, **named)
            try:
                result = original(sock, *given, **named)
            except BaseException as exc:
                self._track.attempt_returned(sock, state, exc)
                raise
            self._track.attempt_returned(sock, state, None)
            return result

        return connect

    def _connect_ex(self, original: Any) -> Any:
        def connect_ex(sock: Any, /, *given: Any, **named: Any) -> Any:
            state = self._track.attempt(sock, given[0]) if len(given) == 1 else None
            if state is None:
                return original(sock, *given, **named)
            try:
                code = original(sock, *given, **named)
            except BaseException as exc:
                self._track.attempt_returned(sock, state, exc)
                raise
            self._track.attempt_returned(sock, state, OSError(code, "") if code else None)
            return code

        return connect_ex

    def _getsockopt(self, original: Any) -> Any:
        def getsockopt(sock: Any, /, *given: Any, **named: Any) -> Any:
            result = original(sock, *given, **named)
            if given == _SO_ERROR:
                with contextlib.suppress(Exception):
                    state = self._track.states.get(id(sock))
                    if state is not None and state.pending:
                        failed = OSError(result, "") if result else None
                        self._track.decided(sock, state, failed, now_ns())
            return result

        return getsockopt

    # -- bytes on the socket itself -----------------------------------------------------------

    def _send(self, original: Any) -> Any:
        def send(sock: Any, /, *given: Any, **named: Any) -> Any:
            state = self._track.states.get(id(sock))
            if state is not None and not state.tls:
                self._sending(sock, state, _first(given, named, "data"))
            return original(sock, *given, **named)

        return send

    def _sendmsg(self, original: Any) -> Any:
        def sendmsg(sock: Any, /, *given: Any, **named: Any) -> Any:
            state = self._track.states.get(id(sock))
            if state is not None and not state.tls and given and hasattr(given[0], "__iter__"):
                buffers = list(given[0])  # it may be told only once
                given = (buffers, *given[1:])
                if buffers:
                    self._sending(sock, state, buffers[0])
            return original(sock, *given, **named)

        return sendmsg

    def _sending(self, sock: Any, state: State, data: Any) -> None:
        with contextlib.suppress(Exception):
            if state.pending:
                self._track.decided(
                    sock, state, None, now_ns()
                )  # nobody asked, and it is connected
            beginning = bytes(memoryview(data).cast("B")[:_PEEK])
            if not beginning:
                return
            if state.measurement.first_rx_ns is None or state.measurement.tls_begin_ns is None:
                newest = self._handshakes.newest
                beside = newest() if newest is not None else None
                if beside is not None and is_client_hello(beginning):
                    state.tls = True
                    state.over_tls = beside
                    self._beside[beside] = state.measurement
                    state.measurement.tls_begun(self._begun.get(beside) or now_ns())
                    return
            state.measurement.sent(beginning, now_ns())

    def _recv(self, original: Any) -> Any:
        def recv(sock: Any, /, *given: Any, **named: Any) -> Any:
            data = original(sock, *given, **named)
            state = self._track.states.get(id(sock))
            if state is not None and data and not state.tls:
                with contextlib.suppress(Exception):
                    state.measurement.received(data[:_PEEK], now_ns())
            return data

        return recv

    def _recv_into(self, original: Any) -> Any:
        def recv_into(sock: Any, /, *given: Any, **named: Any) -> Any:
            count = original(sock, *given, **named)
            state = self._track.states.get(id(sock))
            if state is not None and count and not state.tls:
                with contextlib.suppress(Exception):
                    buffer = _first(given, named, "buffer")
                    beginning = bytes(memoryview(buffer).cast("B")[: min(count, _PEEK)])
                    state.measurement.received(beginning, now_ns())
            return count

        return recv_into

    def _detach(self, original: Any) -> Any:
        def detach(sock: Any, /, *given: Any, **named: Any) -> Any:
            number = original(sock, *given, **named)
            state = self._track.states.pop(id(sock), None)
            if state is not None and number >= 0:
                if len(self._detached) >= MAX_RACES:
                    self._detached.clear()
                self._detached[number] = state
            return number

        return detach

    def _close(self, original: Any) -> Any:
        def _real_close(sock: Any, /, *given: Any, **named: Any) -> Any:
            state = self._track.states.pop(id(sock), None)
            if state is not None:
                self._track.ended(state, sock)
            return original(sock, *given, **named)

        return _real_close

    # -- TLS in a socket ----------------------------------------------------------------------

    def _secure_state(self, sock: Any) -> State | None:
        state = self._track.states.get(id(sock))
        if state is None and self._detached:
            state = self._detached.pop(sock.fileno(), None)
            if state is not None:
                self._track.keep(sock, state)
        return state

    def _socket_handshake(self, original: Any) -> Any:
        def do_handshake(sock: Any, /, *given: Any, **named: Any) -> Any:
            state = self._secure_state(sock)
            if state is None or sock.server_side:
                return original(sock, *given, **named)
            state.tls = True
            state.measurement.tls_begun(now_ns())
            try:
                result = original(sock, *given, **named)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except BaseException as exc:
                with contextlib.suppress(Exception):
                    if not isinstance(exc, BlockingIOError):
                        state.measurement.tls_failed(exc, now_ns(), sock.server_hostname, sock)
                raise
            with contextlib.suppress(Exception):
                state.measurement.tls_done(sock, now_ns())
            return result

        return do_handshake

    def _secure_send(self, original: Any) -> Any:
        def send(sock: Any, /, *given: Any, **named: Any) -> Any:
            state = self._track.states.get(id(sock))
            if state is not None and state.tls and sock._sslobj is not None:
                with contextlib.suppress(Exception):
                    data = _first(given, named, "data")
                    beginning = bytes(memoryview(data).cast("B")[:_PEEK])
                    if beginning:
                        state.measurement.sent(beginning, now_ns())
            return original(sock, *given, **named)

        return send

    def _secure_read(self, original: Any) -> Any:
        def read(sock: Any, /, *given: Any, **named: Any) -> Any:
            result = original(sock, *given, **named)
            state = self._track.states.get(id(sock))
            if state is not None and result:
                self._plaintext(state.measurement, result, _first(given[1:], named, "buffer"))
            return result

        return read

    # -- TLS beside a socket ------------------------------------------------------------------

    def _object_handshake(self, original: Any) -> Any:
        def do_handshake(tls: Any, /, *given: Any, **named: Any) -> Any:
            if tls.server_side:
                return original(tls, *given, **named)
            if tls not in self._begun:
                self._begun[tls] = now_ns()
            self._handshakes.newest = weakref.ref(tls)
            try:
                result = original(tls, *given, **named)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except BaseException as exc:
                self._beside_failed(tls, exc)
                raise
            measurement = self._beside.get(tls)
            if measurement is not None:
                with contextlib.suppress(Exception):
                    measurement.tls_done(tls, now_ns())
            return result

        return do_handshake

    def _beside_failed(self, tls: Any, exc: BaseException) -> None:
        measurement = self._beside.get(tls)
        if measurement is not None:
            with contextlib.suppress(Exception):
                measurement.tls_failed(exc, now_ns(), tls.server_hostname, tls)

    def _object_write(self, original: Any) -> Any:
        def write(tls: Any, /, *given: Any, **named: Any) -> Any:
            measurement = self._beside.get(tls)
            if measurement is not None:
                with contextlib.suppress(Exception):
                    data = _first(given, named, "data")
                    beginning = bytes(memoryview(data).cast("B")[:_PEEK])
                    if beginning:
                        measurement.sent(beginning, now_ns())
            return original(tls, *given, **named)

        return write

    def _object_read(self, original: Any) -> Any:
        def read(tls: Any, /, *given: Any, **named: Any) -> Any:
            result = original(tls, *given, **named)
            measurement = self._beside.get(tls)
            if measurement is not None and result:
                self._plaintext(measurement, result, _first(given[1:], named, "buffer"))
            return result

        return read

    def _plaintext(self, measurement: Measurement, result: Any, buffer: Any) -> None:
        with contextlib.suppress(Exception):
            if buffer is None:
                beginning = bytes(result[:_PEEK])
            else:
                beginning = bytes(memoryview(buffer).cast("B")[: min(result, _PEEK)])
            measurement.received(beginning, now_ns())

    # -- for take() ---------------------------------------------------------------------------


_SO_ERROR = (socket.SOL_SOCKET, socket.SO_ERROR)


# The originals say what they take, by place or by name, in this release of Python and the next: all
# is handed on to them as it came, and what a wrapper itself looks at may be in either.
def _first(given: tuple[Any, ...], named: dict[str, Any], name: str) -> Any:
    return given[0] if given else named.get(name)


def _text(host: Any) -> str | None:
    if isinstance(host, bytes):
        return host.decode("ascii", "backslashreplace")
    return host if isinstance(host, str) and host else None


_watcher = _Watcher()
connecting.finders.append(_watcher._track.find)
