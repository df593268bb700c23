"""The lock of all runs: none is submitted, begins in a process, or is said to be over, while another one is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from server.home import AuthorityHome
from shared.private_files import PRIVATE_FILE, lock_file, make_private_folder

_LOCK = "lock"


@contextmanager
def lock_runs(home: AuthorityHome) -> Iterator[None]:
    """Hold the lock, after waiting for it.

    Raises:
        SetupError: ``home-not-writable``.
        OSError: when the lock cannot be opened.
    """
    make_private_folder(home.runs)
    lock = os.open(home.runs / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def lock_runs_if_free(home: AuthorityHome) -> Iterator[bool]:
    """Hold the lock if nobody else does; yields whether it is held.

    Raises:
        SetupError: ``home-not-writable``.
        OSError: when the lock cannot be opened.
    """
    make_private_folder(home.runs)
    lock = lock_file(home.runs / _LOCK)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)
