"""``python -m conmon run``: times every connection of a Python program, and of its children.

Children are Python programs that it starts. They are reached through PYTHONPATH, in which a folder
with a ``sitecustomize`` comes first; the one that would have been imported still is. Each process
appends its records to a file that only this user can read.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import os
import runpy
import sys
import tempfile
import threading
from collections.abc import Sequence

from .record import Record
from .watching import watch

__all__ = ["main"]

FILE_VARIABLE = "CONMON_RUN_RECORDS"
_SITE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "site")
_MOST_SHOWN = 200
DESCRIPTION = """\
Times every connection that a Python program makes, and those of Python programs it starts.

examples:
  python -m conmon run script.py --its-flag
  python -m conmon run --json records.ndjson -m package.module
"""


class _Appender:
    """Writes records to a file that several processes append to."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        line = record.to_json().encode("ascii") + b"\n"
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
        with self._lock, contextlib.suppress(OSError):
            number = os.open(self._path, flags)
            try:
                os.write(number, line)
            finally:
                os.close(number)


def watch_this_process(path: str) -> contextlib.ExitStack:
    """Watch until the process ends; records go to the file.

    That is after Python has waited for its threads, and has called the program's own atexit
    functions: the last that was registered is called first.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(watch(on_record=_Appender(path)))
    atexit.register(stack.close)
    return stack


def main(words: Sequence[str]) -> int:
    """Run a program; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m conmon run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", metavar="FILE", help="append one record a line to FILE")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module")
    mine, rest = _split(list(words))
    given = parser.parse_args(mine)
    if given.module is None and not rest:
        parser.error("name a script, or a module with -m")
    if given.module is None:
        try:
            os.stat(rest[0])
            if not os.access(rest[0], os.R_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as exc:
            print(f"conmon: cannot read {rest[0]}: {exc.strerror}", file=sys.stderr)
            return 2
    path, made = given.json, False
    try:
        if path is None:
            number, path = tempfile.mkstemp(prefix="conmon-", suffix=".ndjson")
            made = True
        else:
            path = os.path.abspath(path)
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.close(number)
    except OSError as exc:
        print(f"conmon: cannot write {path}: {exc.strerror}", file=sys.stderr)
        return 2
    if made:
        atexit.register(_show_and_remove, path, os.getpid())
    watch_this_process(path)
    return _run(given.module, rest, path)


# A child that was forked off ends in here, too.
def _show_and_remove(path: str, pid: int) -> None:
    if os.getpid() != pid:
        return
    _show(path)
    with contextlib.suppress(OSError):
        os.unlink(path)


# What comes after the script or the module is the program's own.
def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = 0
    while at < len(words):
        if words[at] == "-m":
            return words[: at + 2], words[at + 2 :]
        if words[at] == "--json":
            at += 2
        elif words[at].startswith("-"):
            at += 1
        else:
            return words[:at], words[at:]
    return words, []


def _run(module: str | None, rest: list[str], path: str) -> int:
    os.environ[FILE_VARIABLE] = path
    before = os.environ.get("PYTHONPATH")
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (_SITE, before, package) if p)
    code = 0
    try:
        if module is not None:
            sys.argv = [module, *rest]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = rest
            sys.path.insert(0, os.path.dirname(os.path.abspath(rest[0])))
            runpy.run_path(rest[0], run_name="__main__")
    except SystemExit as exc:
        if exc.code is None:
            code = 0
        elif isinstance(exc.code, int):
            code = exc.code
        else:
            print(exc.code, file=sys.stderr)
            code = 1
    sys.stdout.flush()
    return code


def _show(path: str) -> None:
    from .words import address, columns, count, duration, name

    rows = []
    total = 0
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            total += 1
            if total > _MOST_SHOWN:
                continue
            with contextlib.suppress(ValueError):
                record = Record.from_json(line)
                state = record.error or record.state if record.state == "failed" else record.state
                rows.append(
                    [
                        count(record.pid),
                        name(record.host),
                        address(record.raddr, record.rport),
                        name(state),
                        duration(record.dns_us),
                        duration(record.sockconn_us),
                        duration(record.tls_us),
                        duration(record.txn_resp_us),
                    ]
                )
    head = ["PID", "HOST", "PEER", "STATE", "DNS", "CONNECT", "TLS", "RESPONSE"]
    print(columns(head, rows, left=4), file=sys.stderr)
    if total > _MOST_SHOWN:
        print(f"{total - _MOST_SHOWN} more; --json FILE has all", file=sys.stderr)
