"""The command line of the method: embed, predict."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from guided.cli import add_common, guarded, program
from guided.predict import add_commands, run_command

COMMAND = "guided"


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m guided`."""
    top = argparse.ArgumentParser(prog=program("guided", COMMAND), description="Guided representation learning.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_commands(commands)
    return add_common(top, COMMAND, commands.choices.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser().parse_args(arguments)
    return guarded(lambda: run_command(given, Console(stderr=True, highlight=False)), debug=given.debug)


if __name__ == "__main__":
    sys.exit(main())
