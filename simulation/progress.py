"""What a person sees while a study runs: a live display on a terminal, plain lines elsewhere, nothing for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBar

from shared.cli import tell


class Progress(Protocol):
    """Hears what happens in a study."""

    def note(self, text: str) -> None:
        """Say something once."""

    def phase(self, seed: int, round_number: int, phase: str) -> None:
        """A step of a round begins."""

    def round_done(self, seed: int, round_number: int) -> None:
        """A round of the federated arm is finished."""

    def arm_done(self, seed: int, arm: str) -> None:
        """A baseline is finished."""


class Silent:
    """Says nothing."""

    def note(self, text: str) -> None:
        """Ignore."""

    def phase(self, seed: int, round_number: int, phase: str) -> None:
        """Ignore."""

    def round_done(self, seed: int, round_number: int) -> None:
        """Ignore."""

    def arm_done(self, seed: int, arm: str) -> None:
        """Ignore."""


class Lines(Silent):
    """One line per event that matters, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """Print it."""
        tell(self._console, text)

    def round_done(self, seed: int, round_number: int) -> None:
        """Print it."""
        self.note(f"Seed {seed}: round {round_number} finished")

    def arm_done(self, seed: int, arm: str) -> None:
        """Print it."""
        self.note(f"Seed {seed}: {arm} finished")


class Live:
    """A bar over all rounds of all seeds, with the present step beside it."""

    def __init__(self, console: Console, bar: RichBar, total: int) -> None:
        self._console = console
        self._bar = bar
        self._task = bar.add_task("Starting", total=total)

    def note(self, text: str) -> None:
        """Print above the bar."""
        tell(self._console, text)

    def phase(self, seed: int, round_number: int, phase: str) -> None:
        """Show the step."""
        self._bar.update(self._task, description=f"Seed {seed}, round {round_number}: {phase}")

    def round_done(self, seed: int, round_number: int) -> None:
        """Move on."""
        self._bar.update(self._task, advance=1, description=f"Seed {seed}, round {round_number}: closed")

    def arm_done(self, seed: int, arm: str) -> None:
        """Show the arm."""
        self._bar.update(self._task, description=f"Seed {seed}: {arm} finished")


@contextmanager
def show_progress(console: Console, total_rounds: int, *, quiet: bool) -> Iterator[Progress]:
    """Choose the display that fits the output."""
    if quiet:
        yield Silent()
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with RichBar(*columns, console=console) as bar:
            yield Live(console, bar, total_rounds)
    else:
        yield Lines(console)
