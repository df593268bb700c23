"""What the three commands share: one handler for errors, one way to print, documented exit codes.

Exit codes are those of :mod:`shared.errors`; 0 is success, 2 also a wrong option, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

import msgspec
import typer
from click import ClickException
from rich.console import Console

from shared.errors import CityFedError, SetupError

INTERRUPTED = 130


def new_app(help_text: str) -> typer.Typer:
    """Return an application that shows help without arguments and never prints local variables."""
    return typer.Typer(help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def run_app(app: typer.Typer, *, on_interrupt: Callable[[], str | None] = lambda: None) -> None:
    """Run a command line: one sentence on standard error for every refusal, never a traceback.

    Args:
        app: the application.
        on_interrupt: returns a sentence to print after Ctrl-C, for example how to go on.
    """
    try:
        status = app(standalone_mode=False)
    except CityFedError as error:
        _say(error.diagnostics())
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read along has seen enough
        sys.exit(CityFedError.exit_code)
    except OSError as error:
        _say(f"{error.filename or 'A file'} cannot be used: {error.strerror}. [storage-failed]")
        sys.exit(SetupError.exit_code)
    if status == INTERRUPTED:  # also what typer makes of Ctrl-C inside a command
        _say(on_interrupt() or "Stopped.")
    sys.exit(status if isinstance(status, int) else 0)


def print_json(value: object) -> None:
    """Print one object as indented JSON on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_lines(values: Iterable[object]) -> None:
    """Print each value as one line of JSON on standard output, as it comes."""
    for value in values:
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def print_lines(lines: list[str]) -> None:
    """Print results for a person."""
    sys.stdout.write("\n".join(lines) + "\n")


def console() -> Console:
    """Return the console for people: standard error, so that standard output holds results only."""
    return Console(stderr=True)


def tell(terminal: Console, line: str) -> None:
    """Print a line for people as it is: no markup, no wrapping in the middle of a path."""
    terminal.print(line, markup=False, highlight=False, soft_wrap=True)


def _say(sentence: str) -> None:
    """Print one sentence for a person."""
    sys.stderr.write(f"{sentence}\n")
