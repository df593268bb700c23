"""How a test of the protocol bends bytes."""

from __future__ import annotations


def flip(data: bytes, at: int = -1) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
