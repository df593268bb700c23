import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from shared.errors import CityFedError, ConfigError, ModelError, SetupError
from shared.parameters import Vector
from shared.plan import ModelSpec
from shared.tasks.device import resolve_device
from shared.tasks.encoder import encode_texts, load_encoder
from shared.tasks.encoder_files import pad, tokenize
from shared.tasks.features import HASHED_WORDS_SHA256, FeatureCache
from shared.tasks.text import (
    build,
    export_vector,
    initial_parameters,
    layout_of,
    load_vector,
    per_unit_loss,
    predict_scores,
    prepare,
    trained_layout,
)
from tests.fixtures.tiny_bert import CONFIG, tiny_spec

CPU = torch.device("cpu")
TEXTS = ["we need water", "the bridge is closed", "help", "storm road the storm is please help"]
HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)


def spec_of(weights: Path, trainable: str = "head", last_n: int = 0) -> ModelSpec:
    return tiny_spec((weights / "sha256").read_text(), trainable, last_n)


def with_some_head(vector: Vector) -> Vector:
    """Replace the head of zeros, the last 33 coordinates."""
    head = np.cos(np.arange(33)).astype(np.float32)
    return np.concatenate([vector[:-33], head])


def refused(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(CityFedError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]  # a function
    return caught.value.code


def test_features_equal_mean_pooling_of_the_library_model_text_by_text(weights: Path) -> None:
    spec = spec_of(weights)
    config = BertConfig(**CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    library = BertModel(config, add_pooling_layer=False)
    ours = load_encoder(spec, weights).state_dict()
    library.load_state_dict({("encoder." * name.startswith("layer.")) + name: value for name, value in ours.items()})
    features = encode_texts(spec, TEXTS, weights, CPU)
    for row, ids in zip(features, tokenize(spec, TEXTS, weights), strict=True):
        with torch.no_grad():
            mean = library(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=1e-5)


def test_a_model_on_token_ids_starts_from_the_same_features(weights: Path) -> None:
    full = prepare(spec_of(weights, "full"), TEXTS, None, weights_dir=weights, device=CPU)
    model = build(spec_of(weights, "full"), weights, CPU)
    with torch.no_grad():
        features = model.encoder(*full.inputs)  # type: ignore[operator]  # a module
    np.testing.assert_allclose(features.numpy(), encode_texts(spec_of(weights), TEXTS, weights, CPU), atol=1e-5)


@pytest.mark.parametrize(("trainable", "last_n"), [("head", 0), ("last-n", 1), ("full", 0)])
def test_layout_vector_and_model_agree(weights: Path, trainable: str, last_n: int) -> None:
    spec = spec_of(weights, trainable, last_n)
    layout = layout_of(spec, weights)
    model = build(spec, weights, CPU)
    assert trained_layout(model) == layout
    start = initial_parameters(spec, weights)
    assert start.shape == (layout.size,)
    np.testing.assert_array_equal(start[-33:], np.zeros(33, dtype=np.float32))
    vector = np.arange(layout.size, dtype=np.float32)
    load_vector(model, vector)
    np.testing.assert_array_equal(export_vector(model), vector)


def test_only_the_asked_layers_are_trained_and_never_the_embeddings(weights: Path) -> None:
    names = {
        key: {tensor.name for tensor in layout_of(spec_of(weights, *key), weights).tensors}
        for key in (("head", 0), ("last-n", 1), ("full", 0))
    }
    assert names["head", 0] == {"head.weight", "head.bias"}
    assert all("layer.1." in name or name.startswith("head.") for name in names["last-n", 1])
    assert any("layer.0." in name for name in names["full", 0])
    assert not any("embeddings" in name for name in names["full", 0])


@pytest.mark.parametrize("trainable", ["head", "full"])
def test_loss_is_one_number_a_unit_and_does_not_depend_on_the_batch(weights: Path, trainable: str) -> None:
    spec = spec_of(weights, trainable)
    data = prepare(spec, TEXTS, [1, 0, 1, 0], weights_dir=weights, device=CPU)
    model = build(spec, weights, CPU)
    load_vector(model, with_some_head(initial_parameters(spec, weights)))
    with torch.no_grad():
        together = per_unit_loss(model, data)
        alone = torch.cat([per_unit_loss(model, data.take(np.array([index]))) for index in range(4)])
    assert together.shape == (4,)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_taking_units_cuts_padding_and_keeps_ids_contiguous(weights: Path) -> None:
    data = prepare(spec_of(weights, "full"), TEXTS, None, weights_dir=weights, device=CPU)
    short = data.take(np.array([2, 0]))
    assert [tuple(tensor.shape) for tensor in short.inputs] == [(2, 5), (2, 5)]
    assert all(tensor.is_contiguous() for tensor in short.inputs)
    assert short.lengths.tolist() == [3, 5]


def test_scores_are_in_the_units_order_whatever_the_batching(weights: Path) -> None:
    spec = spec_of(weights, "full")
    data = prepare(spec, TEXTS * 70, None, weights_dir=weights, device=CPU)
    parameters = with_some_head(initial_parameters(spec, weights))
    scores = predict_scores(spec, parameters, data, weights_dir=weights)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, np.tile(scores[:4], 70), atol=1e-6)
    assert len({round(score, 6) for score in scores}) == 4


def test_no_texts_are_no_units() -> None:
    data = prepare(HASHED, [], [], weights_dir=None, device=CPU)
    assert len(data) == 0
    assert predict_scores(HASHED, initial_parameters(HASHED, None), data).shape == (0,)


def test_the_cache_is_used_for_encoder_features(weights: Path, tmp_path: Path) -> None:
    spec = spec_of(weights)
    path = tmp_path / "features.safetensors"
    first = prepare(spec, TEXTS, None, weights_dir=weights, device=CPU, cache=FeatureCache(path))
    again = prepare(spec, TEXTS, None, weights_dir=weights, device=CPU, cache=FeatureCache(path))
    torch.testing.assert_close(first.inputs[0], again.inputs[0], rtol=0, atol=0)
    # Only shapes are read once everything is cached, so other weights would go unnoticed but for the salt.
    other = tiny_spec("0" * 64)
    cache = FeatureCache(path)
    code = refused(prepare, other, TEXTS, None, weights_dir=weights, device=CPU, cache=cache)
    assert code == "base-weights-mismatch"


def test_corrupt_base_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / file).write_bytes((weights / file).read_bytes())
    data = bytearray((weights / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        build(spec_of(weights, "full"), tmp_path, CPU)
    assert caught.value.code == "base-weights-mismatch"


def test_weights_that_do_not_fit_their_config_are_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
    assert refused(build, spec_of(weights, "full"), tmp_path, CPU) == "base-weights-corrupt"


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({**CONFIG, "model_type": "gpt2"})])
def test_a_config_that_is_no_bert_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert refused(layout_of, tiny_spec("0" * 64), tmp_path) == "encoder-config"


def test_a_broken_tokenizer_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert refused(tokenize, spec_of(weights), TEXTS, tmp_path) == "tokenizer-corrupt"


@pytest.mark.parametrize("trainable", ["head", "full"])
def test_base_weights_that_nobody_names_are_told_by_name(trainable: str) -> None:
    spec = tiny_spec("0" * 64, trainable)
    for use in (layout_of, lambda *named: prepare(named[0], TEXTS, None, weights_dir=named[1], device=CPU)):
        assert refused(use, spec, None) == "weights-missing"


def test_a_missing_folder_is_a_setup_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        layout_of(tiny_spec("0" * 64), tmp_path / "nowhere")
    assert caught.value.code == "base-weights-missing"


def test_specs_that_cannot_be_are_refused(weights: Path) -> None:
    other = ModelSpec(architecture="hashed-words", base_weights_sha256="0" * 64)
    assert refused(layout_of, other, None) == "base-weights-mismatch"
    assert refused(layout_of, spec_of(weights, "last-n", 3), weights) == "last-n"
    long = ModelSpec(base_weights_sha256="0" * 64, max_tokens=64)
    with pytest.raises(ConfigError) as caught:
        tokenize(long, TEXTS, weights)
    assert caught.value.code == "max-tokens"


def test_misuse_is_refused() -> None:
    for labels in ([1.0], [0.5, 1, 1, 0]):
        with pytest.raises(ValueError):
            prepare(HASHED, TEXTS, labels, weights_dir=None, device=CPU)
    unlabelled = prepare(HASHED, TEXTS, None, weights_dir=None, device=CPU)
    with pytest.raises(ValueError):
        per_unit_loss(build(HASHED, None, CPU), unlabelled)


def test_no_texts_pad_to_one_column() -> None:
    ids, mask = pad([], 0)
    assert ids.shape == mask.shape == (0, 1)


def test_prepared_units_do_not_print_their_content() -> None:
    assert repr(prepare(HASHED, TEXTS, None, weights_dir=None, device=CPU)) == "Prepared(4 records)"


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu") == CPU
    if torch.cuda.is_available():
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    else:
        assert resolve_device("auto") == CPU
        assert refused(resolve_device, "cuda") == "cuda-missing"
