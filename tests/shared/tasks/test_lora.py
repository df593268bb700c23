from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import ConfigError
from shared.plan import ModelSpec
from shared.tasks.lora import LoraLinear, add_lora
from shared.tasks.text import build, initial_parameters, layout_of, load_vector, predict_scores, prepare, trained_layout
from tests.fixtures.tiny_bert import tiny_spec

CPU = torch.device("cpu")
TEXTS = ["we need water", "the bridge is closed", "help"]


@pytest.fixture
def spec(weights: Path) -> ModelSpec:
    return tiny_spec((weights / "sha256").read_text(), "lora", lora_rank=3)


def some_linear() -> nn.Linear:
    layer = nn.Linear(7, 5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter).cos())
    return layer


def test_an_adapter_is_the_frozen_layer_plus_a_product_of_low_rank() -> None:
    base = some_linear()
    layer = LoraLinear(base, 2)
    rows = torch.arange(21.0).view(3, 7).sin()
    assert torch.equal(layer(rows), base(rows))  # zero at the start
    with torch.no_grad():
        layer.up.weight.copy_(torch.arange(10.0).view(5, 2))
    correction = layer.up.weight @ layer.down.weight
    torch.testing.assert_close(layer(rows), base(rows) + rows @ correction.t())
    assert [name for name, value in layer.named_parameters() if value.requires_grad] == ["down.weight", "up.weight"]


@pytest.mark.parametrize(("width", "rank", "first"), [(7, 3, 0), (7, 6, 4), (64, 8, 60), (1, 1, 0)])
def test_adapters_start_from_orthonormal_rows(width: int, rank: int, first: int) -> None:
    down = LoraLinear(nn.Linear(width, 2), rank, first=first).down.weight.double()
    if width > 1:
        torch.testing.assert_close(down @ down.t(), torch.eye(rank, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.isfinite(down).all()


def test_only_adapters_and_head_are_trained(spec: ModelSpec, weights: Path) -> None:
    layout = layout_of(spec, weights)
    names = [tensor.name for tensor in layout.tensors]
    expected = [
        f"encoder.layer.{layer}.attention.self.{projection}.{part}.weight"
        for layer in range(2)
        for projection in ("query", "value")
        for part in ("down", "up")
    ]
    assert names == [*expected, "head.weight", "head.bias"]
    assert trained_layout(build(spec, weights, CPU)) == layout


def test_a_model_with_adapters_starts_where_the_pretrained_one_does(spec: ModelSpec, weights: Path) -> None:
    full = tiny_spec(spec.base_weights_sha256, "full")
    data = prepare(spec, TEXTS, None, weights_dir=weights, device=CPU)
    head = np.cos(np.arange(33)).astype(np.float32)
    scores = []
    for each in (spec, full):
        vector = initial_parameters(each, weights)
        vector[-33:] = head
        scores.append(predict_scores(each, vector, data, weights_dir=weights))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_every_adapter_reaches_the_output(spec: ModelSpec, weights: Path) -> None:
    model = build(spec, weights, CPU)
    data = prepare(spec, TEXTS, None, weights_dir=weights, device=CPU)
    start = initial_parameters(spec, weights)
    start += np.sin(np.arange(start.size)).astype(np.float32)
    load_vector(model, start)
    model(*data.inputs).sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in model.parameters() if value.requires_grad)


def test_starting_an_adapter_draws_nothing() -> None:
    before = torch.get_rng_state()
    base = some_linear()
    between = torch.get_rng_state()
    LoraLinear(base, 2)
    assert torch.equal(torch.get_rng_state(), between)
    torch.set_rng_state(before)


def test_a_rank_that_cannot_be_is_refused(spec: ModelSpec, weights: Path) -> None:
    wide = tiny_spec(spec.base_weights_sha256, "lora", lora_rank=33)
    for call in (layout_of, initial_parameters):
        with pytest.raises(ConfigError) as caught:
            call(wide, weights)
        assert caught.value.code == "lora-rank"
    for trainable, rank in (("lora", 0), ("full", 2)):
        with pytest.raises(ValueError):
            tiny_spec(spec.base_weights_sha256, trainable, lora_rank=rank)


def test_adapters_need_linear_projections() -> None:
    layer = nn.Module()
    layer.attention = nn.Module()
    layer.attention.self = nn.ModuleDict({"query": nn.Identity(), "value": nn.Identity()})
    with pytest.raises(TypeError):
        add_lora([layer], 2)
