"""`cityfed-client up`, before any of its processes is started."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from clients.up import SERVICE, run_department
from shared.errors import SetupError
from shared.identity import IdentityKey
from shared.private_files import holding_lock, make_private_folder
from tests.deployed_city import DeployedCity, found, join


def test_a_second_up_leaves_the_secret_that_the_processes_of_the_first_share(tmp_path: Path) -> None:
    """Each of them reads it as it starts, and may be started again at any time: the node asks by the one that it read."""
    city = DeployedCity(tmp_path, found(tmp_path), {"health": IdentityKey.generate()})
    join(city, "health")
    service = city.home("health") / SERVICE
    make_private_folder(service)
    (service / "superexec.secret").write_text("of the first")
    with holding_lock(service / "lock"), pytest.raises(SetupError) as caught:
        run_department(city.config("health"), stopped=threading.Event())
    assert caught.value.code == "already-running"
    assert (service / "superexec.secret").read_text() == "of the first"
