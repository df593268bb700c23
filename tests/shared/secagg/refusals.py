"""How a test of the protocol bends bytes, and reads by which name it was refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shared.errors import ProtocolError, RoundAbortedError


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises((ProtocolError, RoundAbortedError)) as caught:
        action()
    code: str = caught.value.code
    return code


def flip(data: bytes, at: int = -1) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
