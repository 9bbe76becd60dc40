"""What the three command lines share: version, shell completion, --debug, and errors that end in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from guided import __version__

OK, INCOMPLETE, WRONG, INTERRUPTED = 0, 1, 2, 130
MENDABLE: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError, ArithmeticError)


def program(package: str, command: str) -> str:
    """How the command line was called: by its console command, or as a module."""
    return command if Path(sys.argv[0]).name == command else f"python -m {package}"


class _Completion(argparse.Action):
    """Print the completion script of a shell for the console command."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        import shtab

        parser.prog = str(self.const)
        print(shtab.complete(parser, values))
        parser.exit()


def add_common(
    parser: argparse.ArgumentParser, command: str, below: Iterable[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """Give a finished parser the options that all command lines have; `command` is its console command. --debug is
    understood behind the names of the parsers `below` as well."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        const=command,
        choices=("bash", "zsh", "tcsh"),
        help=f"print the shell completion of {command}, e.g. for ~/.bashrc",
    )
    for sub in below:
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def guarded(
    command: Callable[[], int], *, debug: bool, also: tuple[type[Exception], ...] = (), stopped: str = "stopped"
) -> int:
    """Run a command and return its exit code; what a user can mend ends in a message, and in a traceback with `debug`.

    Mistakes of the package itself are not caught. `also` names errors of libraries; `stopped` is what Ctrl-C says.
    """
    errors = Console(stderr=True, highlight=False)
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        errors.print(stopped)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough (`| head`); the interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (*MENDABLE, *also) as error:
        if debug:
            raise
        errors.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        return WRONG
