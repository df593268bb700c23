"""The department's command, and a desk with a plan on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.cli import main
from tests.city import City, open_city
from tests.clients.plan_desk import Desk
from tests.command_line import Run, runner
from tests.deployed_city import DeployedCity, deploy_city, hand_out, publish_plan


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(main, capsys, monkeypatch)


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    with open_city(tmp_path) as opened:
        yield opened


@pytest.fixture(scope="session")
def handed_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeployedCity, str]:
    """A city with one published plan, handed out and not approved; nobody changes it."""
    city = deploy_city(tmp_path_factory.mktemp("plans"))
    digest = publish_plan(city)
    hand_out(city, digest)
    return city, digest


@pytest.fixture
def desk(handed_out: tuple[DeployedCity, str], tmp_path: Path) -> Desk:
    return Desk(*handed_out, tmp_path)
