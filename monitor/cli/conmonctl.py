"""The conmonctl command: asks a running conmond."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import conmon
import monitor
from conmon import cli
from conmon.cli import add_probe_arguments
from conmon.escape import printable
from monitor.cli.arguments import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser
from monitor.cli.say import SENTENCE_LIMIT

__all__ = ["main", "make_parser"]

EXIT_UNREACHABLE = 3
EXIT_NOT_PERMITTED = 4
SORTS = (
    "opened", "failed", "open", "bytes", "dns_us", "sockconn_us", "tls_us", "txn_resp_us",
    "comm", "pid",
)  # fmt: skip

DESCRIPTION = """\
Asks a running conmond what this host's connections took.

examples:
  conmonctl ps --since 5m             statistics of each process
  conmonctl ps --by host --sort tls_us
  conmonctl conns --comm nginx        connections that are open now
  conmonctl tail --failed             connections as they fail
  conmonctl show 9f0c1d2e-1a2b        one of them, drawn
  conmonctl top                       all of it, live
  conmonctl probe https://example.org one connection, made here: no daemon, no root
  conmonctl doctor                    what conmond sees here, and what not
"""

EPILOG = """\
Without rights you see your own connections; root and members of the group conmond see all.
exit codes: 0 done, 1 failed, 2 usage, 3 daemon unreachable, 4 not permitted, 130 Ctrl-C
"""


def make_parser() -> Parser:
    """Return the parser of conmonctl's arguments."""
    parser = Parser("conmonctl", DESCRIPTION, EPILOG)
    parser.add_argument("--version", action="version", version=f"conmonctl {monitor.__version__}")
    socket = Parser("", "", add_help=False)
    socket.add_argument("--socket", metavar="PATH", help="the daemon's query socket")
    common = Parser("", "", parents=(socket,), add_help=False)
    common.add_argument("--json", action="store_true", help="as JSON, for programs")
    filters = Parser("", "", add_help=False)
    filters.add_argument("--pid", type=_pid, help="of this process")
    filters.add_argument("--comm", metavar="NAME", help="of processes with this name")
    filters.add_argument(
        "--exe",
        metavar="GLOB",
        help="of these executables: a path, or a file's name; * is any text",
    )
    filters.add_argument("--unit", help="of this systemd unit")
    filters.add_argument("--container", metavar="ID", help="of this container (or its beginning)")
    filters.add_argument("--uid", type=_uid, metavar="USER", help="of this user, name or number")
    filters.add_argument("--host", metavar="NAME", help="to this host")
    limit = Parser("", "", add_help=False)
    limit.add_argument("--limit", type=_number, metavar="N", help="at most N rows")
    commands: argparse._SubParsersAction[Parser]
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(word: str, text: str, *parents: Parser) -> Parser:
        added: Parser = commands.add_parser(
            word, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=(common, *parents)
        )
        return added

    ps = command("ps", "statistics per process", filters, limit)
    ps.add_argument(
        "--since", type=_moment, metavar="TIME", help="only what ended since (5m, or a time)"
    )
    ps.add_argument(
        "--by",
        choices=("process", "comm", "unit", "container", "uid", "host"),
        metavar="WHAT",
        help="one row a process, comm, unit, container, uid or host",
    )
    ps.add_argument(
        "--sort", choices=SORTS, metavar="KEY", help=f"{', '.join(SORTS[:-1])} or {SORTS[-1]}"
    )
    conns = command("conns", "connections that are open now", filters, limit)
    conns.add_argument(
        "--userspace",
        action="store_true",
        help="as the system tells them, without a daemon (needs psutil); no latencies",
    )
    probed = commands.add_parser(
        "probe",
        help="one connection to each URL, made and timed here; needs no daemon",
        description="Connects to each URL, asks once, and shows what each phase took.",
    )
    add_probe_arguments(probed)
    tail = command("tail", "records as connections end, until Ctrl-C", filters)
    tail.add_argument("--failed", action="store_true", help="failed ones alone")
    tail.add_argument(
        "--unused",
        action="store_true",
        help="those whose TLS was set up and that asked nothing (tls.result unused)",
    )
    tail.add_argument(
        "--slow",
        type=_duration,
        metavar="TIME",
        help="those with a phase of at least so long, or that waited so long in vain",
    )
    tail.add_argument("--since", type=_moment, metavar="TIME", help="first those that ended since")
    show = command("show", "one record, drawn as a waterfall")
    show.add_argument("id", metavar="ID", help="of the record, as conns and tail --json give it")
    top = commands.add_parser(
        "top",
        help="all of that on the whole screen, once a second; ? lists the keys",
        description="Shows who connects where, on the whole screen, once a second.",
        parents=(socket, filters),
    )
    top.set_defaults(json=False)
    deep = command(
        "deep", "what a process says inside TLS, for a bounded time, and what that costs it"
    )
    deep.add_argument("--pid", type=_pid, required=True, metavar="N", help="the process")
    deep.add_argument(
        "--for",
        dest="for_",
        type=_duration,
        default="60s",
        metavar="TIME",
        help="how long (60s, the default)",
    )
    deep.add_argument(
        "--most",
        metavar="PERCENT",
        help="end when it costs the process more than this of one CPU (25, the default)",
    )
    command("doctor", "what is probed, what is not and why, what was lost")
    for word, text in (("completion", "a completion script"), ("man", "a manual page, as troff")):
        made = commands.add_parser(word, help=text, description=f"Prints {text}.")
        if word == "completion":
            made.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")
        made.add_argument(
            "program",
            choices=("conmonctl", "conmond"),
            nargs="?",
            default="conmonctl",
            metavar="PROGRAM",
            help="conmonctl (the default) or conmond",
        )
    return parser


def _print_made(given: argparse.Namespace) -> int:
    from monitor.cli import conmond
    from monitor.cli.manual import completion, manual

    parser = make_parser() if given.program == "conmonctl" else conmond.make_parser()
    text = manual(parser) if given.command == "man" else completion(parser, given.shell)
    sys.stdout.write(text)
    return 0


def _number(text: str, most: int = 10**9) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number up to {most}")
    return int(text)


def _pid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:11]) <= 0x7FFF_FFFF):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a process")
    return int(text)


def _uid(text: str) -> int:
    if text.isascii() and text.isdigit():
        return _number(text, 0xFFFF_FFFF)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError) as exc:
        raise argparse.ArgumentTypeError(f"there is no user {text!r}") from exc


# Times go to conmond as they are; these only tell at once what it would refuse.
def _duration(text: str) -> str:
    from monitor.api.parameters import ParameterError, duration_ns

    try:
        duration_ns("it", text)
    except ParameterError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from exc
    return text


def _moment(text: str) -> str:
    from monitor.api.parameters import ParameterError, moment_ns

    try:
        moment_ns("it", text, 0)
    except ParameterError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from exc
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: without the program's name; None is those of this process.
    """
    if sys.stdout is None:
        return _failed("there is nowhere to write to: stdout is closed", EXIT_FAILED)
    try:
        try:
            return _run(make_parser().parse_args(arguments))
        finally:
            sys.stdout.flush()  # of --help and --version too, which end in there
    except BrokenPipeError:
        _let_go()
        return 0  # the reader has seen enough
    except OSError as exc:
        _let_go()
        where = "" if exc.filename is None else f"{exc.filename}: "
        return _failed(f"cannot go on: {where}{exc.strerror or exc}", EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


# What Python still holds has nowhere to go, and would be a traceback at the end.
def _let_go() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(given: argparse.Namespace) -> int:
    if given.command in ("completion", "man"):
        return _print_made(given)
    try:
        if given.command == "probe":
            return cli.probe(given)
        if given.command == "conns" and given.userspace:
            return _userspace(given)
        return _ask(given)
    except conmon.DaemonUnreachable as exc:
        return _failed(exc, EXIT_UNREACHABLE)
    except conmon.NotPermitted as exc:
        return _failed(exc, EXIT_NOT_PERMITTED)
    except conmon.BadRequest as exc:
        return _failed(exc, EXIT_USAGE)
    except conmon.ConmonError as exc:
        return _failed(exc, EXIT_FAILED)


def _userspace(given: argparse.Namespace) -> int:
    for what in ("unit", "container", "host"):
        if getattr(given, what) is not None:
            why = f"conns --userspace takes no --{what}: the system does not tell it"
            return _failed(why, EXIT_USAGE)
    return cli.conns(given, pid=given.pid, comm=given.comm, exe=given.exe, uid=given.uid,
                     limit=given.limit)  # fmt: skip


def _ask(given: argparse.Namespace) -> int:
    from monitor.cli.ctl.commands import COMMANDS

    try:
        return COMMANDS[given.command](conmon.Daemon(given.socket), given)
    except (KeyError, TypeError, AttributeError) as exc:
        return _failed(f"the answer of conmond cannot be read: {exc!r}", EXIT_FAILED)


def _failed(why: object, code: int) -> int:
    print(f"conmonctl: {printable(str(why), SENTENCE_LIMIT)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
