"""Whether a file is there, or gone, after a power cut: its folder was synced after the name was given or taken away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType


def names_durably(action: Callable[[], object], change: Callable[..., object] = os.replace) -> bool:
    """Whether an action changed names, and synced something after the last time.

    Args:
        action: what is done.
        change: the call of the system that is meant, such as :func:`os.unlink`.
    """
    calls: list[object] = []

    def note(_frame: FrameType, event: str, called: object) -> None:
        if event == "c_call" and called in (change, os.fsync):
            calls.append(called)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return change in calls and calls[-1] is os.fsync
