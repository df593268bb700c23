"""Files that only this account can read: folders with mode 0700, files with mode 0600, written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.errors import SetupError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def make_private_folder(path: Path) -> None:
    """Make a folder, and those of its parents that are missing, so that only this account can enter them.

    Raises:
        SetupError: ``home-not-writable``.
    """
    try:
        missing = [path, *itertools.takewhile(lambda folder: not folder.exists(), path.parents)]
        for folder in reversed(missing):  # with `parents` set, mkdir would give them no mode
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        path.chmod(PRIVATE_FOLDER)
    except OSError as cause:
        raise SetupError("home-not-writable", f"{path} cannot be made a private folder: {cause.strerror}.") from cause


def write_private_file(path: Path, content: bytes) -> None:
    """Write a new file that only this account can read (mode 0600), durably; where there is no room, there is none.

    Raises:
        OSError: if the file exists or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    sync_file(path.parent)  # the name too


def replace_private_file(path: Path, content: bytes) -> None:
    """Put a file (mode 0600) in place of whatever is there: afterwards the old or the new one, entirely and durably.

    Raises:
        OSError: if the folder cannot be written.
    """
    with replacing_private_file(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def replacing_private_file(path: Path) -> Iterator[Path]:
    """Give a file to write into, which takes the place of ``path`` as with :func:`replace_private_file`.

    Raises:
        OSError: if the folder cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    except OSError as cause:  # people know the file that they named
        raise OSError(cause.errno, cause.strerror, str(path)) from cause
    os.close(descriptor)
    try:
        yield Path(name)
        sync_file(Path(name))  # opened anew: the writer may have put another file there
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    sync_file(path.parent)  # the rename too


def lock_file(path: Path, *, wait: bool = False) -> int | None:
    """Take the exclusive lock of a file, which is made with mode 0600 if it is not there; it ends with this process.

    Args:
        path: the file.
        wait: for whoever holds it.

    Returns:
        The descriptor that holds it, to be closed; None while another process holds it.

    Raises:
        OSError: if the file cannot be made or opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def holding_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of :func:`lock_file` for a while; yields whether it is held.

    Raises:
        OSError: as for :func:`lock_file`.
    """
    descriptor = lock_file(path, wait=wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file durable, or the names in a folder.

    Raises:
        OSError: if it cannot be opened, or its content not be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
