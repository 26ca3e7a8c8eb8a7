"""Manual pages and shell completion, made from the same parsers as ``--help``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import monitor

__all__ = ["completion", "manual"]

_SECTIONS = {"conmond": 8, "conmonctl": 1}


def manual(parser: argparse.ArgumentParser) -> str:
    """Return the manual page of a command as troff."""
    return "\n".join(_lines(parser)) + "\n"


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a completion script.

    Args:
        shell: bash or zsh.
    """
    import shtab

    for one in (parser, *(sub for _, _, sub in _commands(parser))):
        for action in one._actions:
            if action.metavar in ("PATH", "FILE"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell=shell)
    return script


def _lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    name = parser.prog
    sentence, _, examples = (parser.description or "").strip().partition("\n")
    yield f'.TH {name.upper()} {_SECTIONS[name]} "" "{name} {monitor.__version__}" ""'
    yield ".SH NAME"
    yield f"{name} \\- {_text(sentence[0].lower() + sentence[1:].rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield f".B {name}"
    yield _text(_usage(parser))
    yield ".SH DESCRIPTION"
    yield _text(sentence)
    yield from _options(parser, ".SH OPTIONS")
    commands = list(_commands(parser))
    if commands:
        yield ".SH COMMANDS"
    for word, text, sub in commands:
        yield f".SS {name} {word} {_text(_usage(sub))}"
        yield _text(f"{text[0].upper()}{text[1:]}.")
        yield from _options(sub, None)
    _, _, shown = examples.partition("examples:\n")
    if shown:
        yield ".SH EXAMPLES"
        yield ".nf"
        yield from (_text(line.removeprefix("  ")) for line in shown.rstrip().split("\n"))
        yield ".fi"
    for line in (parser.epilog or "").strip().split("\n"):
        heading, _, rest = line.partition(": ")
        if heading == "exit codes":
            yield ".SH EXIT STATUS"
            yield _text(rest)
        elif line:
            yield ".SH NOTES"
            yield _text(line)
    yield ".SH SEE ALSO"
    others = [f".BR {other} ({number})" for other, number in _SECTIONS.items() if other != name]
    yield ",\n".join(others)


def _usage(parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().split())
    return usage.removeprefix("usage: ").removeprefix(parser.prog).strip()


def _options(parser: argparse.ArgumentParser, heading: str | None) -> Iterator[str]:
    shown = [
        action
        for action in parser._actions
        if action.help is not argparse.SUPPRESS
        and not isinstance(action, argparse._SubParsersAction)
    ]
    if shown and heading:
        yield heading
    for action in shown:
        yield ".TP"
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        flags = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        yield f".B {_text(flags + (value if action.option_strings else ''))}"
        yield _text((action.help or "").replace("%(prog)s", parser.prog))


def _commands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.dest, choice.help or "", action.choices[choice.dest]


# What troff would take for its own: backslashes, hyphens, and a first dot or quote of a line.
def _text(line: str) -> str:
    escaped = line.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return re.sub(r"^([.'])", r"\\&\1", escaped)
