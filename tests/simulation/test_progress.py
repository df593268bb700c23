"""What a person sees while a study runs."""

from __future__ import annotations

import io

from rich.console import Console

from simulation.progress import Lines, Live, Progress, Silent, show_progress

LONG = "/a/very/long/path/" * 12 + "[not markup]"


def tell_everything(progress: Progress) -> None:
    progress.note(LONG)
    progress.phase(1, 2, "update")
    progress.round_done(1, 2)
    progress.arm_done(1, "pooled")


def shown(*, terminal: bool, quiet: bool) -> tuple[Progress, str]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, color_system=None)
    with show_progress(console, 4, quiet=quiet) as progress:
        tell_everything(progress)
    return progress, stream.getvalue()


def test_a_pipe_gets_one_line_for_each_event_that_matters() -> None:
    progress, text = shown(terminal=False, quiet=False)
    assert isinstance(progress, Lines)
    assert text.splitlines() == [LONG, "Seed 1: round 2 finished", "Seed 1: pooled finished"]


def test_a_terminal_gets_a_bar_over_all_rounds() -> None:
    progress, text = shown(terminal=True, quiet=False)
    assert isinstance(progress, Live)
    assert "1/4" in text
    assert "Seed 1: pooled finished" in text
    assert "[not markup]" in text


def test_quiet_says_nothing_at_all() -> None:
    for terminal in (False, True):
        progress, text = shown(terminal=terminal, quiet=True)
        assert type(progress) is Silent
        assert text == ""
