"""`cityfed-server up`, before any of its processes is started."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from server.up import run_authority
from shared.errors import SetupError
from shared.private_files import holding_lock, make_private_folder
from tests.deployed_city import found


def test_a_second_up_leaves_what_the_processes_of_the_first_use(tmp_path: Path) -> None:
    """Though it were killed before it has put the same in place: no run would begin any more."""
    home = found(tmp_path)
    for folder in (home.service, home.flower / "bin"):
        make_private_folder(folder)
    used = [home.flower / "bin" / "of-the-first", home.flower / "port", home.flower / "loopback.pem"]
    for path in used:
        path.write_text("of the first")
    with holding_lock(home.service / "lock"), pytest.raises(SetupError) as caught:
        run_authority(home, stopped=threading.Event())
    assert caught.value.code == "already-running"
    assert {path.read_text() for path in used if path.exists()} == {"of the first"}
    assert all(path.exists() for path in used)
