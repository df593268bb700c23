"""Whether a file is there after a power cut: a name is durable once its folder was synced after the rename."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType


def names_durably(action: Callable[[], object]) -> bool:
    """Whether something was renamed by an action, and synced after the last time."""
    calls: list[object] = []

    def note(_frame: FrameType, event: str, called: object) -> None:
        if event == "c_call" and called in (os.replace, os.fsync):
            calls.append(called)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return os.replace in calls and calls[-1] is os.fsync
