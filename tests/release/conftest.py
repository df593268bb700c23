"""One city with a released model, and a copy of it for every test that changes something."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.plan_files import load_published
from server.released import release_model
from server.runs import RunFolder
from tests.deployed_city import deploy_with_plan, now
from tests.finished_city import attack_audit, copied, file_run, run_published
from tests.release.released_city import Finished


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What only looks at it shares it."""
    folder = tmp_path_factory.mktemp("city")
    city, digest = deploy_with_plan(folder / "city")
    run = file_run(city, digest, run_published(city, digest))
    plan = load_published(city.authority, digest)[1]
    audit = attack_audit(city, "health", plan, folder / "audits")
    release_model(city.authority, run.path.name[:12], folder / "out", now=now(), audits=[audit])
    return Finished(city, plan, run, folder / "out")


@pytest.fixture
def finished(original: Finished, tmp_path: Path) -> Finished:
    """A copy that a test may change."""
    city = copied(original.city, tmp_path / "city")
    out = tmp_path / "out"
    out.mkdir()
    for path in original.out.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return Finished(city, original.plan, RunFolder(city.authority.runs / original.run.path.name), out)
