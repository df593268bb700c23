"""One at a time submits a run, begins one or says that one is over: the others wait, or do it another time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from server.home import AuthorityHome
from server.run_lock import lock_runs, lock_runs_if_free


@pytest.fixture
def home(tmp_path: Path) -> AuthorityHome:
    """Without a folder of runs yet."""
    return AuthorityHome(tmp_path)


def test_whoever_needs_the_lock_waits_for_it_and_nobody_else_does(home: AuthorityHome) -> None:
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock_runs(home):
            held.set()
            assert over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    with lock_runs_if_free(home) as free:
        assert not free
    threading.Timer(0.2, over.set).start()  # when whoever does not wait has been refused
    with lock_runs(home):
        assert over.is_set()
    holder.join(60)
    with lock_runs_if_free(home) as free:
        assert free


def test_the_folder_of_the_runs_is_made_with_the_lock_and_is_nobody_elses(home: AuthorityHome) -> None:
    for lock in (lock_runs, lock_runs_if_free):
        with lock(home):
            assert home.runs.stat().st_mode & 0o777 == 0o700
        for path in home.runs.iterdir():
            path.unlink()
        home.runs.rmdir()
