"""The query socket's server: one thread, many clients, h11 for the protocol.

Nothing that a client does can hold up the daemon or another client: each has a bounded buffer,
deadlines, and turns that end after so many bytes or so much time; each uid a rate and a share of
the clients. What takes long is found in other threads. The daemon's loop only ever appends to a
queue.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import resource
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, Protocol

import h11

from conmon.record import Record
from monitor.api.access import Asker, who_asks
from monitor.api.answer import Answer, Feed, Later, Reply, Stream, error
from monitor.api.client import Client, whole
from monitor.api.finder import Finder
from monitor.api.limits import Limits, Rates, Slots
from monitor.api.listen import listen_tcp, listen_unix

__all__ = ["Limits", "Server"]

_READ_BYTES: Final = 16 << 10
_TURN_BYTES: Final = 256 << 10  # sent to one client before the others have their turn
_TURN_S: Final = 0.01  # likewise, of finding answers and making their pieces
_STREAM_BUFFER_BYTES: Final = 1 << 20  # a stream's reader who lets so much wait has stalled
_PENDING_RECORDS: Final = 16_384  # on their way from the daemon to the streams
_REQUEST_S: Final = 10.0  # for a request to arrive whole
_IDLE_S: Final = 60.0  # between requests
_STALL_S: Final = 20.0  # without taking a byte of its answer
_LINGER_S: Final = 1.0  # for a refused client to read why
_TURNED_AWAY: Final = 16  # who may linger so at one time, besides the clients
_KEPT: Final = 16  # descriptors that the daemon needs now and then, and no client gets
# accept() cannot, and will not at once.
_SCARCE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_HEARTBEAT_S: Final = 15.0
_TICK_S: Final = 1.0
_CLOSE_S: Final = 1.0

_Given = ParamSpec("_Given")


class _Routes(Protocol):
    def reply(self, method: str, target: str, asker: Asker) -> Reply: ...


class Server:
    """Answers on a Unix socket, and over TCP for metrics alone where asked to.

    Args:
        path: of the socket; a stale one is replaced.
        routes: finds the answer to a request.
        render: a record as its line of JSON, for streams.
        group: id of the group whose members see all.
        limits: what clients may take.
        say: tells a person.
    Raises:
        SourceError: it cannot listen there; one sentence.
    """

    def __init__(
        self,
        path: str,
        routes: _Routes,
        render: Callable[[Record], bytes],
        *,
        group: int | None,
        limits: Limits,
        say: Callable[[str], None],
        metrics_listen: tuple[str, int] | None = None,
    ) -> None:
        self.path = path
        self.limits = limits
        self.refused = 0
        self.cut_off = 0
        self._routes = routes
        self._render = render
        self._group = group
        self._say = say
        self._clients: dict[int, Client] = {}
        self._ready: dict[Client, None] = {}
        """Whose turn ended before they were done, and who wait for no event."""
        self._turned_away: deque[tuple[float, socket.socket]] = deque()
        self._slots = Slots(limits.max_clients)
        self._rates = Rates(limits.rate)
        self._streams = 0
        self._live_streams = 0
        self._published: deque[Record] = deque(maxlen=_PENDING_RECORDS)
        self._skipped = 0
        self._found: queue.SimpleQueue[tuple[Client, Answer | Feed]] = queue.SimpleQueue()
        self._finder = Finder(limits.max_slow, self._take_found, self._failed)
        self._faults: set[tuple[str, str, int]] = set()
        self._ending = False
        self._resting = False
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_descriptors = most - _KEPT if most != resource.RLIM_INFINITY else None
        self._listeners = [listen_unix(path)]
        self._inode = os.stat(path).st_ino
        try:
            if metrics_listen is not None:
                self._listeners.append(listen_tcp(metrics_listen))
        except BaseException:
            self._remove_socket()
            self._listeners[0].close()
            raise
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve, name="query-socket", daemon=True)

    # -- from the daemon's thread -------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer."""
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()

    @property
    def open_clients(self) -> int:
        """Clients connected now."""
        return len(self._clients)

    @property
    def streaming(self) -> bool:
        """Whether anyone reads a stream, so that :meth:`publish` does something."""
        return self._streams > 0

    @property
    def streaming_live(self) -> bool:
        """Whether a stream wants connections that are open, too."""
        return self._live_streams > 0

    def publish(self, record: Record) -> None:
        """Hand a record to the streams; :meth:`flush` sends what was handed over."""
        if len(self._published) == _PENDING_RECORDS:
            self._skipped += 1
        self._published.append(record)

    def flush(self) -> None:
        """Wake the server where records wait for it."""
        if self._published:
            self._wake_up()

    def close(self) -> None:
        """Stop answering, at most a second from now, and remove the socket."""
        self._ending = True
        self._finder.close()
        self._wake_up()
        until = time.monotonic() + _CLOSE_S
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        found_all = self._finder.join(until)
        self._remove_socket()
        for listener in self._listeners:
            listener.close()
        if found_all and not self._thread.is_alive():
            os.close(self._wake)

    def _wake_up(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def _remove_socket(self) -> None:
        # another daemon may have taken the path over meanwhile
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    # -- the server's thread ------------------------------------------------------------------

    def _serve(self) -> None:
        next_tick = time.monotonic() + _TICK_S
        while not self._ending:
            try:
                wait_s = 0.0 if self._ready else max(0.0, next_tick - time.monotonic())
                for key, events in self._selector.select(wait_s):
                    if key.data is not None:
                        self._guard(key.data, self._on_client, events)
                    elif key.fd == self._wake:
                        os.eventfd_read(self._wake)
                        self._hand_out()
                    else:
                        self._accept(key.fileobj)  # type: ignore[arg-type]
                ready, self._ready = self._ready, {}
                for client in ready:
                    self._guard(client, self._turn)
                now = time.monotonic()
                if now >= next_tick:
                    next_tick = now + _TICK_S
                    self._tick(now)
            except Exception as exc:  # noqa: BLE001 - no client's fault, and answers must go on
                self._note(exc)
                time.sleep(0.05)
        for client in list(self._clients.values()):
            self._guard(client, self._turn)
            self._close(client)
        for _, sock in self._turned_away:
            sock.close()
        self._selector.close()

    def _guard(
        self,
        client: Client,
        step: Callable[Concatenate[Client, _Given], None],
        *given: _Given.args,
        **named: _Given.kwargs,
    ) -> None:
        """Take a step for a client. What goes wrong in it ends this client and nothing else."""
        if client.gone:
            return
        try:
            step(client, *given, **named)
            self._watch(client)
        except Exception as exc:  # noqa: BLE001 - see above
            self._note(exc)
            self.cut_off += 1
            self._close(client)

    def _note(self, exc: Exception) -> None:
        """Say what went wrong, once for each place: whoever can cause it can do so for ever."""
        trace = exc.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        file = os.path.basename(trace.tb_frame.f_code.co_filename) if trace is not None else ""
        line = trace.tb_lineno if trace is not None else 0
        fault = (type(exc).__name__, file, line)
        if fault not in self._faults:
            self._faults.add(fault)
            self._say(f"the query socket: {fault[0]}: {exc} ({file}, line {line}; said once)")

    def _failed(self, exc: Exception) -> Answer:
        self._note(exc)
        return error(500, "the daemon could not find the answer; its log says why")

    def _take_found(self, client: Client, answer: Answer | Feed) -> None:
        self._found.put((client, answer))
        self._wake_up()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as exc:
            if exc.errno in _SCARCE:
                self._rest(exc)
            return  # else gone again
        sock.setblocking(False)
        now = time.monotonic()
        try:
            if sock.family == socket.AF_UNIX:
                asker = who_asks(sock, self._group)
            else:
                asker = Asker(None, sees_all=True, metrics_only=True)
        except OSError:
            sock.close()
            return
        client = Client(sock, asker, now + _REQUEST_S, now)
        if self._most_descriptors is not None and sock.fileno() >= self._most_descriptors:
            self._turn_away(client, linger=False)
            return
        if not self._slots.free(asker.uid):
            idlest = self._slots.idlest(asker.uid, self._clients.values(), now)
            if idlest is None:
                self._turn_away(client)
                return
            self._close(idlest)
        self._clients[sock.fileno()] = client
        self._slots.enter(asker.uid)
        self._watch(client)

    # Whoever waits to be accepted would wake us again and again.
    def _rest(self, exc: OSError) -> None:
        self._note(exc)
        if not self._resting:
            self._resting = True
            for listener in self._listeners:
                self._selector.unregister(listener)

    def _turn_away(self, client: Client, *, linger: bool = True) -> None:
        self.refused += 1
        headers = (("Retry-After", "1"), ("Connection", "close"))
        refusal = error(503, "too many clients are connected", *headers)
        with contextlib.suppress(OSError, h11.ProtocolError):
            client.sock.send(whole(client.http, refusal))  # which fits in any socket's buffer
        if not linger:
            client.sock.close()
            return
        # closed at once, it would get EPIPE for its question and never read the answer
        self._turned_away.append((time.monotonic() + _LINGER_S, client.sock))
        if len(self._turned_away) > _TURNED_AWAY:
            self._turned_away.popleft()[1].close()

    def _on_client(self, client: Client, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._read(client)
        self._turn(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        if not data:
            client.ended = True
            if client.hung_up:
                self._close(client)
                return
        if client.stream is not None or client.feed is not None or client.closing:
            # more requests on a stream are not read; the end of it is what counts
            if not data and not client.out:
                self._close(client)
        else:
            client.http.receive_data(data)

    def _turn(self, client: Client) -> None:
        """Send, make pieces and take in requests for a client, as long as is fair to others."""
        until = time.monotonic() + _TURN_S
        room = _TURN_BYTES
        while not client.gone:
            if client.out:
                sent = self._send(client, room)
                room -= sent
                if not sent or room <= 0:
                    return  # goes on when the socket can be written to
            elif client.closing:
                self._close(client)
            elif client.body is not None:
                self._make_piece(client)
            elif client.feed is not None:
                if not self._take_line(client, client.feed):
                    return
            elif client.stream is not None or client.busy or not self._take_in(client):
                return
            if time.monotonic() >= until:
                if not client.out and not client.gone:
                    self._ready[client] = None
                return

    def _send(self, client: Client, most: int) -> int:
        try:
            sent = client.send(most)
        except BlockingIOError:
            feed = client.feed
            if feed is not None and feed.unread_bytes > _STREAM_BUFFER_BYTES:
                self.cut_off += 1
                self._close(client)
            return 0
        except OSError:
            self._close(client)
            return 0
        now = time.monotonic()
        client.deadline = now + _STALL_S
        if not client.answering:
            client.since = now
            client.deadline = now + _IDLE_S
        return sent

    # -- requests -----------------------------------------------------------------------------

    def _take_in(self, client: Client) -> bool:
        """Answer one request that has arrived whole; False: none has."""
        try:
            request = client.next_request()
        except h11.RemoteProtocolError as exc:
            self._refuse(client, exc.error_status_hint, f"not HTTP/1.1 as it should be: {exc}")
            return True
        if request is None:
            return False
        client.deadline = time.monotonic() + _STALL_S
        if isinstance(request, h11.ConnectionClosed):
            client.closing = True
        else:
            self._request(client, request)
        return True

    def _request(self, client: Client, request: h11.Request) -> None:
        headers = dict(request.headers)
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            self._refuse(client, 413, "a request has no body here")
            return
        client.end_of_request()
        if not self._rates.permit(client.asker, time.monotonic()):
            client.answer(error(429, "too many requests", ("Retry-After", "1")))
            return
        try:
            reply = self._routes.reply(
                request.method.decode("ascii"),
                request.target.decode("ascii", "backslashreplace"),
                client.asker,
            )
        except Exception as exc:  # noqa: BLE001 - the daemon's fault, of which its client is told
            reply = self._failed(exc)
        if isinstance(reply, Later):
            client.busy = True
            refusal = self._finder.put(client, reply)
            if refusal is not None:
                client.busy = False
                client.answer(refusal)
        elif isinstance(reply, Stream):
            self._begin_stream(client, reply)
        else:
            client.answer(reply)

    def _refuse(self, client: Client, status: int, sentence: str) -> None:
        """Answer what cannot be read on, and close."""
        client.closing = True
        client.deadline = time.monotonic() + _LINGER_S
        if client.can_be_answered:
            client.answer(error(status, sentence, ("Connection", "close")))

    # -- answers ------------------------------------------------------------------------------

    def _make_piece(self, client: Client) -> None:
        try:
            client.make_piece()
        except Exception as exc:  # noqa: BLE001 - the daemon's fault
            self._note(exc)
            self._close(client)  # in mid-answer, so that nobody takes it for whole

    def _begin_stream(self, client: Client, stream: Stream) -> None:
        if not client.begin_lines():
            return
        client.stream = stream
        client.said_at = time.monotonic()
        self._streams += 1
        self._live_streams += stream.live

    def _take_line(self, client: Client, feed: Feed) -> bool:
        """Add what a feed has to tell; False: nothing at the moment."""
        ended = feed.ended  # before a line is taken: what it ended with is among them
        line = feed.take()
        if line is not None:
            client.line(line)
        elif ended:
            client.feed = None
            client.end_lines()
        else:
            return False
        return True

    def _hand_out(self) -> None:
        """Send finished answers and new records on their way."""
        while not self._found.empty():
            client, answer = self._found.get()
            if isinstance(answer, Feed) and client.gone:
                answer.close()
            self._guard(client, self._deliver, answer)
        for client in list(self._clients.values()):
            if client.feed is not None:
                self._guard(client, self._turn)
        if self._published:
            self._publish()

    def _deliver(self, client: Client, answer: Answer | Feed) -> None:
        client.busy = False
        client.deadline = time.monotonic() + _STALL_S
        if isinstance(answer, Answer):
            client.answer(answer)
        elif client.begin_lines():
            client.feed = answer
            answer.connect(self._wake_up)
        else:
            answer.close()
        self._turn(client)

    def _publish(self) -> None:
        """Send new records to the streams."""
        readers = [client for client in self._clients.values() if client.stream is not None]
        touched: dict[Client, None] = {}
        for _ in range(len(self._published)):
            record = self._published.popleft()
            wanted = [client for client in readers if _wants(client, record)]
            if wanted:
                line = self._render(record)
                for client in wanted:
                    touched[client] = None
                    self._guard(client, self._add_record, line)
        for client in touched:
            self._guard(client, self._turn)
        if self._skipped:
            # nobody can tell a reader which records it did not get, so each begins anew
            self._skipped = 0
            for client in readers:
                if not client.gone:
                    self.cut_off += 1
                    self._close(client)

    def _add_record(self, client: Client, line: bytes) -> None:
        if not client.out:
            client.said_at = time.monotonic()
            client.deadline = client.said_at + _STALL_S
        client.line(line)
        if client.waiting > _STREAM_BUFFER_BYTES:
            self._turn(client)
            if not client.gone and client.waiting > _STREAM_BUFFER_BYTES:
                self.cut_off += 1
                self._close(client)

    # -- events and time ----------------------------------------------------------------------

    def _watch(self, client: Client) -> None:
        if client.gone:
            return
        events = 0 if client.ended or client.full else selectors.EVENT_READ
        if client.out:
            events |= selectors.EVENT_WRITE
        if events == client.watched:
            return
        if not events:
            self._selector.unregister(client.sock)
        elif client.watched:
            self._selector.modify(client.sock, events, client)
        else:
            self._selector.register(client.sock, events, client)
        client.watched = events

    def _tick(self, now: float) -> None:
        if self._resting:
            self._resting = False
            for listener in self._listeners:
                self._selector.register(listener, selectors.EVENT_READ)
        while self._turned_away and self._turned_away[0][0] <= now:
            self._turned_away.popleft()[1].close()
        for client in list(self._clients.values()):
            self._guard(client, self._look_after, now)

    def _look_after(self, client: Client, now: float) -> None:
        if client.busy:
            if client.hung_up:  # which no event tells of a client that had stopped sending
                self._close(client)
            return
        if client.stream is not None and now - client.said_at > _HEARTBEAT_S:
            client.said_at = now
            if not client.out:
                client.deadline = now + _STALL_S
            client.line(b"\n")
            self._turn(client)
        if client.gone or now < client.deadline:
            return
        if client.out:
            self.cut_off += 1
            self._close(client)
        elif client.idle:
            self._close(client)
        elif not client.answering:
            self._refuse(client, 408, "the request did not arrive whole in time")
            self._turn(client)

    def _close(self, client: Client) -> None:
        if client.gone:
            return
        client.gone = True
        if client.busy:
            self._finder.forget(client)
        if client.stream is not None:
            self._streams -= 1
            self._live_streams -= client.stream.live
        if client.feed is not None:
            client.feed.close()
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.sock)
        self._clients.pop(client.sock.fileno(), None)
        self._ready.pop(client, None)
        self._slots.leave(client.asker.uid)
        client.out.clear()
        client.body = None
        client.sock.close()


def _wants(client: Client, record: Record) -> bool:
    stream = client.stream
    return (
        stream is not None
        and not client.gone
        and (record.state != "open" or stream.live)
        and stream.filters.match(record)
    )
