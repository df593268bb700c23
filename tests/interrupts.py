"""Ctrl-C at every line of the code under test, one after the other."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Interrupts:
    """Raise KeyboardInterrupt at the n-th line executed in files whose path under the root begins like one of these."""

    def __init__(self, at: int, *begins: str) -> None:
        self.left = at
        self.begins = tuple(str(ROOT / begin) for begin in begins)

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self.begins):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
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


def interrupted(action: Callable[[], object], *begins: str) -> Iterator[int]:
    """Run an action again and again, interrupting it one line later each time, until it runs through."""
    for at in itertools.count(1):
        if ran_through(action, at, *begins):
            return
        yield at
