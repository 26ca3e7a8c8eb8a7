"""What the commands' argument parsers have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_USAGE", "Parser"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one sentence instead of the whole usage.

    Args:
        prog: the command's name.
        description: shown as it is laid out, above the flags; examples belong here.
        epilog: shown as it is laid out, below them.
        parents: parsers whose flags this one has, too.
        others: of argparse, which makes the parsers of subcommands by itself.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        epilog: str = "",
        parents: Sequence[argparse.ArgumentParser] = (),
        **others: Any,
    ) -> None:
        super().__init__(
            parents=parents,
            **others,
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Print the sentence on stderr and exit with the code for wrong usage."""
        # The message quotes what was typed, line breaks and all.
        sentence = " ".join(message.split())
        self.exit(EXIT_USAGE, f"{self.prog}: {sentence} ({self.prog} --help lists the flags)\n")
