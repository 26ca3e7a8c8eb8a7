"""The query socket's server: one thread, many clients, h11 for the protocol.

Nothing that a client does can hold up the daemon or another client: each has a bounded buffer
and deadlines, each uid a rate and a share of the clients. What takes long is found in a second
thread. The daemon's loop only ever appends to a queue.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import h11

from conmon.record import Record
from monitor.api.access import Asker, who_asks
from monitor.api.answer import NDJSON, Answer, Feed, Later, Reply, Stream, error
from monitor.api.client import Client, head_and_body, response, send
from monitor.api.listen import listen_tcp, listen_unix

__all__ = ["Limits", "Server"]

_READ_BYTES: Final = 16 << 10
_BUFFER_BYTES: Final = 256 << 10  # a long answer is made piece by piece below this
_STREAM_BUFFER_BYTES: Final = 1 << 20  # a stream's reader who lets so much wait has stalled
_PENDING_RECORDS: Final = 16_384  # on their way from the daemon to the streams
_REQUEST_S: Final = 10.0  # for a request to arrive whole
_IDLE_S: Final = 60.0  # between requests
_STALL_S: Final = 20.0  # without taking a byte of its answer
_LINGER_S: Final = 1.0  # for a refused client to read why
_HEARTBEAT_S: Final = 15.0
_TICK_S: Final = 1.0
_UIDS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients may take.

    ``rate``: requests a second of one uid; twice that at once. ``max_clients``: connected at one
    time; one uid other than root has half of them at most.
    """

    max_clients: int = 64
    rate: float = 200.0


class _Routes(Protocol):
    def reply(self, method: str, target: str, asker: Asker) -> Reply: ...


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


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
        self._by_uid: Counter[int | None] = Counter()
        self._buckets: dict[int | None, _Bucket] = {}
        self._streams = 0
        self._live_streams = 0
        self._published: deque[Record] = deque(maxlen=_PENDING_RECORDS)
        self._skipped = 0
        self._found: queue.SimpleQueue[tuple[Client, Answer | Feed]] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[tuple[Client, Later] | None] = queue.SimpleQueue()
        self._ending = False
        self._listeners = [listen_unix(path)]
        self._inode = os.stat(path).st_ino
        try:
            if metrics_listen is not None:
                self._listeners.append(listen_tcp(metrics_listen))
        except BaseException:
            self._remove_socket()
            raise
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._threads: list[threading.Thread] = []

    # -- from the daemon's thread -------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer."""
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        for name, target in (("query-socket", self._serve), ("query-finder", self._find)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

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
        self._work.put(None)
        self._wake_up()
        for thread in self._threads:
            thread.join(timeout=1.0)
        self._remove_socket()
        for listener in self._listeners:
            listener.close()
        if not any(thread.is_alive() for thread in self._threads):
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
                for key, events in self._selector.select(max(0.0, next_tick - time.monotonic())):
                    if key.data is not None:
                        self._on_client(key.data, events)
                    elif key.fd == self._wake:
                        os.eventfd_read(self._wake)
                        self._hand_out()
                    else:
                        self._accept(key.fileobj)  # type: ignore[arg-type]
                now = time.monotonic()
                if now >= next_tick:
                    next_tick = now + _TICK_S
                    self._tick(now)
            except Exception as exc:  # noqa: BLE001 - one client's fault must not end all answers
                self._say(f"the query socket: {type(exc).__name__}: {exc}")
                time.sleep(0.05)
        for client in list(self._clients.values()):
            self._write(client)
            self._close(client)
        self._selector.close()

    def _find(self) -> None:
        while (item := self._work.get()) is not None:
            client, later = item
            answer: Answer | Feed
            try:
                answer = later.find()
            except Exception as exc:  # noqa: BLE001 - see _serve
                answer = self._failed(exc)
            self._found.put((client, answer))
            self._wake_up()

    def _failed(self, exc: Exception) -> Answer:
        self._say(f"the query socket: {type(exc).__name__}: {exc}")
        return error(500, "the daemon could not find the answer; its log says why")

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return  # gone again, or no descriptor left
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
        client = Client(sock, asker, now + _REQUEST_S)
        most = self.limits.max_clients
        share = most if asker.uid == 0 else max(1, most // 2)
        full = len(self._clients) >= most or self._by_uid[asker.uid] >= share
        if full:
            # the sentence fits in any socket's buffer, so nothing is kept of this client
            self.refused += 1
            refusal = error(503, "too many clients are connected", ("Retry-After", "1"))
            with contextlib.suppress(OSError, h11.ProtocolError):
                sock.send(head_and_body(client.http, refusal))
            sock.close()
            return
        self._clients[sock.fileno()] = client
        self._by_uid[asker.uid] += 1
        self._watch(client)

    def _on_client(self, client: Client, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._read(client)
        if events & selectors.EVENT_WRITE and not client.gone:
            self._write(client)
            self._watch(client)

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
        if client.stream is not None or client.feed is not None or client.closing:
            # more requests on a stream are not read; the end of it is what counts
            if not data and not client.out:
                self._close(client)
            self._watch(client)
            return
        try:
            client.http.receive_data(data)
            if client.busy or client.body is not None:
                if len(client.http.trailing_data[0]) > _READ_BYTES:
                    self._close(client)  # asks on and on without reading
            else:
                self._advance(client)
        except h11.RemoteProtocolError as exc:
            self._refuse(client, exc.error_status_hint, f"not HTTP/1.1 as it should be: {exc}")
        self._watch(client)

    def _advance(self, client: Client) -> None:
        """Take in requests as far as they have arrived whole."""
        while not (
            client.closing
            or client.busy
            or client.body
            or client.stream
            or client.feed
            or client.gone
        ):
            event = client.http.next_event()
            if isinstance(event, h11.ConnectionClosed):
                if client.out:
                    client.closing = True
                else:
                    self._close(client)
                return
            if isinstance(event, h11.Request):
                self._request(client, event)
            else:
                return  # more has to arrive, or this one's answer to go

    def _request(self, client: Client, request: h11.Request) -> None:
        headers = dict(request.headers)
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            self._refuse(client, 413, "a request has no body here")
            return
        if not self._permitted(client.asker):
            client.http.next_event()  # EndOfMessage
            self._answer(client, error(429, "too many requests", ("Retry-After", "1")))
            return
        client.http.next_event()
        try:
            reply = self._routes.reply(
                request.method.decode("ascii"),
                request.target.decode("ascii", "backslashreplace"),
                client.asker,
            )
        except Exception as exc:  # noqa: BLE001 - see _serve
            reply = self._failed(exc)
        if isinstance(reply, Later):
            client.busy = True
            client.deadline = time.monotonic() + _STALL_S
            self._work.put((client, reply))
        elif isinstance(reply, Stream):
            self._begin_stream(client, reply)
        else:
            self._answer(client, reply)

    def _permitted(self, asker: Asker) -> bool:
        if asker.uid == 0:
            return True
        now = time.monotonic()
        rate = self.limits.rate
        bucket = self._buckets.get(asker.uid)
        if bucket is None:
            if len(self._buckets) >= _UIDS:
                self._buckets.clear()
            bucket = self._buckets[asker.uid] = _Bucket(2 * rate, now)
        bucket.tokens = min(2 * rate, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    # -- answers ------------------------------------------------------------------------------

    def _answer(self, client: Client, answer: Answer) -> None:
        if isinstance(answer.body, bytes):
            self._put(client, head_and_body(client.http, answer))
            self._next(client)
        else:
            self._put(client, send(client.http, response(answer, chunked=True)))
            client.body = answer.body
            self._fill(client)
        client.deadline = time.monotonic() + _STALL_S
        self._write(client)

    def _fill(self, client: Client) -> None:
        """Make the next pieces of a long answer."""
        while client.body is not None and client.waiting < _BUFFER_BYTES:
            try:
                piece = next(client.body, None)
            except Exception as exc:  # noqa: BLE001 - see _serve
                self._failed(exc)
                self._close(client)  # in mid-answer, so that nobody takes it for whole
                return
            if piece is None:
                client.body = None
                self._put(client, send(client.http, h11.EndOfMessage()))
                self._next(client)
            elif piece:
                self._put(client, send(client.http, h11.Data(data=piece)))

    def _next(self, client: Client) -> None:
        """An answer is complete: the next request, or the end."""
        if client.http.our_state is h11.MUST_CLOSE:
            client.closing = True
        elif client.http.our_state is h11.DONE and client.http.their_state is h11.DONE:
            client.http.start_next_cycle()

    def _refuse(self, client: Client, status: int, sentence: str) -> None:
        """Answer what cannot be read on, and close."""
        client.closing = True
        client.deadline = time.monotonic() + _LINGER_S
        if client.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error(status, sentence, ("Connection", "close"))
            self._put(client, head_and_body(client.http, answer))
            self._write(client)
        else:
            self._close(client)

    def _begin_stream(self, client: Client, stream: Stream) -> None:
        answer = Answer(200, b"", NDJSON)
        self._put(client, send(client.http, response(answer, chunked=True)))
        client.stream = stream
        client.said_at = time.monotonic()
        self._streams += 1
        self._live_streams += stream.live
        self._write(client)

    def _begin_feed(self, client: Client, feed: Feed) -> None:
        self._put(client, send(client.http, response(Answer(200, b"", NDJSON), chunked=True)))
        client.feed = feed
        feed.connect(self._wake_up)

    def _hand_on(self, client: Client, feed: Feed) -> None:
        """Send the lines of a feed that have come."""
        ended = feed.ended  # before the lines are taken: what it ended with is among them
        for line in feed.take():
            self._put(client, send(client.http, h11.Data(data=line)))
        if ended:
            client.feed = None
            self._put(client, send(client.http, h11.EndOfMessage()))
            self._next(client)
        self._write(client)
        if not client.gone and client.waiting > _STREAM_BUFFER_BYTES:
            self.cut_off += 1
            self._close(client)
        self._watch(client)

    def _hand_out(self) -> None:
        """Send finished answers and new records on their way."""
        while not self._found.empty():
            client, answer = self._found.get()
            client.busy = False
            if isinstance(answer, Feed):
                if client.gone:
                    answer.close()
                else:
                    self._begin_feed(client, answer)
            elif not client.gone:
                self._answer(client, answer)
                try:
                    self._advance(client)
                except h11.RemoteProtocolError as exc:
                    self._refuse(client, exc.error_status_hint, f"not HTTP/1.1: {exc}")
                self._watch(client)
        for client in list(self._clients.values()):
            if client.feed is not None:
                self._hand_on(client, client.feed)
        if not self._published:
            return
        readers = [client for client in self._clients.values() if client.stream is not None]
        touched = set()
        for _ in range(len(self._published)):
            record = self._published.popleft()
            line = None
            for client in readers:
                stream = client.stream
                if client.gone or stream is None:
                    continue
                if (record.state == "open" and not stream.live) or not stream.filters.match(record):
                    continue
                if line is None:
                    line = self._render(record)
                self._put(client, send(client.http, h11.Data(data=line)))
                touched.add(client.sock.fileno())
                if client.waiting > _STREAM_BUFFER_BYTES:
                    self._write(client)
                    if not client.gone and client.waiting > _STREAM_BUFFER_BYTES:
                        self.cut_off += 1
                        self._close(client)
        now = time.monotonic()
        for client in readers:
            if not client.gone and client.sock.fileno() in touched:
                client.said_at = now
                self._write(client)
                self._watch(client)
        if self._skipped:
            # nobody can tell a reader which records it did not get, so each begins anew
            self._skipped = 0
            for client in readers:
                if not client.gone:
                    self.cut_off += 1
                    self._close(client)

    # -- bytes --------------------------------------------------------------------------------

    def _put(self, client: Client, data: bytes) -> None:
        if not client.out:
            client.deadline = time.monotonic() + _STALL_S
        client.out.append(data)
        client.waiting += len(data)

    def _write(self, client: Client) -> None:
        while client.out or client.body is not None:
            if client.waiting < _BUFFER_BYTES:
                self._fill(client)
            if not client.out:
                break
            piece = client.out[0]
            try:
                sent = client.sock.send(piece)
            except BlockingIOError:
                return
            except OSError:
                self._close(client)
                return
            client.deadline = time.monotonic() + _STALL_S
            client.waiting -= sent
            if sent == len(piece):
                client.out.popleft()
            else:
                client.out[0] = piece[sent:]
        if client.closing or (client.ended and not client.busy):
            self._close(client)
        elif client.stream is None and client.feed is None and not client.busy:
            client.deadline = time.monotonic() + _IDLE_S
            if client.http.their_state is h11.IDLE and client.http.trailing_data[0]:
                self._advance(client)  # a request that came while this one was answered

    def _watch(self, client: Client) -> None:
        if client.gone:
            return
        events = 0 if client.ended else selectors.EVENT_READ
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
        for client in list(self._clients.values()):
            if client.stream is not None and now - client.said_at > _HEARTBEAT_S:
                client.said_at = now
                self._put(client, send(client.http, h11.Data(data=b"\n")))
                self._write(client)
                self._watch(client)
            quiet = client.stream is not None or client.feed is not None
            if client.gone or (quiet and not client.out):
                continue
            if now < client.deadline:
                continue
            if client.out:
                self.cut_off += 1
                self._close(client)
            elif client.busy:
                client.deadline = now + _STALL_S
            elif client.http.their_state is h11.IDLE and not client.http.trailing_data[0]:
                self._close(client)  # idle for long enough
            else:
                self._refuse(client, 408, "the request did not arrive whole in time")

    def _close(self, client: Client) -> None:
        if client.gone:
            return
        client.gone = True
        if client.stream is not None:
            self._streams -= 1
            self._live_streams -= client.stream.live
        if client.feed is not None:
            client.feed.close()
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.sock)
        self._clients.pop(client.sock.fileno(), None)
        self._by_uid[client.asker.uid] -= 1
        if not self._by_uid[client.asker.uid]:
            del self._by_uid[client.asker.uid]
        client.out.clear()
        client.body = None
        client.sock.close()
