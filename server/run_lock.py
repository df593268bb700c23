"""The lock of all runs: none is submitted, begins in a process, or is said to be over, while another one is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.home import AuthorityHome
from shared.errors import SetupError
from shared.private_files import holding_lock, make_private_folder

_LOCK = "lock"


@contextmanager
def lock_runs(home: AuthorityHome) -> Iterator[None]:
    """Hold the lock, after waiting for it.

    Raises:
        SetupError: ``home-not-writable``.
        OSError: when the lock cannot be opened.
    """
    make_private_folder(home.runs)
    with holding_lock(home.runs / _LOCK, wait=True) as held:
        if not held:
            raise SetupError("home-not-writable", f"{home.runs / _LOCK} cannot be locked.")
        yield


@contextmanager
def lock_runs_if_free(home: AuthorityHome) -> Iterator[bool]:
    """Hold the lock if nobody else does; yields whether it is held.

    Raises:
        SetupError: ``home-not-writable``.
        OSError: when the lock cannot be opened.
    """
    make_private_folder(home.runs)
    with holding_lock(home.runs / _LOCK) as held:
        yield held
