"""From a request to its answer: what may be asked, and how it is put. No sockets in here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from typing import Any, Final, Protocol

from monitor.api.access import Asker
from monitor.api.answer import Answer, Feed, Later, Reply, Stream, error, json_answer
from monitor.api.metrics import CONTENT_TYPE
from monitor.api.parameters import (
    Filters,
    ParameterError,
    cursor,
    duration_ns,
    flag,
    limit,
    moment_ns,
    parse_filters,
    parse_query,
)
from monitor.errors import MonitorError
from monitor.stats import StatsQuery

__all__ = ["Routes", "Source"]

_RECORDS_DEFAULT: Final = 100
_RECORDS_MOST: Final = 1000
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-z]{1,24}(?:\.[0-9a-f]{1,16})?", re.ASCII)
_COOKIE: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_PID: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_PID_MOST: Final = 0x7FFF_FFFF
_PERCENT: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?", re.ASCII)
_DEEP_MOST_S: Final = 3600
_DEEP_PERCENT: Final = 25
_BY: Final = ("process", "comm", "unit", "container", "uid", "host")
_SORT: Final = (
    "opened", "failed", "open", "bytes", "dns_us", "sockconn_us", "tls_us", "txn_resp_us",
    "comm", "pid",
)  # fmt: skip


class Source(Protocol):
    """What the daemon can be asked. Every method may be called from the server's threads."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""

    def stale(self) -> bool:
        """Whether :meth:`freshen` is to be called before open connections are asked for."""

    def freshen(self) -> None:
        """Bring what is known of open connections up to date. Takes seconds at worst."""

    def processes(self, query: StatsQuery) -> dict[str, Any]:
        """Statistics, as JSON types."""

    def connections(
        self, filters: Filters, most: int | None, *, newest_first: bool
    ) -> Iterator[bytes]:
        """Open connections, as the answer's JSON in pieces."""

    def records(
        self,
        filters: Filters,
        *,
        since_ns: int | None,
        until_ns: int | None,
        most: int,
        before: str | None,
        oldest_first: bool,
    ) -> Iterator[bytes]:
        """Ended connections, as the answer's JSON in pieces.

        Raises:
            MonitorError: the history cannot be read.
        """

    def record(self, identifier: str, uid_only: int | None, *, history: bool) -> bytes | None:
        """One record's JSON.

        Args:
            history: look on the disk, which may take long; else in memory.
        """

    def take(self, cookie: int, uid_only: int | None, *, history: bool) -> bytes | None:
        """The record of a socket, as JSON; once taken it may be forgotten.

        Args:
            history: as of :meth:`record`.
        """

    def doctor(self, *, sees_all: bool) -> dict[str, Any]:
        """How the daemon does, as JSON types."""

    def metrics(self) -> bytes:
        """Prometheus text."""

    def deep(self, pid: int, asker: Asker, seconds: float, most_percent: float) -> Feed:
        """Read what a process's TLS library reads and writes, for so long.

        Args:
            most_percent: of a CPU, that it may cost the process.
        Raises:
            DeepForbidden, DeepGone, DeepBusy, or another MonitorError; one sentence.
        """


class Routes:
    """Answers requests from a source.

    Args:
        source: the daemon.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._by_path: dict[str, Callable[[dict[str, str], Asker], Reply]] = {
            "/v1/processes": self._processes,
            "/v1/connections": self._connections,
            "/v1/records": self._records,
            "/v1/stream": self._stream,
            "/v1/doctor": self._doctor,
            "/v1/openapi.json": self._openapi,
            "/metrics": self._metrics,
        }

    def reply(self, method: str, target: str, asker: Asker) -> Reply:
        """Find the answer to a request.

        Args:
            method: GET, or HEAD, whose answer's body is left out by who sends it; or POST where
                something begins.
            target: path and query, as they came.
            asker: who asks.
        """
        if target.startswith("http://"):
            target = "/" + target[7:].partition("/")[2]
        path, _, query = target.partition("?")
        if asker.metrics_only and path != "/metrics":
            return error(404, "this port has /metrics alone")
        deep = path.startswith("/v1/deep/")
        allowed = "POST" if deep else "GET, HEAD"
        if method not in allowed.split(", "):
            return error(405, f"this can be asked with {allowed} alone", ("Allow", allowed))
        try:
            if deep:
                return self._deep(path.removeprefix("/v1/deep/"), parse_query(query), asker)
            found = self._by_path.get(path)
            if found is not None:
                return found(parse_query(query), asker)
            kind, _, name = path.removeprefix("/v1/").partition("/")
            if path.startswith("/v1/records/") and _ID.fullmatch(name):
                return self._record(name, asker)
            if path.startswith("/v1/take/") and _COOKIE.fullmatch(name):
                return self._take(int(name), asker)
        except ParameterError as exc:
            return error(400, str(exc))
        except MonitorError as exc:
            return error(503, str(exc))
        if kind in ("records", "take"):
            what = "an id" if kind == "records" else "a socket's cookie"
            return error(404, f"what follows /v1/{kind}/ is not {what}")
        known = ", ".join(
            (*self._by_path, "/v1/records/ID", "/v1/take/COOKIE", "/v1/deep/PID (POST)")
        )
        return error(404, f"there is no such path; these are: {known}")

    def _filters(self, given: dict[str, str], asker: Asker, *others: str) -> Filters:
        return parse_filters(given, others)._replace(uid_only=asker.uid_only)

    def _processes(self, given: dict[str, str], asker: Asker) -> Reply:
        for name in ("failed", "unused", "slow"):
            if name in given:
                raise ParameterError(f"{name} chooses records; /v1/processes counts them all")
        filters = self._filters(given, asker, "by", "since", "sort", "limit")
        now_ns = self._source.now_ns()
        since = moment_ns("since", given["since"], now_ns) if "since" in given else None
        query = StatsQuery(
            by=_choice(given, "by", _BY),
            since_ns=since,
            pid=filters.pid,
            comm=filters.comm,
            exe=filters.exe,
            unit=filters.unit,
            container=filters.container,
            uid=filters.uid,
            host=filters.host,
            uid_only=filters.uid_only,
            sort=_choice(given, "sort", _SORT),
            limit=limit(given, None, 10**6),
        )
        return self._fresh(lambda: json_answer(self._source.processes(query)))

    def _connections(self, given: dict[str, str], asker: Asker) -> Reply:
        filters = self._filters(given, asker, "limit", "order")
        most = limit(given, None, 10**6)
        newest = _choice(given, "order", ("oldest", "newest")) == "newest"
        return self._fresh(
            lambda: Answer(200, self._source.connections(filters, most, newest_first=newest))
        )

    # Only where it takes long does it queue behind others that do.
    def _fresh(self, find: Callable[[], Answer]) -> Reply:
        if not self._source.stale():
            return find()

        def wait_and_find() -> Answer:
            try:
                self._source.freshen()
                return find()
            except MonitorError as exc:
                return error(503, str(exc))

        return Later(wait_and_find)

    def _records(self, given: dict[str, str], asker: Asker) -> Reply:
        filters = self._filters(given, asker, "since", "until", "limit", "before", "order")
        now_ns = self._source.now_ns()
        since, until = (
            moment_ns(name, given[name], now_ns) if name in given else None
            for name in ("since", "until")
        )
        most = limit(given, _RECORDS_DEFAULT, _RECORDS_MOST) or _RECORDS_MOST
        before = cursor(given, "before")
        oldest_first = _choice(given, "order", ("newest", "oldest")) == "oldest"

        def find() -> Answer:
            try:
                body = self._source.records(
                    filters,
                    since_ns=since,
                    until_ns=until,
                    most=most,
                    before=before,
                    oldest_first=oldest_first,
                )
            except ParameterError as exc:
                return error(400, str(exc))
            except MonitorError as exc:
                return error(503, str(exc))
            return Answer(200, body)

        return Later(find, slow=True)

    def _stream(self, given: dict[str, str], asker: Asker) -> Reply:
        return Stream(self._filters(given, asker, "live"), flag(given, "live"))

    def _record(self, identifier: str, asker: Asker) -> Reply:
        # that of another user is not told from one that never was
        return _one_record(
            lambda history: self._source.record(identifier, asker.uid_only, history=history),
            "no record has this id, or none you may see",
        )

    def _take(self, cookie: int, asker: Asker) -> Reply:
        return _one_record(
            lambda history: self._source.take(cookie, asker.uid_only, history=history),
            "no socket of yours has this cookie",
        )

    def _deep(self, name: str, given: dict[str, str], asker: Asker) -> Reply:
        if not _PID.fullmatch(name) or not 0 < int(name) <= _PID_MOST:
            return error(404, "what follows /v1/deep/ is not the id of a process")
        for parameter in given:
            if parameter not in ("for", "most"):
                raise ParameterError("the parameters here are: for, most")
        seconds = duration_ns("for", given.get("for", "60s")) / 1e9
        if not 0 < seconds <= _DEEP_MOST_S:
            raise ParameterError(f"for must be more than 0 and at most {_DEEP_MOST_S} s")
        most = given.get("most", str(_DEEP_PERCENT))
        if not _PERCENT.fullmatch(most):
            raise ParameterError("most must be percent of one CPU, such as 25")

        def find() -> Answer | Feed:
            from monitor.deep import DeepBusy, DeepForbidden, DeepGone

            try:
                return self._source.deep(int(name), asker, seconds, float(most))
            except DeepForbidden as exc:
                return error(403, str(exc))
            except DeepGone as exc:
                return error(404, str(exc))
            except DeepBusy as exc:
                return error(409, str(exc))
            except MonitorError as exc:
                return error(422, str(exc))

        return Later(find, slow=True)

    def _doctor(self, given: dict[str, str], asker: Asker) -> Reply:
        _nothing(given)
        return json_answer(self._source.doctor(sees_all=asker.sees_all))

    def _metrics(self, given: dict[str, str], asker: Asker) -> Reply:
        if not asker.sees_all:
            return error(403, "/metrics counts everyone's connections: for root and the group only")
        return Answer(200, self._source.metrics(), CONTENT_TYPE)

    def _openapi(self, given: dict[str, str], asker: Asker) -> Reply:
        _nothing(given)
        return Answer(200, _openapi_text())


@cache
def _openapi_text() -> bytes:
    return resources.files("monitor.api").joinpath("openapi.json").read_bytes()


def _one_record(look: Callable[[bool], bytes | None], missing: str) -> Later:
    """Look in memory, and where it is not there on the disk.

    Args:
        look: returns a record's JSON; its argument is whether to look on the disk.
        missing: the sentence where it is in neither.
    """

    def in_memory() -> Answer | Later:
        body = look(False)
        return _one(body) if body else Later(on_disk, slow=True)

    def on_disk() -> Answer:
        try:
            body = look(True)
        except MonitorError as exc:
            return error(503, str(exc))
        return _one(body) if body else error(404, missing)

    return Later(in_memory)


def _one(body: bytes) -> Answer:
    return Answer(200, b'{"v":1,"record":' + body.rstrip() + b"}\n")


def _nothing(given: dict[str, str]) -> None:
    if given:
        raise ParameterError("this path has no parameters")


def _choice(given: dict[str, str], name: str, choices: tuple[str, ...]) -> str:
    text = given.get(name, choices[0])
    if text not in choices:
        raise ParameterError(f"{name} must be one of: {', '.join(choices)}")
    return text
