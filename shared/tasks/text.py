"""Text classification: from a plan's model spec to batches, a model, a per-unit loss and scores.

The vector of a model is the concatenation of its trainable parameters in the order of ``named_parameters``. A
frozen encoder with a trained head works on features that are computed once per text; training encoder layers
works on token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import ConfigError, ModelError
from shared.parameters import Layout, TensorSpec, Vector
from shared.plan import ModelSpec
from shared.tasks.classifiers import EncoderClassifier, HeadClassifier
from shared.tasks.device import one_thread
from shared.tasks.encoder_files import pad, read_config, tokenize
from shared.tasks.features import BUCKETS, HASHED_WORDS_SHA256, FeatureCache, Features, feature_key, hashed_words
from shared.tasks.lora import add_lora

SCORE_BATCH = 256


@dataclass(frozen=True, eq=False)
class Prepared:
    """Records ready for a model: features, or token ids with their mask.

    Attributes:
        inputs: tensors of shape (n, ...), what ``model(*inputs)`` takes.
        labels: shape (n,), float32, 0 or 1; None for records without a label.
        lengths: shape (n,), tokens that count in each record (1 for features).
        owners: shape (n,), the number of each record's unit: 0 first, one more wherever the unit changes. None where
            each record is a unit of its own.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    lengths: NDArray[np.int64]
    owners: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.owners is not None and not _are_owners(self.owners, len(self)):
            raise ValueError("`owners` numbers the units from 0, record by record and without gaps")

    def __len__(self) -> int:
        return int(self.lengths.size)

    @property
    def units(self) -> int:
        """How many units the records belong to."""
        if self.owners is None:
            return len(self)
        return int(self.owners[-1]) + 1 if self.owners.size else 0

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many records each unit has, shape (units,)."""
        if self.owners is None:
            return np.ones(len(self), dtype=np.int64)
        return np.bincount(self.owners, minlength=self.units).astype(np.int64)

    def take(self, indices: NDArray[np.int64]) -> Prepared:
        """Return the units at ``indices`` with all their records; padding beyond the longest record is cut."""
        if self.owners is None:
            return self._records(indices, None)
        sizes = self.sizes
        taken, ends = sizes[indices], np.cumsum(sizes)
        owners = np.repeat(np.arange(indices.size, dtype=np.int64), taken)
        within = np.arange(owners.size) - np.repeat(np.cumsum(taken) - taken, taken)
        return self._records(np.repeat(ends[indices] - taken, taken) + within, owners)

    def _records(self, indices: NDArray[np.int64], owners: NDArray[np.int64] | None) -> Prepared:
        """Return the records at ``indices``."""
        picked = torch.from_numpy(indices).to(self.inputs[0].device)
        lengths = self.lengths[indices]
        inputs = tuple(tensor.index_select(0, picked) for tensor in self.inputs)
        if len(inputs) > 1:
            width = int(lengths.max(initial=1))
            inputs = tuple(tensor[:, :width].contiguous() for tensor in inputs)
        return Prepared(inputs, None if self.labels is None else self.labels[picked], lengths, owners)

    def to(self, device: torch.device) -> Prepared:
        """Return the same units on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Prepared(tuple(tensor.to(device) for tensor in self.inputs), labels, self.lengths, self.owners)

    def __repr__(self) -> str:
        return f"Prepared({len(self)} records)"


def build(spec: ModelSpec, weights_dir: Path | None, device: torch.device) -> nn.Module:
    """Return the model of a plan at its starting point, in training mode, on ``device``.

    Args:
        spec: the plan's model.
        weights_dir: folder of the base model; not needed for ``hashed-words``.
        device: from :func:`shared.tasks.device.resolve_device`.

    Raises:
        ConfigError: ``weights-missing``, ``lora-rank``, ``last-n``.
        ModelError: ``base-weights-mismatch``, ``base-weights-corrupt``, ``encoder-config``.
        SetupError: ``base-weights-missing``.
    """
    if spec.trainable == "head":
        return HeadClassifier(_feature_width(spec, weights_dir)).to(device).train()
    layers = _trainable_layers(spec, weights_dir)
    encoder = _encoder_module().load_encoder(spec, _required(weights_dir), trainable_layers=layers)
    if spec.trainable == "lora":
        add_lora(encoder.layer, spec.lora_rank)
    return EncoderClassifier(encoder, _feature_width(spec, weights_dir)).to(device).train()


def layout_of(spec: ModelSpec, weights_dir: Path | None) -> Layout:
    """Return the layout that the spec trains; reads shapes only, not the base weights.

    Raises:
        ConfigError: ``weights-missing``, ``lora-rank``, ``last-n``.
        ModelError: ``base-weights-mismatch``, ``encoder-config``.
        SetupError: ``base-weights-missing``.
    """
    width = _feature_width(spec, weights_dir)
    if spec.trainable == "head":
        return trained_layout(HeadClassifier(width))
    layers = _trainable_layers(spec, weights_dir)
    with torch.device("meta"):
        encoder = _encoder_module().MeanPoolEncoder(read_config(_required(weights_dir)), trainable_layers=layers)
        if spec.trainable == "lora":
            add_lora(encoder.layer, spec.lora_rank)
        return trained_layout(EncoderClassifier(encoder, width))


def initial_parameters(spec: ModelSpec, weights_dir: Path | None) -> Vector:
    """Return the starting vector: pretrained layers and a head of zeros.

    Raises:
        CityFedError: as :func:`build`.
    """
    return export_vector(build(spec, weights_dir, torch.device("cpu")))


def trained_layout(model: nn.Module) -> Layout:
    """Return names and shapes of the parameters that require a gradient."""
    trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    return Layout(tensors=tuple(TensorSpec(name=name, shape=tuple(value.shape)) for name, value in trained))


def export_vector(model: nn.Module) -> Vector:
    """Return the trained parameters as one new vector, shape (layout.size,), float32."""
    parts = [value.detach().cpu().numpy() for value in model.parameters() if value.requires_grad]
    return np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32)


def load_vector(model: nn.Module, vector: Vector) -> None:
    """Copy a vector into the trained parameters.

    Raises:
        ModelError: ``vector-shape``, ``vector-not-finite``.
    """
    tensors = trained_layout(model).unflatten(vector)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.tensor(tensors[name]))


def prepare(
    spec: ModelSpec,
    texts: Sequence[str],
    labels: Sequence[float] | NDArray[np.float32] | None,
    *,
    weights_dir: Path | None,
    device: torch.device,
    cache: FeatureCache | None = None,
) -> Prepared:
    """Turn texts into what the model takes.

    Every unit is prepared by itself: nothing is fitted on the texts, and no text goes through the encoder with another.

    Args:
        spec: the plan's model.
        texts: one text a unit; none at all is allowed.
        labels: 0 or 1 for each text, or None.
        weights_dir: folder of the base model; not needed for ``hashed-words``.
        device: where the tensors go.
        cache: where encoder features are kept; None computes them every time.

    Raises:
        ValueError: when there is not one label a text, or a label is neither 0 nor 1.
        ConfigError: ``weights-missing``, ``lora-rank``, ``last-n``, ``max-tokens``.
        ModelError: ``base-weights-mismatch``, ``base-weights-corrupt``, ``encoder-config``, ``tokenizer-corrupt``,
            ``feature-cache-corrupt``.
        SetupError: ``base-weights-missing``.
    """
    targets = None if labels is None else _labels(labels, len(texts))
    if spec.trainable == "head":
        features = np.ascontiguousarray(_features(spec, texts, weights_dir, device, cache))
        inputs: tuple[NDArray[np.generic], ...] = (features,)
        lengths = np.ones(len(texts), dtype=np.int64)
    else:
        _trainable_layers(spec, weights_dir)
        rows = tokenize(spec, texts, _required(weights_dir))
        inputs = pad(rows, read_config(_required(weights_dir)).pad_token_id)
        lengths = np.array([row.size for row in rows], dtype=np.int64)
    return Prepared(tuple(torch.from_numpy(array) for array in inputs), targets, lengths).to(device)


def pool(parts: Sequence[Prepared]) -> Prepared:
    """Return the records of all parts in order, with labels if every part has them; for baselines and evaluation.

    Where any part has units of several records, those of the others count as units of their own.

    Raises:
        ValueError: for no parts.
    """
    if not parts:
        raise ValueError("there is at least one part")
    width = max(part.inputs[0].shape[1] for part in parts)
    columns = tuple(
        torch.cat([nn.functional.pad(part.inputs[index], (0, width - part.inputs[index].shape[1])) for part in parts])
        for index in range(len(parts[0].inputs))
    )
    labels = [part.labels for part in parts if part.labels is not None]
    joined = torch.cat(labels) if len(labels) == len(parts) else None
    owners = None
    if any(part.owners is not None for part in parts):
        sizes = np.concatenate([part.sizes for part in parts])
        owners = np.repeat(np.arange(sizes.size, dtype=np.int64), sizes)
    return Prepared(columns, joined, np.concatenate([part.lengths for part in parts]), owners)


def per_unit_loss(model: nn.Module, batch: Prepared) -> Tensor:
    """Return each record's share of its unit's binary cross-entropy, shape (records,); the caller sums it.

    A unit's loss is the mean over its records: each record's is divided by how many its own unit has, and by nothing
    that depends on another unit.

    Raises:
        ValueError: for records without labels.
    """
    if batch.labels is None:
        raise ValueError("records without labels have no loss")
    losses = nn.functional.binary_cross_entropy_with_logits(model(*batch.inputs), batch.labels, reduction="none")
    if batch.owners is None:
        return losses
    return losses / torch.from_numpy(batch.sizes[batch.owners]).to(losses)


def predict_scores(
    spec: ModelSpec, parameters: Vector, prepared: Prepared, *, weights_dir: Path | None = None
) -> NDArray[np.float64]:
    """Return the probability of label 1 for each record, shape (n,), in the records' order.

    Raises:
        ModelError: ``vector-shape``, ``vector-not-finite``.
        CityFedError: as :func:`build`.
    """
    model = build(spec, weights_dir, prepared.inputs[0].device)
    load_vector(model, parameters)
    prepared = replace(prepared, owners=None)
    order = np.argsort(prepared.lengths, kind="stable")
    scores = np.empty(len(prepared), dtype=np.float64)
    with one_thread(when=spec.trainable == "head"), torch.inference_mode():
        for start in range(0, len(prepared), SCORE_BATCH):
            chunk = order[start : start + SCORE_BATCH]
            scores[chunk] = torch.sigmoid(model(*prepared.take(chunk).inputs).double()).cpu().numpy()
    return scores


def _features(
    spec: ModelSpec, texts: Sequence[str], weights_dir: Path | None, device: torch.device, cache: FeatureCache | None
) -> Features:
    """Return fixed features, shape (n, width), from the cache where it has them."""
    width = _feature_width(spec, weights_dir)
    if not texts:
        return np.zeros((0, width), dtype=np.float32)
    if spec.architecture == "hashed-words":
        return hashed_words(texts)

    def compute(positions: Sequence[int]) -> Features:
        chosen = [texts[position] for position in positions]
        rows: Features = _encoder_module().encode_texts(spec, chosen, _required(weights_dir), device)
        return rows

    if cache is None:
        return compute(range(len(texts)))
    salt = spec.base_weights_sha256
    return cache.features([feature_key(t, weights_sha256=salt, max_tokens=spec.max_tokens) for t in texts], compute)


def _are_owners(owners: NDArray[np.int64], records: int) -> bool:
    """Return whether units are numbered from 0, record by record and without gaps."""
    steps = np.diff(owners, prepend=-1)
    return owners.shape == (records,) and bool(np.isin(steps, (0, 1)).all()) and not (records and owners[0])


def _labels(labels: Sequence[float] | NDArray[np.float32], count: int) -> Tensor:
    """Return labels as float32 after checking them."""
    values = np.array(labels, dtype=np.float32)  # a copy: torch shares memory with what it is given
    if values.shape != (count,) or not np.isin(values, (0, 1)).all():
        raise ValueError("there is one label for each text, and it is 0 or 1")
    return torch.from_numpy(values)


def _feature_width(spec: ModelSpec, weights_dir: Path | None) -> int:
    """Return the width of the features that the head sees."""
    if spec.architecture == "hashed-words":
        if spec.base_weights_sha256 != HASHED_WORDS_SHA256:
            message = "The plan's base weights are not the hash of this package's hashed-words algorithm."
            raise ModelError("base-weights-mismatch", message)
        return BUCKETS
    return read_config(_required(weights_dir)).hidden_size


def _trainable_layers(spec: ModelSpec, weights_dir: Path | None) -> int:
    """Return how many of the last encoder layers are trained as they are, adapters aside."""
    config = read_config(_required(weights_dir))
    layers = config.num_hidden_layers
    if spec.trainable == "full":
        return layers
    if spec.lora_rank > config.hidden_size:
        raise ConfigError("lora-rank", f"`lora_rank` is {spec.lora_rank}, the encoder's width is {config.hidden_size}.")
    if spec.last_n > layers:
        raise ConfigError("last-n", f"`last_n` is {spec.last_n}, the encoder has {layers} layers.")
    return spec.last_n


def _required(weights_dir: Path | None) -> Path:
    """Refuse a plan's model whose base weights nobody has named."""
    if weights_dir is None:
        message = "The plan's model stands on base weights, and the configuration names no folder of them (`weights`)."
        raise ConfigError("weights-missing", message)
    return weights_dir


def _encoder_module() -> ModuleType:
    """Import the encoder when it is needed: heads on cached features do without transformers."""
    from shared.tasks import encoder  # noqa: PLC0415 - transformers takes seconds to import

    return encoder
