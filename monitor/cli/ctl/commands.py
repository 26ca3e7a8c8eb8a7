"""conmonctl's commands: each asks the daemon and prints what it says."""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import conmon
from conmon import Record
from conmon.names import COMM_BYTES
from conmon.waterfall import waterfall
from conmon.words import address, clock, columns, count, duration, name, size, user

__all__ = ["COMMANDS"]

_CONNS_SHOWN: Final = 500  # more than anybody reads; a program gets all
_WINDOW_STEP_NS: Final = 301_000_000_000
_HELD: Final = 20_000  # records that end while older ones are printed
_DEEP_ENDS: Final = {
    "time": "the time is up",
    "process": "the process ended",
    "user": "the process is no longer yours to look into",
    "cost": "it cost the process more than was allowed",
    "daemon": "conmond ended",
}
_FILTERS: Final = ("pid", "comm", "exe", "unit", "container", "uid", "host")


def _filters(given: argparse.Namespace, *others: str) -> dict[str, Any]:
    if given.comm is not None and len(os.fsencode(given.comm)) > COMM_BYTES:
        print(
            f"the kernel keeps {COMM_BYTES} bytes of a name: these are of programs whose file is "
            f"called {name(given.comm, 200)}",
            file=sys.stderr,
        )
    return {key: getattr(given, key) for key in (*_FILTERS, *others)}


def _json(data: Any) -> None:
    print(json.dumps(data, separators=(",", ":")))


def ps(daemon: conmon.Daemon, given: argparse.Namespace) -> int:
    """Statistics per process, or by something else."""
    answer = daemon.processes(**_filters(given, "by", "since", "sort", "limit"))
    if given.json:
        _json(answer)
        return 0
    rows = answer["processes"]
    other = answer.get("other")
    by = given.by or "process"
    head = ["PID", "COMM", "USER"] if by == "process" else [by.upper()]
    head += ["OPEN", "OPENED", "FAILED", "SENT", "RECEIVED"]
    head += ["DNS p50", "p95", "CONNECT p50", "p95", "TLS p50", "p95", "RESPONSE p50", "p95"]
    lines = [_ps_row(row, by) for row in rows]
    if other is not None:
        lines.append(["", "other", "", *_ps_row(other, by)[3 if by == "process" else 1 :]]
                     if by == "process" else ["other", *_ps_row(other, by)[1:]])  # fmt: skip
    print(columns(head, lines, left=3 if by == "process" else 1))
    hidden = answer["total"] - len(rows)
    if hidden > 0:
        print(f"{hidden} more rows; --limit 0 shows all", file=sys.stderr)
    if answer.get("untold"):
        print(
            f"{answer['untold']} connections are no longer told apart, and may be some of these",
            file=sys.stderr,
        )
    if answer["lost"]:
        print(f"{answer['lost']} events were lost: these counts are too low", file=sys.stderr)
    if given.since is not None and _begins_earlier(answer["since"], given.since):
        print(f"counted since {answer['since']}: windows go back an hour", file=sys.stderr)
    return 0


# By more than the steps that windows are kept in.
def _begins_earlier(since: str, asked: str) -> bool:
    from monitor.api.parameters import moment_ns

    now_ns = time.time_ns()
    return moment_ns("since", since, now_ns) < moment_ns("since", asked, now_ns) - _WINDOW_STEP_NS


def _ps_row(row: dict[str, Any], by: str) -> list[str]:
    if by == "process":
        first = [count(row["pid"]), name(row["comm"], 16), user(row["uid"])]
    elif by == "uid":
        first = [user(row["uid"])]
    elif by == "container":
        first = [name(row["container"], 12)]
    else:
        first = [name(row[by])]
    first += [count(row["open"]), count(row["opened"]), count(row["failed"])]
    first += [size(row["bytes_sent"]), size(row["bytes_received"])]
    for phase in ("dns_us", "sockconn_us", "tls_us", "txn_resp_us"):
        first += [duration(row[phase]["p50"]), duration(row[phase]["p95"])]
    return first


def conns(daemon: conmon.Daemon, given: argparse.Namespace) -> int:
    """Connections that are open now."""
    if given.limit is None and not given.json:
        given.limit = _CONNS_SHOWN
    answer = daemon.get("/v1/connections", **_filters(given, "limit"))
    rows = answer["connections"]
    if given.json:
        for row in rows:
            _json(row)
        return 0
    head = ["PID", "COMM", "HOST", "PEER", "STATE", "SENT", "RECEIVED", "RTT", "RETRANS",
            "CONNECT", "TLS", "RESPONSE", "ID"]  # fmt: skip
    lines = []
    for row in rows:
        tcp = row["tcp"] or {}
        lines.append([
            count(row["pid"]), name(row["comm"], 16), name(row["host"]),
            address(row["raddr"], row["rport"]), name(row["tcp_state"]),
            size(tcp.get("bytes_sent")), size(tcp.get("bytes_received")),
            duration(tcp.get("rtt_us")), count(tcp.get("retransmits")),
            duration(row["sockconn_us"]), duration(row["tls_us"]), duration(row["txn_resp_us"]),
            name(row["id"]),
        ])  # fmt: skip
    print(columns(head, lines, left=5))
    if answer["total"] > len(rows):
        print(f"{answer['total'] - len(rows)} more; --limit 0 shows all", file=sys.stderr)
    return 0


def tail(daemon: conmon.Daemon, given: argparse.Namespace) -> int:
    """Records as connections end."""
    chosen = _filters(given, "failed", "unused", "slow")
    stream = daemon.stream_lines(**chosen)
    told: set[tuple[str | None, str | None]] = set()
    if given.since:
        stream = _held(stream)
        newest: deque[Record] = deque(maxlen=_HELD)
        for record in daemon.records(since=given.since, order="oldest", **chosen):
            print(record.to_json() if given.json else _record_line(record))
            newest.append(record)
        sys.stdout.flush()
        # one id may have ended twice: a socket that is connected again after a failure
        told = {(record.id, record.start) for record in newest}
        newest.clear()
    for line in stream:
        if told or not given.json:
            record = Record.from_json(line)
            if (record.id, record.start) in told:
                continue
        if given.json:
            sys.stdout.write(line.decode("ascii", "replace"))
        else:
            print(_record_line(record))
        sys.stdout.flush()
    return 0


# Reads on while older records are printed: conmond cuts off a stream that nobody reads.
def _held(stream: Iterator[bytes]) -> Iterator[bytes]:
    lines: queue.Queue[bytes | Exception] = queue.Queue(_HELD)

    def read() -> None:
        try:
            for line in stream:
                lines.put(line)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is said where it is read
            lines.put(exc)

    threading.Thread(target=read, name="stream", daemon=True).start()

    def held() -> Iterator[bytes]:
        while not isinstance(item := lines.get(), Exception):
            yield item
        raise item

    return held()


def _record_line(record: Record) -> str:
    where = f"{name(record.host)} ({address(record.raddr, record.rport)})"
    if record.host is None:
        where = address(record.raddr, record.rport)
    phases = ((record.dns_us, "dns"), (record.sockconn_us, "connect"), (record.tls_us, "tls"),
              (record.txn_resp_us, "response"))  # fmt: skip
    took = " ".join(f"{word} {duration(us)}" for us, word in phases if us is not None)
    outcome = f"FAILED {name(record.error)}" if record.state == "failed" else record.state
    when = clock(record.start)
    return f"{when}  {name(record.comm, 16)}[{count(record.pid)}]  {where}  {took}  {outcome}"


def show(daemon: conmon.Daemon, given: argparse.Namespace) -> int:
    """One record as a waterfall."""
    record = daemon.record(given.id)
    print(record.to_json() if given.json else waterfall(record))
    return 0


def doctor(daemon: conmon.Daemon, given: argparse.Namespace) -> int:
    """What is probed and what is not, and why."""
    answer = daemon.doctor()
    if given.json:
        _json(answer)
    else:
        print("\n".join(_doctor_lines(answer)))
    healthy = not answer["unseen"] and not answer["lost_total"]
    return 0 if healthy else 1


def _doctor_lines(answer: dict[str, Any]) -> Iterator[str]:
    yield f"conmond {name(answer['version'])}, pid {answer['pid']}, since {answer['started']}"
    yield f"kernel {name(answer['kernel'], 80)}, lockdown {answer['lockdown'] or 'none or unknown'}"
    for hook in answer["hooks"]:
        yield f"hook {name(hook['name'])}: {_yes(hook['attached'], hook['why'])}"
    for library in answer["libraries"] or ():
        probed = ", ".join(library["functions"])
        yield f"library {name(library['path'], 120)}: {probed or name(library['why'], 200)}"
    if answer["libraries"] is None:
        yield "libraries: shown to root and the group alone"
    if not answer["privileged"]:
        yield "maps, lost events, history: what they hold is shown to root and the group alone"
    else:
        yield from _kept_lines(answer)
    cost = answer["cost"]
    yield f"cost: {cost['cpu_percent']:.2f} % of a CPU, {size(cost['pss_bytes'])} of memory (PSS)"
    for sentence in answer["unseen"]:
        yield f"NOT SEEN: {name(sentence, 500)}"


def _kept_lines(answer: dict[str, Any]) -> Iterator[str]:
    for fill in answer["maps"]:
        yield f"map {name(fill['name'])}: {fill['entries']} of {fill['max_entries']}"
    lost = {kind: number for kind, number in answer["lost"].items() if number}
    if answer.get("faults"):
        yield f"internal errors: {answer['faults']}; conmond's log says where"
    yield "lost: " + (", ".join(f"{n} {name(kind)}" for kind, n in lost.items()) or "nothing")
    if answer["ended_unseen"]:
        yield f"ended unseen: {answer['ended_unseen']} connections whose sockets were gone"
    history = answer["history"]
    if history is None:
        yield "history: off"
    elif history["error"]:
        yield f"history: off: {name(history['error'], 300)}; {history['dropped']} not written"
    else:
        held = f"{count(history['records'])} records, {size(history['bytes'])}"
        yield f"history: {name(history['path'], 120)}: {held}, {history['dropped']} not written"


def _yes(attached: bool, why: str | None) -> str:
    return "attached" if attached else f"NOT attached: {name(why, 300)}"


def deep(daemon: conmon.Daemon, given: argparse.Namespace) -> int:
    """What a process says inside TLS."""
    for item in daemon.deep(given.pid, for_=given.for_, most=given.most):
        if given.json:
            _json(item)
        else:
            for line in _deep_lines(item):
                print(line)
        sys.stdout.flush()
    return 0


def _deep_lines(item: dict[str, Any]) -> Iterator[str]:
    if item["kind"] == "begin":
        yield (
            f"reading {name(item['comm'], 16)}[{item['pid']}] for {item['seconds']:g} s; "
            f"a call costs it {item['call_ns'] / 1000:.1f} us"
        )
        for library in item["libraries"]:
            probed = ", ".join(library["functions"])
            yield f"library {name(library['path'], 120)}: {probed}"
    elif item["kind"] == "turn":
        prot = item["prot_specific"] or {}
        said = [name(str(prot[key]), 20) for key in ("protocol", "version", "method", "resp")
                if key in prot]  # fmt: skip
        where = address(item["raddr"], item["rport"])
        if item["host"] is not None:
            where = f"{name(item['host'])} ({where})"
        what = " ".join(said) or "unknown protocol"
        yield f"{clock(item['at'])}  {where}  {what}  {duration(item['us'])}"
    elif item["kind"] == "end":
        cost = f"{item['calls']} calls cost {duration(item['cost_us'])}"
        share = f"{item['percent_of_cpu']:.3f} % of a CPU in {item['seconds']:.1f} s"
        if item["process_cpu_us"]:
            own = 100 * item["cost_us"] / item["process_cpu_us"]
            share += f", {own:.2g} % of what the process used"
        yield f"{item['turns']} turns; {cost}: {share}"
        if item["untold"]:
            yield f"{item['untold']} turns were not shown: they came faster than they were read"
        yield f"ended: {_DEEP_ENDS.get(item['why'], name(item['why']))}"


def top(daemon: conmon.Daemon, given: argparse.Namespace) -> int:
    """The whole screen."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("conmonctl: top needs a terminal; conmonctl ps prints once", file=sys.stderr)
        return 2
    daemon.get("/v1/processes", limit=1)  # what is wrong is said before the screen is taken
    from monitor.cli.ctl.top import Top

    Top(daemon, _filters(given)).run()
    return 0


COMMANDS: Final[dict[str, Callable[[conmon.Daemon, argparse.Namespace], int]]] = {
    "ps": ps,
    "conns": conns,
    "tail": tail,
    "show": show,
    "top": top,
    "deep": deep,
    "doctor": doctor,
}
