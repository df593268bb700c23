import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shared.errors import ModelError, SetupError
from shared.tasks.features import FeatureCache, Features, feature_key, hashed_words

KEYS = [feature_key(text, weights_sha256="aa", max_tokens=64) for text in ("a", "b", "a")]


def rows_of(positions: Sequence[int]) -> Features:
    return np.array([[position, 1.0] for position in positions], dtype=np.float32)


def no_rows(positions: Sequence[int]) -> Features:
    raise AssertionError("nothing should be computed")


def test_hashed_words_have_unit_length_and_ignore_case_and_order() -> None:
    features = hashed_words(["Water, please!", "please WATER", "", "..."])
    assert features.shape == (4, 256)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features[0], features[1])
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 1, 0, 0], atol=1e-6)


def test_hashed_words_are_pinned() -> None:
    # The base weights' hash names the algorithm, so a change of the algorithm needs a new name.
    row = hashed_words(["water"])[0]
    assert [(int(index), float(row[index])) for index in np.flatnonzero(row)] == [(244, -1.0)]


def test_missing_features_are_computed_once_a_text_and_kept_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "department" / "features.safetensors"
    asked: list[list[int]] = []

    def compute(positions: Sequence[int]) -> Features:
        asked.append(list(positions))
        return rows_of(positions)

    first = FeatureCache(path).features(KEYS, compute)
    np.testing.assert_array_equal(first, [[0, 1], [1, 1], [0, 1]])
    assert asked == [[0, 1]]
    np.testing.assert_array_equal(FeatureCache(path).features(KEYS[::-1], no_rows), first[::-1])


def test_the_file_is_its_owners_only_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    FeatureCache(path).features(KEYS, rows_of)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_keys_depend_on_text_weights_and_token_limit() -> None:
    keys = {
        feature_key(text, weights_sha256=weights, max_tokens=limit)
        for text in ("a", "b")
        for weights in ("aa", "bb")
        for limit in (32, 64)
    }
    assert len(keys) == 8


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "features.safetensors"
    FeatureCache(path).features(KEYS, rows_of)
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)
    with pytest.raises(ModelError) as caught:
        FeatureCache(path).features(KEYS, no_rows)
    assert caught.value.code == "feature-cache-corrupt"


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError) as caught:
        FeatureCache(tmp_path / "file" / "features.safetensors").features(KEYS, rows_of)
    assert caught.value.code == "feature-cache-write"
