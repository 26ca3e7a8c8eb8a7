"""The commands that need no daemon, for ``python -m conmon`` and for conmonctl."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from .errors import ConmonError
from .names import fits_exe, plain_address
from .record import Record

__all__ = ["add_probe_arguments", "main", "probe", "userspace_connections"]

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
_MAX_COUNT = 1_000_000

DESCRIPTION = """\
Times connections without a daemon and without rights.

examples:
  python -m conmon probe https://example.org       one connection, drawn
  python -m conmon probe --json --count 5 tls://example.org:853
  python -m conmon run script.py                   every connection of a Python program
  python -m conmon conns                           which process holds which connection
"""
EPILOG = "exit codes: 0 done, 1 failed, 2 usage, 130 Ctrl-C"


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``probe`` takes."""
    parser.add_argument(
        "urls",
        metavar="URL",
        nargs="+",
        help="http, https, ws, wss, tcp://host:port or tls://host:port",
    )
    parser.add_argument("--json", action="store_true", help="one record a line")
    parser.add_argument("--format", choices=("json", "lws"), metavar="json|lws",
                        help="json: as --json; lws: the keys of lws_conmon alone")  # fmt: skip
    parser.add_argument("--count", type=_count, default=1, metavar="N", help="each URL so often")
    parser.add_argument("--timeout", type=_seconds, default=10.0, metavar="SECONDS",
                        help="for all but the lookup (10)")  # fmt: skip
    family = parser.add_mutually_exclusive_group()
    family.add_argument("-4", "--ipv4", dest="family", action="store_const", const=socket.AF_INET,
                        default=0, help="IPv4 alone")  # fmt: skip
    family.add_argument("-6", "--ipv6", dest="family", action="store_const",
                        const=getattr(socket, "AF_INET6", 0), help="IPv6 alone")  # fmt: skip
    parser.add_argument("--connect-to", type=_place, metavar="HOST:PORT",
                        help="connect there instead, and ask for the URL's host")  # fmt: skip
    parser.add_argument("--cacert", metavar="FILE", help="authorities to trust (PEM)")
    parser.add_argument("--insecure", action="store_true", help="accept any certificate")
    parser.add_argument("--http2", action="store_true", help="offer HTTP/2 (needs the library h2)")


def probe(given: argparse.Namespace) -> int:
    """Probe each URL and print what it took; 1 where one of them failed."""
    from .probe import Probe, UrlError, parse_url

    try:
        targets = [parse_url(url) for url in given.urls]
    except UrlError as exc:
        return _usage(str(exc))
    if given.http2:
        try:
            import h2.connection  # noqa: F401 - tried before anything is sent
        except ImportError:
            return _usage("--http2 needs the library h2: pip install h2")
    prober = Probe(
        timeout=given.timeout,
        family=given.family or 0,
        cafile=given.cacert,
        insecure=given.insecure,
        http2=given.http2,
        connect_to=given.connect_to,
    )
    try:
        for target in targets:
            if target.tls:
                prober.context(target)
    except OSError as exc:
        return _usage(f"cannot read the authorities in {given.cacert}: {exc.strerror or exc}")
    failed = False
    for _ in range(given.count):
        for target in targets:
            record = prober.run(target)
            failed = failed or record.state == "failed"
            _print_record(record, "lws" if given.format == "lws" else
                          "json" if given.json or given.format else "text")  # fmt: skip
            sys.stdout.flush()
    return EXIT_FAILED if failed else EXIT_OK


def _print_record(record: Record, form: str) -> None:
    if form == "lws":
        print(json.dumps(record.to_lws(), separators=(",", ":")))
    elif form == "json":
        print(record.to_json())
    else:
        from .waterfall import waterfall

        print(waterfall(record))


def userspace_connections() -> list[dict[str, Any]]:
    """Which process holds which TCP connection, as the system itself tells it.

    Needs psutil; without rights the processes of others are not told.

    Returns:
        records as dictionaries, besides ``tcp_state`` and ``source`` (``"psutil"``). What only a
        daemon can know, all latencies among it, is None.
    Raises:
        ConmonError: psutil is missing, or may not look.
    """
    try:
        import psutil
    except ImportError as exc:
        raise ConmonError("this needs the library psutil: pip install psutil") from exc
    try:
        found = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        found = _own_connections(psutil)
    listening = {conn.laddr.port for conn in found if conn.status == psutil.CONN_LISTEN}
    rows = []
    for conn in found:
        if not conn.raddr or conn.laddr.port in listening:
            continue
        raddr = plain_address(conn.raddr.ip)
        who = _who(psutil, conn.pid)
        record = Record(
            pid=conn.pid,
            comm=who.get("comm"),
            exe=who.get("exe"),
            uid=who.get("uid"),
            laddr=plain_address(conn.laddr.ip),
            lport=conn.laddr.port,
            raddr=raddr,
            rport=conn.raddr.port,
            family="ipv6" if ":" in raddr else "ipv4",
            peer=raddr if conn.status != psutil.CONN_SYN_SENT else None,
        )
        rows.append({**record.to_dict(), "tcp_state": conn.status, "source": "psutil"})
    return rows


def _own_connections(psutil: Any) -> list[Any]:
    # macOS tells nothing of the whole system without rights, but of one's own processes
    found = []
    for process in psutil.process_iter():
        try:
            listed = getattr(process, "net_connections", None) or process.connections
            own = listed(kind="tcp")
        except (psutil.Error, OSError):
            continue
        for conn in own:
            found.append(_WithPid(conn, process.pid))
    return found


class _WithPid:
    def __init__(self, conn: Any, pid: int) -> None:
        self.laddr, self.raddr, self.status, self.pid = conn.laddr, conn.raddr, conn.status, pid


def _who(psutil: Any, pid: int | None) -> dict[str, Any]:
    who: dict[str, Any] = {}
    if pid is None:
        return who
    try:
        process = psutil.Process(pid)
        who["comm"] = process.name()
        if hasattr(process, "uids"):
            who["uid"] = process.uids().real
        who["exe"] = process.exe() or None
    except (psutil.Error, OSError):
        return who
    return who


def conns(
    given: argparse.Namespace,
    *,
    pid: int | None = None,
    comm: str | None = None,
    exe: str | None = None,
    uid: int | None = None,
    limit: int | None = None,
) -> int:
    """Print the connections that are open now.

    Args:
        pid, comm, uid: only those of this process, of processes with this name, of this user.
        exe: of executables that this pattern means.
        limit: at most so many; 0 or None is all.
    """
    wanted = [
        row
        for row in userspace_connections()
        if (pid is None or row["pid"] == pid)
        and (comm is None or _is_named(row["comm"], comm))
        and (exe is None or fits_exe(exe, row["exe"]))
        and (uid is None or row["uid"] == uid)
    ]
    rows = wanted[:limit] if limit else wanted
    if given.json:
        for row in rows:
            print(json.dumps(row, separators=(",", ":")))
        return EXIT_OK
    from .words import address, columns, count, name, user

    lines = [
        [count(row["pid"]), name(row["comm"], 16), user(row["uid"]),
         address(row["laddr"], row["lport"]), address(row["raddr"], row["rport"]),
         name(row["tcp_state"])]
        for row in rows
    ]  # fmt: skip
    print(columns(["PID", "COMM", "USER", "LOCAL", "PEER", "STATE"], lines, left=6))
    if len(wanted) > len(rows):
        print(f"{len(wanted) - len(rows)} more; --limit 0 shows all", file=sys.stderr)
    print("from psutil: no latencies; conmond tells them", file=sys.stderr)
    return EXIT_OK


# The kernel cuts a name after 15 bytes, psutil finds the rest; either may be asked for.
def _is_named(comm: str | None, wanted: str) -> bool:
    return comm is not None and wanted in (comm, comm[:15])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m conmon``; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"]:
        from .run import main as run

        return run(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m conmon",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_probe_arguments(commands.add_parser("probe", help="time one connection to each URL"))
    listing = commands.add_parser("conns", help="which process holds which connection (psutil)")
    listing.add_argument("--json", action="store_true", help="one connection a line")
    commands.add_parser("run", help="time every connection of a Python program")
    try:
        try:
            given = parser.parse_args(words)
            return probe(given) if given.command == "probe" else conns(given)
        finally:
            sys.stdout.flush()  # of --help too, which ends in there
    except ConmonError as exc:
        print(f"conmon: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        _let_go()
        return EXIT_OK  # the reader has seen enough
    except OSError as exc:
        _let_go()
        print(f"conmon: cannot go on: {exc.strerror or exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


# What Python still holds for stdout has nowhere to go, and would be a traceback at the end.
def _let_go() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _usage(sentence: str) -> int:
    from .escape import printable

    print(f"conmon: {printable(sentence, 400)}", file=sys.stderr)
    return EXIT_USAGE


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= _MAX_COUNT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MAX_COUNT}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _place(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)
