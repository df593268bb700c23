"""Ctrl-C, or what another process does, at every line of the code under test, one after the other."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parents[1]


def _interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


class Interrupts:
    """Act before the n-th line executed in files whose path under the root begins like one of these."""

    def __init__(self, at: int, *begins: str, act: Callable[[], object] = _interrupt) -> None:
        self.left = at
        self.act = act
        self.begins = tuple(str(ROOT / begin) for begin in begins)

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self.begins):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.act()
        return self


def ran_through(action: Callable[[], object], at: int, *begins: str) -> bool:
    """Run an action with an interrupt at one line; returns whether it ended before that line."""
    before = sys.gettrace()
    sys.settrace(Interrupts(at, *begins))
    try:
        action()
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(before)
    return True


def overtaken(action: Callable[[], Result], at: int, *begins: str, by: Callable[[], object]) -> tuple[Result, bool]:
    """Run an action to its end while something else happens at one line; returns also whether it came to that line."""
    before = sys.gettrace()
    trace = Interrupts(at, *begins, act=by)
    sys.settrace(trace)
    try:
        result = action()
    finally:
        sys.settrace(before)
    return result, trace.left <= 0


def interrupted(action: Callable[[], object], *begins: str) -> Iterator[int]:
    """Run an action again and again, interrupting it one line later each time, until it runs through."""
    for at in itertools.count(1):
        if ran_through(action, at, *begins):
            return
        yield at
