"""The weights that every text task of these tests begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.tiny_bert import write_tiny_bert


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "sha256").write_text(write_tiny_bert(folder))
    return folder
