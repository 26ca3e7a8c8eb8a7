"""A client of the daemon's query socket, for any program. Standard library only.

Nothing of the network's modules is loaded before the first question, so that importing this costs
a program little, and works where there are no Unix sockets.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

from .errors import (
    BadRequest,
    DaemonAnswerError,
    DaemonError,
    DaemonUnreachable,
    NotFound,
    NotPermitted,
)
from .record import Record

__all__ = ["DEFAULT_SOCKET", "Daemon", "take"]

DEFAULT_SOCKET = "/run/conmond/conmond.sock"
MAX_ANSWER_BYTES = 256 << 20
MAX_LINE_BYTES = 4 << 20
_CHUNK = 256 << 10


def socket_path(path: str | None = None) -> str:
    """Return the query socket's path: as given, else ``$CONMOND_SOCKET``, else the default."""
    return path or os.environ.get("CONMOND_SOCKET") or DEFAULT_SOCKET


def take(sock: socket.socket, *, path: str | None = None, timeout: float = 5.0) -> Record:
    """Return the record of this program's own connected socket, as ``lws_conmon_wsi_take()`` does.

    The daemon is asked first. Where there is none, or it has not seen the socket, the record is
    what this program measured: of a socket of ``conmon.connect()``, or one made under
    ``conmon.watch()``. The record is a copy that outlives the socket, and once taken, what was
    measured here is forgotten.

    Args:
        sock: a TCP socket.
        path: of the query socket; see :class:`Daemon`.
        timeout: seconds to wait for the daemon.
    Raises:
        NotFound: the daemon has not seen it (it is older than the daemon, not TCP, or accepted)
            and this program did not measure it.
        DaemonUnreachable: no daemon runs, or this system has no socket cookies (Linux has), and
            this program did not measure it.
    """
    from .connecting import measured
    from .measure import socket_cookie

    try:
        cookie = socket_cookie(sock)
        if cookie is None:
            raise DaemonUnreachable("this system gives sockets no cookies")
        return Daemon(path, timeout=timeout).take(cookie)
    except DaemonError:
        try:
            return measured(sock)
        except NotFound:
            pass
        raise


class Daemon:
    """A running conmond. Every question is a connection of its own, so threads may share this.

    Args:
        path: of its query socket; else ``$CONMOND_SOCKET``, else ``/run/conmond/conmond.sock``.
        timeout: seconds without a byte after which the daemon counts as unreachable.

    Filters, as keyword arguments: ``pid comm exe unit container uid host``, and for records
    ``failed=True``, ``unused=True`` and ``slow="200ms"``. Without rights only the caller's own uid
    is seen.

    Every method raises :class:`DaemonUnreachable`, :class:`NotPermitted`, :class:`NotFound` or
    :class:`DaemonAnswerError`, all of which are :class:`DaemonError`.
    """

    def __init__(self, path: str | None = None, *, timeout: float = 5.0) -> None:
        self.path = socket_path(path)
        self.timeout = timeout

    def processes(self, **parameters: Any) -> dict[str, Any]:
        """Return per-process statistics: ``rows = answer["processes"]``.

        Args:
            by: process, comm, unit, container, uid or host.
            since: a duration such as ``"5m"``, or RFC 3339.
            sort: opened, failed, open, bytes, dns_us, sockconn_us, tls_us, txn_resp_us, comm, pid.
            limit: rows.
        """
        return self.get("/v1/processes", **parameters)

    def connections(self, **parameters: Any) -> list[Record]:
        """Return the records of connections that are open now, oldest first.

        Args:
            limit: how many at most.
            order: oldest or newest, which comes first.
        """
        return [_record(row) for row in self._list("/v1/connections", "connections", parameters)]

    def records(self, *, count: int | None = None, **parameters: Any) -> Iterator[Record]:
        """Yield records of connections that ended, newest first.

        Args:
            count: how many at most; None: all.
            since, until: a duration such as ``"5m"``, or RFC 3339.
            order: newest or oldest.
        """
        parameters.setdefault("limit", min(count or 500, 500))
        left = count
        while True:
            answer = self.get("/v1/records", **parameters)
            rows = answer.get("records")
            if not isinstance(rows, list):
                raise DaemonAnswerError('the answer of conmond has no list "records"')
            for row in rows:
                if left is not None:
                    if not left:
                        return
                    left -= 1
                yield _record(row)
            before = answer.get("next")
            if not before or not rows or left == 0 or before == parameters.get("before"):
                return
            parameters["before"] = before

    def record(self, identifier: str) -> Record:
        """Return one record by its id."""
        return _record(self.get(f"/v1/records/{quote(identifier, safe='')}").get("record"))

    def stream(self, **parameters: Any) -> Iterator[Record]:
        """Yield records as connections end; ``live=True``: also once each is set up.

        Ends with :class:`DaemonUnreachable` when the daemon does. Close the iterator to stop.
        """
        for line in self.stream_lines(**parameters):
            yield _record(_parsed(line))

    def take(self, cookie: int) -> Record:
        """Return the record of the socket with this cookie (SO_COOKIE)."""
        return _record(self.get(f"/v1/take/{int(cookie)}").get("record"))

    def doctor(self) -> dict[str, Any]:
        """Return how the daemon does: what it probes, what it lost, what it costs."""
        return self.get("/v1/doctor")

    def metrics(self) -> str:
        """Return the Prometheus text."""
        return self._ask("/metrics", {}).decode("utf-8", "replace")

    def deep(self, pid: int, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Read what a process's TLS library reads and writes, and yield what is told of it.

        It ends by itself; to end it early, close the iterator. Each item has a ``kind``: ``begin``,
        ``turn`` (a request and its answer), ``cost`` (once a second), ``end`` (``why``).

        Args:
            for_: how long, such as ``"60s"`` (the default).
            most: percent of one CPU that it may cost the process; beyond, it ends. 25.
        """
        if "for_" in parameters:
            parameters["for"] = parameters.pop("for_")
        with _Exchange(self.path, max(self.timeout, 30.0)) as exchange:
            response = exchange.request(_target(f"/v1/deep/{int(pid)}", parameters), "POST")
            while line := exchange.line(response):
                item = _parsed(line)
                if not isinstance(item, dict):
                    raise DaemonAnswerError("a line of conmond is no JSON object")
                yield item

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        """Ask any path; return the parsed answer."""
        data = _parsed(self._ask(path, parameters))
        if not isinstance(data, dict):
            raise DaemonAnswerError(f"the answer of conmond to {path} is no JSON object")
        return data

    def stream_lines(self, **parameters: Any) -> Iterator[bytes]:
        """Return each line of the stream as it came, without those that only keep it alive.

        It is asked for at once, before the first is taken: what ends from now on is in it.
        """
        exchange = _Exchange(self.path, self.timeout)
        try:
            response = exchange.request(_target("/v1/stream", parameters))
            # a heartbeat comes every 15 s
            exchange.patience(60.0)
        except BaseException:
            exchange.close()
            raise
        return _lines(exchange, response)

    def _list(self, path: str, name: str, parameters: dict[str, Any]) -> list[Any]:
        rows = self.get(path, **parameters).get(name)
        if not isinstance(rows, list):
            raise DaemonAnswerError(f'the answer of conmond has no list "{name}"')
        return rows

    def _ask(self, path: str, parameters: dict[str, Any]) -> bytes:
        with _Exchange(self.path, self.timeout) as exchange:
            return exchange.body(exchange.request(_target(path, parameters)))


class _Exchange:
    """One connection to the daemon, one request."""

    def __init__(self, path: str, timeout: float) -> None:
        import http.client

        self._path = path
        self._http = http.client
        self._connection = http.client.HTTPConnection("conmond", timeout=timeout)
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except (AttributeError, OSError) as exc:
            raise DaemonUnreachable("conmond needs Unix sockets, which are not here") from exc
        sock.settimeout(timeout)
        try:
            sock.connect(path)
        except OSError as exc:
            sock.close()
            reason = exc.strerror or str(exc)
            raise DaemonUnreachable(
                f"cannot reach conmond at {path}: {reason}; is it running? "
                "(systemctl status conmond)"
            ) from exc
        self._connection.sock = sock

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Break the connection off."""
        self._connection.close()

    def patience(self, seconds: float) -> None:
        """Wait so long for the next bytes."""
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)

    def request(self, target: str, method: str = "GET") -> Any:
        """Send a request; return the response once its head has come.

        Raises:
            DaemonError: it is not what was asked for.
        """
        try:
            self._connection.request(method, target, headers={"Accept": "application/json"})
            response = self._connection.getresponse()
        except (OSError, self._http.HTTPException, ValueError) as exc:
            raise self._broken(exc) from exc
        if response.status == 200:
            return response
        sentence = _sentence(self.body(response), response.status)
        if response.status == 403:
            raise NotPermitted(sentence)
        if response.status == 404:
            raise NotFound(sentence)
        if response.status == 400:
            raise BadRequest(sentence)
        raise DaemonAnswerError(sentence)

    def body(self, response: Any) -> bytes:
        """Read all of an answer."""
        pieces = []
        size = 0
        try:
            while piece := response.read(_CHUNK):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise DaemonAnswerError(
                        f"the answer of conmond is over {MAX_ANSWER_BYTES} bytes"
                    )
        except (OSError, self._http.HTTPException, ValueError) as exc:
            raise self._broken(exc) from exc
        return b"".join(pieces)

    def line(self, response: Any) -> bytes:
        """Read one line of an answer; empty at its end."""
        try:
            line: bytes = response.readline(MAX_LINE_BYTES)
        except (OSError, self._http.HTTPException, ValueError) as exc:
            raise self._broken(exc) from exc
        if len(line) >= MAX_LINE_BYTES:
            raise DaemonAnswerError(f"a line of conmond is over {MAX_LINE_BYTES} bytes")
        return line

    def _broken(self, exc: Exception) -> DaemonUnreachable:
        reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        return DaemonUnreachable(f"conmond at {self._path} broke off: {reason}")


def _lines(exchange: _Exchange, response: Any) -> Iterator[bytes]:
    with exchange:
        while True:
            line = exchange.line(response)
            if not line:
                raise DaemonUnreachable("conmond ended the stream")
            if line.strip():
                yield line


def _target(path: str, parameters: dict[str, Any]) -> str:
    given = {
        name: int(value) if isinstance(value, bool) else value
        for name, value in parameters.items()
        if value is not None and value is not False
    }
    return f"{path}?{urlencode(given)}" if given else path


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DaemonAnswerError(f"the answer of conmond is not JSON: {exc}") from exc


def _record(data: Any) -> Record:
    try:
        return Record.from_dict(data)
    except ValueError as exc:
        raise DaemonAnswerError(f"the answer of conmond holds no record: {exc}") from exc


def _sentence(body: bytes, status: int) -> str:
    try:
        data = json.loads(body)
        sentence = data["error"]
    except (ValueError, RecursionError, KeyError, TypeError):
        sentence = None
    return sentence if isinstance(sentence, str) else f"conmond answered with status {status}"
