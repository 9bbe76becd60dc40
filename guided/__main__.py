"""The command line of the method: guide, data, embed, predict."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from guided.cli import add_common, guarded, program
from guided.data_commands import add_data_commands
from guided.guide_commands import add_guide_commands
from guided.predict import add_commands, run_command

COMMAND = "guided"


def parser() -> argparse.ArgumentParser:
    """The arguments of `python -m guided`."""
    top = argparse.ArgumentParser(prog=program("guided", COMMAND), description="Guided representation learning.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    below = [*add_guide_commands(commands), *add_data_commands(commands)]
    add_commands(commands)
    return add_common(top, COMMAND, [*commands.choices.values(), *below])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser().parse_args(arguments)
    if "run" in given:  # guide and data: what they find is the output
        return guarded(lambda: given.run(given, Console(highlight=False)), debug=given.debug)
    return guarded(lambda: run_command(given, Console(stderr=True, highlight=False)), debug=given.debug)


if __name__ == "__main__":
    sys.exit(main())
