from pathlib import Path

import pytest
import torch

from shared.plan import ModelSpec
from tests.fixtures.tiny_bert import tiny_spec, write_tiny_bert


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep tiny tensors on one thread: many threads wait for one another on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random BERT."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "sha256").write_text(write_tiny_bert(folder))
    return folder


@pytest.fixture(scope="session")
def full(weights: Path) -> ModelSpec:
    """Return a spec that trains all encoder layers of the tiny BERT."""
    return tiny_spec((weights / "sha256").read_text(), "full")
