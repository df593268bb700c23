"""The model file: what was written comes back; what was damaged is refused."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from server.release import write_model
from shared.errors import ModelError
from shared.model_file import MODEL_FILE, read_model
from tests.server.small_plan import LAYOUT, plan_with

PLAN = plan_with({"a": 1.0, "b": 0.5, "c": 0.25})
VECTOR = np.array([0.5, -1.5, 2.0, 0.25], dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / MODEL_FILE


def code_of(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(path, LAYOUT)
    return caught.value.code


def test_a_written_model_comes_back_with_its_plan_and_its_digest(path: Path) -> None:
    digest = write_model(path, VECTOR, PLAN)
    assert read_model(path, LAYOUT).tolist() == VECTOR.tolist()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"plan_digest": PLAN.digest().hex(), "layout_digest": LAYOUT.digest().hex()}
    assert [item.name for item in path.parent.iterdir()] == [MODEL_FILE]


CALLS: list[tuple[str, str]] = []
WATCHED: list[Path] = []
"""Folders whose file calls are noted; an audit hook stays for good."""


def note(event: str, arguments: tuple[object, ...]) -> None:
    if event in {"open", "os.rename"} and WATCHED and str(arguments[0]).startswith(str(WATCHED[0])):
        CALLS.append((event, str(arguments[0])))


def test_a_model_has_its_name_for_good_before_its_run_counts_as_completed(path: Path) -> None:
    """The folder is synced after the file was renamed into it: a power cut takes neither away."""
    write_model(path, VECTOR, PLAN)
    sys.addaudithook(note)
    WATCHED.append(path.parent)
    write_model(path, VECTOR, PLAN)
    WATCHED.clear()
    events = [event for event, _ in CALLS]
    assert "os.rename" in events
    assert ("open", str(path.parent)) in CALLS[events.index("os.rename") :]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_model_that_is_not_finite_is_not_written(path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        write_model(path, np.array([1, np.nan, 1, 1], dtype=np.float32), PLAN)
    assert caught.value.code == "vector-not-finite"
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 64, b"\x80\x04K\x01."])
def test_what_is_no_safetensors_file_is_corrupt(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert code_of(path) == "model-corrupt"


@pytest.mark.parametrize("keep", [1, 8, 40, -1])
def test_a_file_cut_short_is_corrupt(path: Path, keep: int) -> None:
    write_model(path, VECTOR, PLAN)
    path.write_bytes(path.read_bytes()[:keep])
    assert code_of(path) == "model-corrupt"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert code_of(tmp_path / "nowhere.safetensors") == "model-missing"


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({"head.weight": np.zeros((1, 3), np.float32)}, "tensor-names"),
        ({"head.weight": np.zeros((3, 1), np.float32), "head.bias": np.zeros(1, np.float32)}, "tensor-shape"),
        ({"head.weight": np.zeros((1, 3), np.float64), "head.bias": np.zeros(1, np.float32)}, "tensor-shape"),
        (
            {"head.weight": np.full((1, 3), np.inf, np.float32), "head.bias": np.zeros(1, np.float32)},
            "vector-not-finite",
        ),
    ],
)
def test_a_model_of_another_layout_is_refused(path: Path, tensors: dict[str, np.ndarray], code: str) -> None:
    safetensors.numpy.save_file(tensors, path)
    assert code_of(path) == code
