"""The conmond command: reads its arguments, runs the daemon, turns what went wrong into words."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import monitor
from conmon.escape import printable
from monitor.cli.arguments import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser
from monitor.cli.say import SENTENCE_LIMIT, say
from monitor.errors import MonitorError
from monitor.options import (
    DEFAULT_CONFIG,
    DEFAULT_SOCKET,
    DEFAULT_STATE_DIR,
    Config,
    HistoryOptions,
    Options,
    ProbeSettings,
    Serve,
    StatsLimits,
)

if TYPE_CHECKING:
    from monitor.cli.output import Form

__all__ = ["main", "make_parser"]

DESCRIPTION = """\
Times every outgoing connection of every local process: DNS, connect, TLS, first response.

examples:
  conmond                        watch connections in a table
  conmond --json | jq .host      one JSON record a line, as connections end
  conmond --json --live          each also once before, when it is set up
  conmond --format lws           the eight keys of libwebsockets' lws_conmon alone
  conmond --for 60 >records      for a minute, then stop
"""

EPILOG = """\
Needs root. Prints "ready" on stderr once every probe is attached; Ctrl-C or SIGTERM ends it.
exit codes: 0 done, 1 failed, 2 usage, 130 Ctrl-C
"""


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of conmond's arguments."""
    parser = Parser("conmond", DESCRIPTION, EPILOG)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        dest="form",
        action="store_const",
        const="json",
        help="one record a line on stdout (default where stdout is no terminal)",
    )
    form.add_argument(
        "--table",
        dest="form",
        action="store_const",
        const="table",
        help="a table to watch (default on a terminal)",
    )
    form.add_argument(
        "--quiet", dest="form", action="store_const", const="quiet", help="print no records"
    )
    form.add_argument(
        "--format",
        dest="form",
        choices=("json", "lws"),
        metavar="json|lws",
        help="json: as --json; lws: the keys of lws_conmon alone, 0 for what is not known",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="print each record also once when its set-up is complete, with state open "
        "(on in the table)",
    )
    parser.add_argument(
        "--inbound",
        action="store_true",
        help="record accepted connections too, with role server",
    )
    parser.add_argument(
        "--for",
        dest="duration_s",
        type=_seconds,
        metavar="SECONDS",
        help="stop by itself after so long, exit code 0",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"read settings from FILE ({DEFAULT_CONFIG} where that is there; '' reads none); "
        "flags go before it",
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help=f"the query socket ({DEFAULT_SOCKET}, or $CONMOND_SOCKET)",
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help=f"where the history is kept ({DEFAULT_STATE_DIR})"
    )
    parser.add_argument("--no-history", action="store_true", help="keep no history")
    parser.add_argument("--version", action="version", version=f"conmond {monitor.__version__}")
    return parser


def _parse(arguments: Sequence[str] | None) -> tuple[Options, Form]:
    parser = make_parser()
    given = parser.parse_args(arguments)
    form: Form = given.form or ("table" if os.isatty(1) else "json")
    if given.live and form == "quiet":
        parser.error("--live prints records and --quiet prints none")
    if given.live and form == "lws":
        parser.error("--live needs the key state, which the lws form has not")
    try:
        return _options(given, live=given.live or form == "table"), form
    except MonitorError as exc:
        parser.exit(EXIT_USAGE, f"conmond: {printable(str(exc), SENTENCE_LIMIT)}\n")


def _config(path: str | None) -> Config:
    if path == "" or (path is None and not os.path.exists(DEFAULT_CONFIG)):
        return Config()
    from monitor.config import read_config  # a parser that only this needs

    return read_config(path or DEFAULT_CONFIG)


def _options(given: argparse.Namespace, *, live: bool) -> Options:
    config = _config(given.config)
    named = given.socket or os.environ.get("CONMOND_SOCKET")
    folder = given.state_dir or config.state_dir
    history = None
    if config.history_enabled and not given.no_history:
        history = HistoryOptions(
            folder=folder, max_age_s=config.history_max_age, max_bytes=config.history_max_size
        )
    return Options(
        live=live,
        inbound=given.inbound or config.record_inbound,
        cmdlines=config.record_cmdline,
        duration_s=given.duration_s,
        serve=Serve(
            path=named or config.socket,
            # whoever names a path, or runs it as a service, needs it to be answered there
            insist=named is not None or bool(given.config),
            group=config.group,
            max_clients=config.api_max_clients,
            rate=config.api_max_requests_per_second,
            metrics_listen=config.metrics_listen,
        ),
        probe=ProbeSettings(libraries=config.probe_libraries, exclude=config.probe_exclude),
        stats=StatsLimits(
            max_processes=config.stats_max_processes, max_hosts=config.stats_max_hosts
        ),
        history=history,
    )


# A closed standard descriptor would be taken by the next open(), and records written into it.
def _fill_standard_descriptors() -> None:
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: without the program's name; None is those of this process.
    """
    _fill_standard_descriptors()
    options, form = _parse(arguments)
    # Only now, so that --help and a wrong flag answer at once.
    from monitor.cli.output import open_sink
    from monitor.faults import place_of

    try:
        from monitor import daemon

        with open_sink(form, 1) as sink:
            return daemon.run(options, sink)
    except MonitorError as exc:
        say(str(exc))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as exc:  # noqa: BLE001 - a defect of ours: one sentence, with its place
        say(f"internal error, please report it: {place_of(exc)}: {type(exc).__name__}: {exc}")
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
