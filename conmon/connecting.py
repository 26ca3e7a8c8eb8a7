"""Opens connections and times them: lookup, Happy Eyeballs, TLS. For any program, on any system.

Source: RFC 8305 (Happy Eyeballs version 2), with one lookup for both families.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConnectFailed, NotFound
from .measure import Lookup, Measurement, now_ns
from .reasons import IN_PROGRESS
from .record import Record

if TYPE_CHECKING:
    import asyncio

__all__ = ["connect", "establish", "handshake", "measured", "open_connection", "remember"]

ATTEMPT_DELAY_S = 0.25  # RFC 8305 section 5
MAX_TRIED = 32  # a resolver may name any number of addresses
DEFAULT_TIMEOUT_S = 30.0

finders: list[Callable[[socket.socket], Measurement | None]] = []
"""Others who may have measured a socket, for :func:`measured`."""

_taken_lock = threading.Lock()
_held: weakref.WeakKeyDictionary[socket.socket, Measurement] = weakref.WeakKeyDictionary()


def connect(
    host: str,
    port: int,
    *,
    tls: bool | ssl.SSLContext = False,
    server_hostname: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    family: int = 0,
) -> tuple[socket.socket, Record]:
    """Open a connection and return its socket and what it took.

    The socket is blocking, without a timeout; it is the caller's to close. ``conmon.take(sock)``
    gives its record again, later, as the daemon has it, else as it was here.

    Args:
        host: a name or an address.
        tls: True verifies against the system's authorities; or a context of the caller's.
        server_hostname: whom TLS expects, if not ``host``.
        timeout: seconds for all but the lookup, whose limits are the resolver's.
        family: ``socket.AF_INET`` or ``AF_INET6`` alone.
    Raises:
        ConnectFailed: an OSError whose ``record`` says which phase failed and why.
    """
    measurement = Measurement()
    deadline_ns = now_ns() + int(timeout * 1e9)
    try:
        found = look_up(measurement, host, port, family)
        sock = establish(measurement, found, deadline_ns)
        if tls:
            context = tls if isinstance(tls, ssl.SSLContext) else ssl.create_default_context()
            sock = handshake(measurement, sock, context, server_hostname or host, deadline_ns)
    except (OSError, UnicodeError) as exc:
        raise ConnectFailed(_sentence(host, port, exc), measurement.record()) from exc
    sock.settimeout(None)
    remember(sock, measurement)
    return sock, measurement.record()


def look_up(
    measurement: Measurement, host: str, port: int, family: int = 0
) -> list[tuple[Any, ...]]:
    """Ask the system's resolver, in this thread.

    Raises:
        OSError, UnicodeError: there is no such name; the measurement knows.
    """
    lookup = Lookup(host, now_ns())
    try:
        encoded = host.encode("idna")  # a millisecond the first time, and none of the resolver's
        lookup.begin_ns = now_ns()
        found = socket.getaddrinfo(encoded, port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        lookup.failed(exc, now_ns())  # type: ignore[arg-type]
        measurement.looked_up(lookup)
        raise
    lookup.done(found, now_ns())
    measurement.looked_up(lookup)
    return list(found)


def interleaved(found: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The resolver's order, families in turn (RFC 8305 section 4), bounded."""
    by_family: dict[int, list[tuple[Any, ...]]] = {}
    seen = set()
    for entry in found:
        if entry[4] not in seen:
            seen.add(entry[4])
            by_family.setdefault(entry[0], []).append(entry)
    ordered: list[tuple[Any, ...]] = []
    while by_family and len(ordered) < MAX_TRIED:
        for family in list(by_family):
            ordered.append(by_family[family].pop(0))
            if not by_family[family]:
                del by_family[family]
    return ordered[:MAX_TRIED]


def establish(
    measurement: Measurement, found: Sequence[tuple[Any, ...]], deadline_ns: int
) -> socket.socket:
    """Connect to the first address that answers; a non-blocking socket.

    Raises:
        OSError: none did in time: why the last one did not.
    """
    waiting = interleaved(found)
    pending: dict[socket.socket, int] = {}
    last: OSError = TimeoutError(errno.ETIMEDOUT, "timed out")
    next_ns = now_ns()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or pending:
                at_ns = now_ns()
                if at_ns >= deadline_ns:
                    last = TimeoutError(errno.ETIMEDOUT, "timed out")
                    break
                if waiting and (not pending or at_ns >= next_ns):
                    begun = _begin(measurement, waiting.pop(0), pending, selector)
                    if isinstance(begun, socket.socket):
                        for other in pending.values():
                            measurement.abandoned(other, now_ns())
                        return begun
                    last = begun or last
                    next_ns = now_ns() + int(ATTEMPT_DELAY_S * 1e9)
                    continue
                until = min(deadline_ns, next_ns) if waiting else deadline_ns
                for key, _ in selector.select(max(0.0, (until - at_ns) / 1e9)):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    number = pending.pop(sock)
                    selector.unregister(sock)
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not code:
                        measurement.attempted(number, None, now_ns())
                        measurement.connected(sock)
                        for other in pending.values():
                            measurement.abandoned(other, now_ns())
                        return sock
                    last = OSError(code, os.strerror(code))
                    measurement.attempted(number, last, now_ns())
                    sock.close()
                    next_ns = now_ns()  # the next one need not wait
        finally:
            for sock in pending:
                sock.close()
    for number in pending.values():
        measurement.attempted(number, last, now_ns())
    measurement.fail(None, now_ns())
    raise last


def _begin(
    measurement: Measurement,
    entry: tuple[Any, ...],
    pending: dict[socket.socket, int],
    selector: selectors.BaseSelector,
) -> socket.socket | OSError | None:
    """Call connect(): the socket if it is connected at once, why it failed, or None: pending."""
    family, kind, protocol, _, address = entry
    number = measurement.attempt(address[0], address[1], now_ns())
    sock = None
    try:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        measurement.tries[number].begin_ns = now_ns()
        code = sock.connect_ex(address)
        connected_ns = now_ns()
        if not code or _has_peer(sock):  # on this host, before anybody could wait for it
            measurement.attempted(number, None, connected_ns)
            measurement.connected(sock)
            return sock
    except OSError as exc:
        code = exc.errno or errno.EIO
    if sock is not None and code in IN_PROGRESS:
        pending[sock] = number
        selector.register(sock, selectors.EVENT_WRITE)
        return None
    failed = OSError(code, os.strerror(code))
    measurement.attempted(number, failed, now_ns())
    if sock is not None:
        sock.close()
    return failed


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def handshake(
    measurement: Measurement,
    sock: socket.socket,
    context: ssl.SSLContext,
    server_hostname: str,
    deadline_ns: int,
) -> ssl.SSLSocket:
    """Do TLS on a connected socket, which this takes over.

    Raises:
        OSError: it failed; the socket is closed.
    """
    number = sock.fileno()
    try:
        secured = context.wrap_socket(
            sock, server_hostname=server_hostname, do_handshake_on_connect=False
        )
    except (OSError, ValueError) as exc:
        if number >= 0:
            sock.close()
        measurement.tls_failed(exc, now_ns(), server_hostname)
        raise OSError(str(exc)) from exc
    secured.settimeout(None)
    secured.setblocking(False)
    measurement.tls_begun(now_ns())
    with selectors.DefaultSelector() as selector:
        selector.register(secured, selectors.EVENT_READ)
        try:
            while True:
                try:
                    secured.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    _wait(selector, secured, selectors.EVENT_READ, deadline_ns)
                except ssl.SSLWantWriteError:
                    _wait(selector, secured, selectors.EVENT_WRITE, deadline_ns)
        except OSError as exc:
            measurement.look_at(secured)
            measurement.tls_failed(exc, now_ns(), server_hostname, secured)
            secured.close()
            raise
    measurement.tls_done(secured, now_ns())
    return secured


def _wait(
    selector: selectors.BaseSelector, sock: socket.socket, event: int, deadline_ns: int
) -> None:
    selector.modify(sock, event)
    left = (deadline_ns - now_ns()) / 1e9
    if left <= 0 or not selector.select(left):
        raise TimeoutError(errno.ETIMEDOUT, "timed out")


# -- asyncio ------------------------------------------------------------------------------------


async def open_connection(
    host: str,
    port: int,
    *,
    tls: bool | ssl.SSLContext = False,
    server_hostname: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
    family: int = 0,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Record]:
    """The twin of :func:`connect` for asyncio: streams and the record.

    Raises:
        ConnectFailed: as there.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    measurement = Measurement()
    deadline_ns = now_ns() + int(timeout * 1e9)
    try:
        # The lookup, and the race of addresses, block: they have a thread.
        found = await loop.run_in_executor(None, look_up, measurement, host, port, family)
        sock = await loop.run_in_executor(None, establish, measurement, found, deadline_ns)
        if not tls:
            reader, writer = await asyncio.open_connection(sock=sock)
        else:
            context = tls if isinstance(tls, ssl.SSLContext) else ssl.create_default_context()
            name = server_hostname or host
            left = max(0.001, (deadline_ns - now_ns()) / 1e9)
            measurement.tls_begun(now_ns())
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(sock=sock, ssl=context, server_hostname=name), left
                )
            except (OSError, asyncio.TimeoutError) as exc:
                failure = (
                    exc if isinstance(exc, OSError) else TimeoutError(errno.ETIMEDOUT, "timed out")
                )
                measurement.tls_failed(failure, now_ns(), name)
                sock.close()
                raise failure from exc
            measurement.tls_done(writer.get_extra_info("ssl_object"), now_ns())
    except (OSError, UnicodeError) as exc:
        raise ConnectFailed(_sentence(host, port, exc), measurement.record()) from exc
    remember(sock, measurement)
    return reader, writer, measurement.record()


# -- what take() falls back to ------------------------------------------------------------------


def remember(sock: socket.socket, measurement: Measurement) -> None:
    """Keep a measurement for as long as its socket is alive."""
    with _taken_lock:
        _held[sock] = measurement


def measured(sock: socket.socket) -> Record:
    """Return what this process itself measured of a socket, and forget it, as lws's take does.

    Raises:
        NotFound: nothing, or it was taken before.
    """
    with _taken_lock:
        measurement = _held.pop(sock, None)
    for find in finders:
        measurement = measurement or find(sock)
    if measurement is None:
        raise NotFound("this program did not measure that socket")
    if sock.fileno() >= 0:
        measurement.look_at(sock)
    return measurement.record()


def _sentence(host: str, port: int, exc: BaseException) -> str:
    reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return f"cannot connect to {host} port {port}: {reason}"
