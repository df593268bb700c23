"""A town that is founded once, and a fresh lying coordinator over fresh departments for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.city import open_city, small_scenario
from tests.protocol.liar import Liar, Town


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model trains faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """Four departments: t = m = 3, c = 1; ten attempts."""
    folder = tmp_path_factory.mktemp("town")
    with open_city(folder, small_scenario(folder, rounds=8, spare_attempts=2)) as city:
        return Town.of(city)


@pytest.fixture
def liar(town: Town, tmp_path: Path) -> Iterator[Liar]:
    liar = Liar(town, tmp_path)
    yield liar
    liar.close()
