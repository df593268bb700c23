"""What a unit adds to a sum is a function of that unit and the model alone, bit for bit, whatever model was sent.

In float32 the last bits of a product of matrices depend on how many rows there are, and padding changes those of an
encoder. A coordinator that sends large weights makes much of last bits: one record more would move a step by a
multiple of the clip.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clients.training.clipping import CLIP_MARGIN, GRID_BITS, Clip, summed_gradient
from clients.training.engines import HEAD
from clients.training.noise import UnsafeSeededSource
from clients.training.train import Trainer, TrainingSettings
from shared.plan import LocalOptimizer, ModelSpec
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.tasks.classifiers import HeadClassifier, head_logits
from shared.tasks.features import BUCKETS, HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, build, initial_parameters, layout_of, load_vector, per_unit_loss, prepare

CPU = torch.device("cpu")
HEADS = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)
TEXTS = ("Need water.", "Roads are flooded near the bridge and people wait on the roofs.", "Thanks to all.")
CLIPS = (Clip(0.1), Clip(1.0, "automatic"))


def crafted(rows: NDArray[np.float32], scale: float, seed: int) -> NDArray[np.float32]:
    """A head with large weights whose bias puts the logit of the first row where its last bits decide."""
    weights = (scale * np.random.default_rng(seed).standard_normal(rows.shape[1])).astype(np.float32)
    middle = torch.nn.functional.linear(torch.from_numpy(2 * rows[:1]), torch.from_numpy(weights).view(1, -1))
    return np.append(weights, np.float32(-middle.item())).astype(np.float32)


def records_of(rows: NDArray[np.float32], owners: NDArray[np.int64] | None) -> Prepared:
    labels = torch.from_numpy((np.arange(len(rows)) % 2).astype(np.float32))
    return Prepared((torch.from_numpy(rows),), labels, np.ones(len(rows), dtype=np.int64), owners)


@given(
    count=st.integers(2, 70),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1.0, 1e4, 1e8, 1e30]),
    persons=st.booleans(),
    clip=st.sampled_from(CLIPS),
)
def test_p3_heads_add_what_each_unit_adds_alone(count: int, seed: int, scale: float, persons: bool, clip: Clip) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, BUCKETS)).astype(np.float32)
    rows[count // 2 :] = rows[0]  # equal rows have equal logits
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    owners = np.sort(generator.integers(0, 5, size=count)).astype(np.int64) if persons else None
    if owners is not None:
        owners = np.cumsum(np.diff(owners, prepend=owners[0]) > 0).astype(np.int64)
    units, model = records_of(rows, owners), build(HEADS, None, CPU)
    load_vector(model, crafted(rows, scale, seed))
    with HEAD.attach(model) as clipped_sum:
        alone = [clipped_sum(units.take(np.array([unit])), per_unit_loss, clip) for unit in range(units.units)]
        together = clipped_sum(units, per_unit_loss, clip)
    assert torch.equal(together, torch.stack(alone).sum(0))
    most = CLIP_MARGIN * 2.0**30 + BUCKETS
    assert max(float(torch.linalg.vector_norm(one.double())) for one in alone) <= most


def test_p3_a_records_logit_is_its_own_however_the_records_lie_in_memory() -> None:
    generator, model = np.random.default_rng(3), build(HEADS, None, CPU)
    rows = torch.from_numpy(generator.standard_normal((BUCKETS, 50)).astype(np.float32)).T
    load_vector(model, generator.standard_normal(BUCKETS + 1).astype(np.float32))
    assert isinstance(model, HeadClassifier)
    alone = [head_logits(model, rows[number : number + 1])[1] for number in range(50)]
    assert np.array_equal(head_logits(model, rows)[1], np.concatenate(alone))


@pytest.mark.parametrize("trainable", ["last-n", "lora"])
def test_p3_encoder_layers_add_what_each_unit_adds_alone_when_units_pass_one_by_one(
    trainable: str, full: ModelSpec, weights: Path
) -> None:
    part = {"last-n": {"last_n": 1}, "lora": {"lora_rank": 2}}[trainable]
    spec = msgspec.structs.replace(full, trainable=trainable, **part)
    texts = [TEXTS[number % 2] for number in range(12)]
    data = prepare(spec, texts, np.arange(12) % 2, weights_dir=weights, device=CPU)
    start = initial_parameters(spec, weights)
    parameters = (start + 30 * np.random.default_rng(1).standard_normal(start.size)).astype(np.float32)
    settings = TrainingSettings(
        privacy=PrivacyParams(
            budget=PrivacyBudget(epsilon=1, delta=1e-4),
            sample_rate=1.0,
            steps=1,
            max_grad_norm=0.1,
            noise_multiplier=1.0,
        ),
        denominator=12.0,
        optimizer=LocalOptimizer(learning_rate=0.1),
        model=spec,
        layout=layout_of(spec, weights),
    )
    trainer = Trainer.prepare(settings=settings, data=data, weights_dir=weights, flags=PerformanceFlags(device="cpu"))

    def moved(units: Prepared) -> NDArray[np.int64]:
        return trainer.clipped_sum(parameters, units, UnsafeSeededSource(1, noise=False).fork_step())

    alone = sum(moved(data.take(np.array([unit]))) for unit in range(12))
    # Each of the thirteen sums is rounded to the grid once.
    assert np.abs(moved(data) - alone).max() <= 7


@pytest.mark.parametrize("longest", ["", " and".join([""] * 40)])
def test_p3_a_texts_features_are_its_own(longest: str, full: ModelSpec, weights: Path) -> None:
    spec = msgspec.structs.replace(full, trainable="head")
    texts = [*TEXTS, *TEXTS, longest, *TEXTS * 30]
    together = prepare(spec, texts, None, weights_dir=weights, device=CPU).inputs[0]
    for number, text in enumerate(texts[:8]):
        assert torch.equal(together[number], prepare(spec, [text], None, weights_dir=weights, device=CPU).inputs[0][0])


def test_p3_one_record_more_moves_a_step_of_a_crafted_head_by_no_more_than_the_clip() -> None:
    """The whole of a step at a size beyond any product that was proven."""
    rows = np.repeat(np.random.default_rng(1).standard_normal((1, BUCKETS)).astype(np.float32), 3001, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    units, model, clip = records_of(rows, None), build(HEADS, None, CPU), Clip(0.1)
    load_vector(model, crafted(rows, 1e8, 2))
    with HEAD.attach(model) as clipped_sum:
        whole, others = (
            summed_gradient(clipped_sum, part, size=BUCKETS + 1, clip=clip, physical_batch_size=700, loss=per_unit_loss)
            for part in (units, units.take(np.arange(3000)))
        )
    assert float(np.linalg.norm((whole - others).astype(np.float64))) <= 2.0**GRID_BITS
