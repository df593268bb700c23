from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel

from clients.training.clipping import Loss
from clients.training.engines import CANDIDATES
from clients.training.preflight import check_model, choose_engine, synthetic_units
from shared.errors import ConfigError
from shared.plan import ModelSpec
from shared.tasks.classifiers import HeadClassifier
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, build, export_vector, per_unit_loss, prepare
from tests.fixtures.tiny_bert import CONFIG, tiny_spec

CPU = torch.device("cpu")
HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)


class WithBody(nn.Module):
    """A body and a head."""

    def __init__(self, body: nn.Module, width: int = 256) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(features))
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


def refused(model: nn.Module, loss: Loss = per_unit_loss, engine: str = "auto") -> str:
    with pytest.raises(ConfigError) as caught:
        choose_engine(model, synthetic(), loss, engine)
    return caught.value.code


@pytest.fixture(params=["auto", "bookkeeping", "opacus"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def mean_loss(model: nn.Module, batch: Prepared) -> Tensor:
    return per_unit_loss(model, batch).mean()


def weighted_loss(model: nn.Module, batch: Prepared) -> Tensor:
    """Divide by the batch's share of positives, as class weights computed on the fly do."""
    assert batch.labels is not None
    return per_unit_loss(model, batch) / (1 + batch.labels.mean())


def token_mean_loss(model: nn.Module, batch: Prepared) -> Tensor:
    """Divide by the tokens of the whole batch, as the losses of token models do."""
    return per_unit_loss(model, batch) / batch.inputs[1].sum()


def test_the_models_of_every_spec_pass(weights: Path, full: ModelSpec, engine: str) -> None:
    lora = tiny_spec(full.base_weights_sha256, "lora", lora_rank=4)
    for spec in (HASHED, lora, full):
        model = build(spec, weights, CPU)
        before = export_vector(model)
        chosen = choose_engine(model, synthetic(spec, weights), per_unit_loss, engine)
        assert chosen.name == ("bookkeeping" if engine == "auto" else engine)
        np.testing.assert_array_equal(export_vector(model), before)


def test_a_mean_loss_is_refused(engine: str) -> None:
    assert refused(HeadClassifier(256), mean_loss, engine) == "loss-not-per-unit"


def test_a_loss_that_couples_units_is_refused(weights: Path, full: ModelSpec, engine: str) -> None:
    assert refused(HeadClassifier(256), weighted_loss, engine) == "units-coupled"
    with pytest.raises(ConfigError) as caught:
        choose_engine(build(full, weights, CPU), synthetic(full, weights), token_mean_loss, engine)
    assert caught.value.code == "units-coupled"


def test_a_model_that_couples_units_is_refused(engine: str) -> None:
    class Centred(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features - features.mean(0)

    class Neighbour(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features + 0.1 * features.roll(1, 0)

    assert refused(WithBody(Centred()), engine=engine) == "units-coupled"
    assert refused(WithBody(Neighbour()), engine=engine) == "units-coupled"


def test_batch_norm_is_refused_unless_frozen_in_eval_mode(engine: str) -> None:
    assert refused(WithBody(nn.BatchNorm1d(256))) == "batch-norm"
    assert refused(WithBody(nn.BatchNorm1d(256).eval())) == "batch-norm"
    assert refused(WithBody(nn.BatchNorm1d(256).requires_grad_(requires_grad=False))) == "batch-norm"
    assert refused(WithBody(nn.BatchNorm1d(256, affine=False, track_running_stats=False).eval())) == "batch-norm"
    assert refused(WithBody(nn.InstanceNorm1d(256, track_running_stats=True))) == "batch-norm"
    frozen = WithBody(nn.BatchNorm1d(256).eval().requires_grad_(requires_grad=False))
    assert choose_engine(frozen, synthetic(), per_unit_loss, engine) is CANDIDATES[engine][0]


def test_an_unknown_trainable_layer_is_refused_by_name(engine: str) -> None:
    class Recurrent(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, features: Tensor) -> Tensor:
            output: Tensor = self.layer(features.unsqueeze(1))[0]
            return output.squeeze(1)

    for layer in (nn.LSTM(256, 256), nn.GRU(256, 256)):
        with pytest.raises(ConfigError, match=rf"body.layer is a {type(layer).__name__}") as caught:
            choose_engine(WithBody(Recurrent(layer)), synthetic(), per_unit_loss, engine)
        assert caught.value.code == "unknown-layer"


class Bare(nn.Module):
    """A trained number that belongs to no layer of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale


def test_a_parameter_outside_of_layers_is_refused_by_name(engine: str) -> None:
    with pytest.raises(ConfigError, match="body is a Bare") as caught:
        choose_engine(WithBody(Bare()), synthetic(), per_unit_loss, engine)
    assert caught.value.code == "unknown-layer"


class Convolution(nn.Module):
    """A layer that only Opacus knows."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.filter(features.unsqueeze(1))
        return output.squeeze(1)


def test_auto_takes_opacus_for_layers_that_only_opacus_knows() -> None:
    assert choose_engine(WithBody(Convolution()), synthetic(), per_unit_loss).name == "opacus"
    assert refused(WithBody(Convolution()), engine="bookkeeping") == "unknown-layer"


class Channels(nn.Module):
    """Folds four channels of a unit into the batch, as forecasters of several series do."""

    def __init__(self, *, unit_first: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.unit_first = unit_first

    def forward(self, features: Tensor) -> Tensor:
        rows = features.view(-1, 4, 64)
        rows = rows if self.unit_first else rows.transpose(0, 1)
        folded: Tensor = self.norm(rows.reshape(-1, 64)).view_as(rows)
        return (folded if self.unit_first else folded.transpose(0, 1)).reshape(-1, 256)


def test_channels_folded_into_the_batch_are_a_matter_of_the_bookkeeping_engine() -> None:
    model = WithBody(Channels(unit_first=True))
    assert choose_engine(model, synthetic(), per_unit_loss).name == "bookkeeping"
    assert refused(model, engine="opacus") == "parameter-unused"
    # The other way round the rows of a unit are not one block, and neither engine can tell whose they are.
    for engine in ("auto", "bookkeeping", "opacus"):
        expected = "units-coupled" if engine == "bookkeeping" else "parameter-unused"
        assert refused(WithBody(Channels(unit_first=False)), engine=engine) == expected


def test_weights_that_are_also_used_past_their_layer_are_refused(engine: str) -> None:
    class Past(HeadClassifier):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features) + (features @ self.head.weight.t()).squeeze(-1)

    assert refused(Past(256), engine=engine) in {"units-coupled", "parameter-unused"}


class Recomputed(nn.Module):
    """Drops a layer's activations and computes them again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256)
        self.reentrant = reentrant

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = checkpoint(self.layer, features.requires_grad_(), use_reentrant=self.reentrant)
        return torch.tanh(output)


def test_recomputed_activations_are_refused_where_the_gradients_are_not_right(engine: str) -> None:
    assert (
        choose_engine(WithBody(Recomputed(reentrant=False)), synthetic(), per_unit_loss, engine) in CANDIDATES[engine]
    )
    assert refused(WithBody(Recomputed(reentrant=True)), engine=engine) in {"units-coupled", "parameter-unused"}


def test_nothing_to_train_and_layers_in_eval_mode_are_refused(engine: str) -> None:
    assert refused(HeadClassifier(256).requires_grad_(requires_grad=False), engine=engine) == "nothing-trainable"
    assert refused(HeadClassifier(256).eval(), engine=engine) == "layer-in-eval-mode"


def test_more_parameters_than_the_margin_covers_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2**16, 2**10)
    with pytest.raises(ConfigError) as caught:
        check_model(model)
    assert caught.value.code == "too-many-parameters"


def test_a_parameter_that_is_not_used_is_refused(engine: str) -> None:
    class Unused(HeadClassifier):
        def __init__(self) -> None:
            super().__init__(256)
            self.spare = nn.Linear(2, 2)

    assert refused(Unused(), engine=engine) == "parameter-unused"


@pytest.mark.filterwarnings("ignore:Full backward hook")  # integers ask for no gradient
def test_position_ids_shared_by_the_batch_are_refused(weights: Path, full: ModelSpec, engine: str) -> None:
    # The library's BERT makes position ids of shape [1, tokens]: the trap of opacus#841.
    config = BertConfig(**CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = LibraryBert(BertModel(config, add_pooling_layer=False)).train()
    with pytest.raises(ConfigError) as caught:
        choose_engine(model, synthetic(full, weights), per_unit_loss, engine)
    assert caught.value.code in {"units-coupled", "parameter-unused"}


class UsedPast(nn.Module):
    """A trained layer whose weight is used a second time, past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = torch.tanh(self.layer(features)) + features @ self.layer.weight
        return output


def test_a_head_at_zero_hides_no_wrong_gradient_behind_it(engine: str) -> None:
    # At zero no gradient reaches the body, and whatever an engine makes of it would agree with single units.
    model = WithBody(UsedPast())
    nn.init.zeros_(model.head.weight)
    assert refused(model, engine=engine) in {"units-coupled", "parameter-unused"}
    assert not model.head.weight.any()


@pytest.mark.filterwarnings("ignore:Full backward hook")  # integers ask for no gradient
def test_the_encoders_own_position_ids_are_repeated_for_every_unit(weights: Path, full: ModelSpec, engine: str) -> None:
    # With trained embeddings both engines need ids of shape [batch, tokens] (opacus#841); the library's are [1, tokens].
    model = build(full, weights, CPU)
    for embedding in model.get_submodule("encoder.embeddings").modules():
        if isinstance(embedding, nn.Embedding):
            embedding.padding_idx = None  # Opacus' rule for embeddings knows no padding
            embedding.requires_grad_(requires_grad=True)
    assert choose_engine(model, synthetic(full, weights), per_unit_loss, engine) is CANDIDATES[engine][0]


def test_synthetic_units_have_the_shapes_of_the_data_and_nothing_else(weights: Path, full: ModelSpec) -> None:
    for spec in (HASHED, full):
        first = prepare(spec, ["water please"], [1], weights_dir=weights, device=CPU)
        second = prepare(spec, ["road closed", "help"], [0, 1], weights_dir=weights, device=CPU)
        for left, right in zip(synthetic_units(first).inputs, synthetic_units(second).inputs, strict=True):
            assert torch.equal(left, right)
