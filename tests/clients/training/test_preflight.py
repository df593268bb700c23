from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from clients.training.clipping import Loss
from clients.training.preflight import check_gradients, check_layers, synthetic_units
from shared.errors import ConfigError
from shared.plan import ModelSpec
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import HeadClassifier, Prepared, build, export_vector, per_unit_loss, prepare
from tests.fixtures.tiny_bert import CONFIG

CPU = torch.device("cpu")
HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)


class WithBody(nn.Module):
    """A body and a head, taking features that ask for a gradient."""

    def __init__(self, body: nn.Module, width: int = 256) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(features.detach().requires_grad_()))
        return logits.squeeze(-1)


class LibraryBert(nn.Module):
    """BERT as the library calls it, position ids of batch size 1 included, with trained embeddings."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert.requires_grad_(requires_grad=True)
        self.head = nn.Linear(32, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits: Tensor = self.head(hidden.mean(1))
        return logits.squeeze(-1)


def synthetic(spec: ModelSpec = HASHED, weights: Path | None = None) -> Prepared:
    return synthetic_units(prepare(spec, ["water"], [1], weights_dir=weights, device=CPU))


def check(model: nn.Module, loss: Loss) -> None:
    check_layers(model)
    check_gradients(model, synthetic(), loss)


def refused(model: nn.Module, loss: Loss = per_unit_loss) -> str:
    with pytest.raises(ConfigError) as caught:
        check(model, loss)
    return caught.value.code


def mean_loss(model: nn.Module, batch: Prepared) -> Tensor:
    return per_unit_loss(model, batch).mean()


def weighted_loss(model: nn.Module, batch: Prepared) -> Tensor:
    """Divide by the batch's share of positives, as class weights computed on the fly do."""
    assert batch.labels is not None
    return per_unit_loss(model, batch) / (1 + batch.labels.mean())


def test_the_models_of_every_spec_pass(weights: Path, full: ModelSpec) -> None:
    for spec in (HASHED, full):
        model = build(spec, weights, CPU)
        before = export_vector(model)
        check_layers(model)
        check_gradients(model, synthetic(spec, weights), per_unit_loss)
        np.testing.assert_array_equal(export_vector(model), before)


def test_a_mean_loss_is_refused() -> None:
    assert refused(HeadClassifier(256), mean_loss) == "loss-not-per-unit"


def test_a_loss_that_couples_units_is_refused() -> None:
    assert refused(HeadClassifier(256), weighted_loss) == "units-coupled"


def test_a_model_that_couples_units_is_refused() -> None:
    class Centred(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features - features.mean(0)

    assert refused(WithBody(Centred())) == "units-coupled"


def test_batch_norm_is_refused_unless_frozen_in_eval_mode() -> None:
    assert refused(WithBody(nn.BatchNorm1d(256))) == "batch-norm"
    assert refused(WithBody(nn.BatchNorm1d(256).eval())) == "batch-norm"
    assert refused(WithBody(nn.BatchNorm1d(256).requires_grad_(requires_grad=False))) == "batch-norm"
    assert refused(WithBody(nn.BatchNorm1d(256, affine=False, track_running_stats=False).eval())) == "batch-norm"
    assert refused(WithBody(nn.InstanceNorm1d(256, track_running_stats=True))) == "batch-norm"
    frozen = WithBody(nn.BatchNorm1d(256).eval().requires_grad_(requires_grad=False))
    check(frozen, per_unit_loss)


def test_an_unknown_trainable_layer_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"body is a Bilinear") as caught:
        check_layers(WithBody(nn.Bilinear(4, 4, 4)))
    assert caught.value.code == "unknown-layer"
    check_layers(WithBody(nn.Bilinear(4, 4, 4).requires_grad_(requires_grad=False)))


def test_nothing_to_train_and_layers_in_eval_mode_are_refused() -> None:
    assert refused(HeadClassifier(256).requires_grad_(requires_grad=False)) == "nothing-trainable"
    assert refused(HeadClassifier(256).eval()) == "layer-in-eval-mode"


def test_a_parameter_that_is_not_used_is_refused() -> None:
    class Unused(HeadClassifier):
        def __init__(self) -> None:
            super().__init__(256)
            self.spare = nn.Linear(2, 2)

    assert refused(Unused()) == "parameter-unused"


@pytest.mark.filterwarnings("ignore:Full backward hook")  # integers ask for no gradient
def test_position_ids_shared_by_the_batch_are_refused(weights: Path, full: ModelSpec) -> None:
    # The library's BERT makes position ids of shape [1, tokens]: the trap of opacus#841.
    config = BertConfig(**CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = LibraryBert(BertModel(config, add_pooling_layer=False)).train()
    check_layers(model)
    with pytest.raises(ConfigError) as caught:
        check_gradients(model, synthetic(full, weights), per_unit_loss)
    assert caught.value.code in {"units-coupled", "parameter-unused"}


def test_synthetic_units_have_the_shapes_of_the_data_and_nothing_else(weights: Path, full: ModelSpec) -> None:
    for spec in (HASHED, full):
        first = prepare(spec, ["water please"], [1], weights_dir=weights, device=CPU)
        second = prepare(spec, ["road closed", "help"], [0, 1], weights_dir=weights, device=CPU)
        for left, right in zip(synthetic_units(first).inputs, synthetic_units(second).inputs, strict=True):
            assert torch.equal(left, right)
