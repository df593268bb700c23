"""What waits does so on disk, not in memory: in a file without a name, gone with the last one who reads it."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shared.channel import CHUNK_BYTES, Payload
from shared.codec import Encoded
from shared.errors import SetupError


@contextmanager
def open_spool(folder: Path | None, length: int) -> Iterator[IO[bytes]]:
    """Open a nameless file with room for one transfer; a crash leaves nothing behind.

    Args:
        folder: on which file system; None for the system's temporary folder.
        length: bytes of the transfer, which are set aside at once, so that a full disk shows before anything is sent.

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


def spooled(folder: Path | None, data: Encoded) -> Payload:
    """Copy a long request to a file, from which each department's stream reads it at its own pace.

    Raises:
        SetupError: ``spool-unusable``.
    """
    payload = Payload.of(data)
    if payload.length <= CHUNK_BYTES:
        return payload
    with open_spool(folder, payload.length) as file:
        file.write(data)
        file.flush()
        own = os.dup(file.fileno())
    # Reads without mapping: pages of the file do not become memory of this process.
    on_disk = Payload(payload.length, payload.digest, lambda offset, size: os.pread(own, size, offset))
    weakref.finalize(on_disk, os.close, own)
    return on_disk
