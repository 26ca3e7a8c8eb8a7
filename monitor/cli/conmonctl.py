"""The conmonctl command. It asks a running conmond, whose query socket is yet to come."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import monitor
from monitor.cli.arguments import Parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: without the program's name; None is those of this process.
    """
    parser = Parser(
        "conmonctl",
        "Asks a running conmond. This version has nothing to ask it yet: use conmond.",
    )
    parser.add_argument("--version", action="version", version=f"conmonctl {monitor.__version__}")
    parser.parse_args(arguments)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
