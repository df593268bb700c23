"""Uploads wait on disk, not in memory: a file without a name, gone with the last one who reads it."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shared.errors import SetupError


@contextmanager
def open_spool(folder: Path | None, length: int) -> Iterator[IO[bytes]]:
    """Open a nameless file with room for one upload; a crash leaves nothing behind.

    Args:
        folder: on which file system; None for the system's temporary folder.
        length: bytes of the upload, which are set aside at once, so that a full disk shows before anything is sent.

    Raises:
        SetupError: ``spool-unusable``.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, length)
            yield file
    except OSError as cause:
        raise SetupError("spool-unusable", "The spool folder is missing, full or not writable.") from cause


def mapped(file: IO[bytes]) -> memoryview:
    """Return the content of a spool, which outlives the closed file until nobody looks at it any more.

    Nothing is read yet: pages come into memory as they are looked at and go with the view.
    """
    file.flush()
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
