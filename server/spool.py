"""What waits does so on disk, not in memory: in a file without a name, gone with the last one who reads it.

A file is written once: whoever has to keep what lies in it for longer gives it a name (:func:`keep_as`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from shared.channel import CHUNK_BYTES, Payload
from shared.codec import Encoded
from shared.errors import SetupError
from shared.mapped_file import MappedFile, map_file
from shared.private_files import PRIVATE_FILE

_NAMELESS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


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
        # Not `tempfile.TemporaryFile`, which makes a file that can never have a name.
        with os.fdopen(os.open(folder or tempfile.gettempdir(), _NAMELESS, PRIVATE_FILE), "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, length)
            yield file
    except OSError as cause:
        raise SetupError("spool-unusable", "The spool folder is missing, full or not writable.") from cause


def mapped(file: IO[bytes]) -> memoryview:
    """Return the content of a spool, which outlives the closed file until nobody looks at it any more."""
    file.flush()
    return map_file(file)


def keep_as(path: Path, data: Encoded) -> bool:
    """Give the spool of some data a name, instead of writing the data once more.

    Args:
        path: on the file system of the spool; a file that is there is replaced.
        data: what :func:`mapped` returned, or anything else.

    Returns:
        Whether the file is there; not so for data that lie in no spool, or in one on another file system.
    """
    content = memoryview(data).obj
    if not isinstance(content, MappedFile) or len(data) != len(content):
        return False
    path.unlink(missing_ok=True)
    file = content.descriptor
    with contextlib.suppress(OSError):
        # Only with a folder's number does Python ask the system to follow a link; the absolute path makes it unused.
        os.link(f"/proc/self/fd/{file}", path, src_dir_fd=file, follow_symlinks=True)
        return True
    return False


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
    on_disk = Payload(payload.length, lambda offset, size: os.pread(own, size, offset))
    weakref.finalize(on_disk, os.close, own)
    return on_disk
