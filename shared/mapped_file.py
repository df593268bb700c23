"""A file seen as memory: its pages come in as they are looked at, and go when they are let go of."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import IO

import numpy as np

from shared.codec import Encoded


class MappedFile(mmap.mmap):
    """The content of a file, which is only read.

    Attributes:
        descriptor: number of the file; it is open as long as the mapping is there.
    """

    descriptor: int


def map_file(file: IO[bytes]) -> memoryview:
    """Return the content of a file, which outlives the closed file until nobody looks at it any more.

    Raises:
        OSError: when it cannot be mapped.
        ValueError: when it is empty.
    """
    content = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
    content.descriptor = os.dup(file.fileno())
    weakref.finalize(content, os.close, content.descriptor)
    return memoryview(content)


def let_go(part: Encoded) -> None:
    """Take a part of a mapped file out of memory; whoever looks at it again reads it again. Other memory stays.

    Pages that the part fills only partly stay, too: the next part begins there.
    """
    content = memoryview(part).obj
    if not isinstance(content, MappedFile):
        return
    start = _address(part) - _address(content)
    first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + len(part)) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < end:
        content.madvise(mmap.MADV_DONTNEED, first, end - first)


def _address(data: Encoded | MappedFile) -> int:
    """Where something lies in memory."""
    address: int = np.frombuffer(data, dtype=np.uint8).ctypes.data
    return address
