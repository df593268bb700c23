"""A department's share: exact sums, the right spread, and no refusal whatever the units are (privacy 4.3)."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clients.training.clipping import GRID_BITS
from clients.training.mechanisms import CONTRIBUTIONS, Contribution, RoundInputs, local_update, noised_share
from clients.training.noise import CtrStream, RandomSource, UnsafeSeededSource
from clients.training.train import Trainer, TrainingSettings
from shared.crypto.stream import RING_DTYPE
from shared.plan import LocalOptimizer, ModelSpec
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.privacy.shared_noise import rounding_steps, share_stddev
from shared.secagg.ring import decode_sum
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, initial_parameters, layout_of, prepare

MODEL = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)
LAYOUT = layout_of(MODEL, None)
BITS = 22
CLIP = 0.1


def privacy(*, shares: int = 2, noise: float = 4.0) -> PrivacyParams:
    return PrivacyParams(
        mechanism="shared-noise",
        budget=PrivacyBudget(epsilon=1.0, delta=1e-4),
        sample_rate=1.0,
        steps=1,
        max_grad_norm=CLIP,
        noise_multiplier=noise,
        noise_shares=shares,
    )


def units(count: int = 40, *, scale: float = 1.0) -> Prepared:
    texts = [f"help number {index} water {index % 7}" for index in range(count)]
    labels = [float(index % 2) for index in range(count)]
    data = prepare(MODEL, texts, labels, weights_dir=None, device=torch.device("cpu"))
    return Prepared((data.inputs[0] * scale,), data.labels, data.lengths)


def trainer(data: Prepared, params: PrivacyParams | None = None) -> Trainer:
    settings = TrainingSettings(
        privacy=params or privacy(),
        denominator=40.0,
        optimizer=LocalOptimizer(learning_rate=1.0),
        model=MODEL,
        layout=LAYOUT,
    )
    return Trainer.prepare(settings=settings, data=data, weights_dir=None, flags=PerformanceFlags())


def share(data: Prepared, source: RandomSource, *, bound: float = 64.0, at: Trainer | None = None) -> Contribution:
    start = initial_parameters(MODEL, None)
    inputs = RoundInputs(parameters=start, data=data, source=source, weight=1.0, bound=bound, bits=BITS)
    return noised_share(at or trainer(data), inputs)


def words(contribution: Contribution) -> NDArray[np.int32]:
    return contribution.ready.view(np.int32)


def test_every_mechanism_of_a_plan_has_a_contribution() -> None:
    assert {"poisson-dpsgd": local_update, "shared-noise": noised_share} == CONTRIBUTIONS


def test_without_noise_a_share_is_the_clipped_sum_to_half_a_ring_step() -> None:
    data = units()
    exact = trainer(data).clipped_sum(initial_parameters(MODEL, None), data, CtrStream(bytes(32)))
    found = share(data, UnsafeSeededSource(1, noise=False))
    assert found.ready.dtype == RING_DTYPE
    decoded = decode_sum(found.ready.view(RING_DTYPE), bits=BITS)
    assert np.abs(decoded - exact * (CLIP * 2.0**-GRID_BITS)).max() <= 2.0 ** -(BITS + 1)


def test_the_sum_of_shares_is_exact_and_wraps_like_the_ring() -> None:
    """Words add modulo 2^32, noise that overflows one share's range included."""
    data = units()
    params = privacy(noise=1e4)
    shares = [share(data, UnsafeSeededSource(seed), at=trainer(data, params)).ready for seed in range(3)]
    bare = words(share(data, UnsafeSeededSource(0, noise=False))).astype(np.int64)
    noises = []
    for seed in range(3):
        stream = UnsafeSeededSource(seed).fork_step()
        stream.coins(len(data), 1.0)
        noises.append(stream.discrete_gaussian(LAYOUT.size, share_stddev(params, dimension=LAYOUT.size, bits=BITS)))
    assert max(np.abs(noise + bare).max() for noise in noises) > 2**31
    total = np.sum([item.view(RING_DTYPE) for item in shares], axis=0, dtype=RING_DTYPE)
    assert np.array_equal(total, (3 * bare + sum(noises)).astype(RING_DTYPE))


@pytest.mark.parametrize("bound", [64.0, 1.0, 0.05])
def test_p3_one_unit_moves_the_words_by_at_most_the_charged_sensitivity(bound: float) -> None:
    """Also where the sum is projected, with the unit that pulls hardest and with one of NaN."""
    data = units()
    quiet = UnsafeSeededSource(1, noise=False)
    for index in range(0, len(data), 7):
        rest = data.take(np.delete(np.arange(len(data)), index))
        moved = words(share(data, quiet, bound=bound)).astype(np.int64) - words(share(rest, quiet, bound=bound))
        assert np.linalg.norm(moved.astype(np.float64)) <= CLIP * 2**BITS + rounding_steps(LAYOUT.size)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6, 1e30, math.nan, math.inf])
@pytest.mark.parametrize("bound", [64.0, 1e-3])
def test_p3_no_units_are_refused_and_the_rules_see_the_same(scale: float, bound: float) -> None:
    found = share(units(scale=scale), UnsafeSeededSource(1), bound=bound, at=trainer(units()))
    assert np.isfinite(found.judged).all()
    assert np.linalg.norm(found.judged.astype(np.float64)) <= bound
    assert found.ready.shape == (LAYOUT.size,)


def test_no_unit_at_all_is_noise_alone() -> None:
    empty = units().take(np.array([], dtype=np.int64))
    assert not share(empty, UnsafeSeededSource(1), at=trainer(units())).judged.any()
    assert words(share(empty, UnsafeSeededSource(1), at=trainer(units()))).any()


def test_p3_the_noise_of_h_shares_has_the_spread_that_is_charged() -> None:
    """257 x 60 draws a sum: the sample variance has a relative deviation of 1.1 %; 5 of them are 6e-7 false alarms."""
    empty = units().take(np.array([], dtype=np.int64))
    for shares in (2, 3):
        params = privacy(shares=shares)
        at, source = trainer(units(), params), UnsafeSeededSource(7 + shares)
        sums = [
            sum(words(share(empty, source, at=at)).astype(np.int64) for _ in range(shares)).astype(np.float64)  # type: ignore[union-attr]  # never 0
            for _ in range(60)
        ]
        draws = np.concatenate(sums)
        charged = params.noise_multiplier * (CLIP * 2**BITS + rounding_steps(LAYOUT.size))
        assert abs(draws.var() / charged**2 - 1) < 5 * math.sqrt(2 / draws.size)
        assert abs(draws.mean()) < 5 * charged / math.sqrt(draws.size)


def test_a_trainer_carries_nothing_from_one_round_to_the_next() -> None:
    data = units()
    used, fresh = trainer(data), trainer(data)
    share(data, UnsafeSeededSource(3), at=used)
    used.train(initial_parameters(MODEL, None) + 1, data, UnsafeSeededSource(5))
    again, once = (share(data, UnsafeSeededSource(4), at=item).ready for item in (used, fresh))
    assert np.array_equal(again, once)


def test_a_contribution_does_not_print_its_numbers() -> None:
    found = share(units(), UnsafeSeededSource(1))
    inputs = RoundInputs(
        parameters=found.judged, data=units(), source=UnsafeSeededSource(1), weight=1.0, bound=1.0, bits=BITS
    )
    assert repr(found) == f"Contribution({LAYOUT.size} coordinates)"
    assert repr(inputs) == f"RoundInputs({LAYOUT.size} coordinates)"


def test_local_updates_are_weighted_and_projected() -> None:
    data, params = units(), msgspec.structs.replace(privacy(shares=1), mechanism="poisson-dpsgd")
    at, start = trainer(data, params), initial_parameters(MODEL, None)
    inputs = RoundInputs(parameters=start, data=data, source=UnsafeSeededSource(1), weight=0.5, bound=1e-3, bits=BITS)
    found = local_update(at, inputs)
    assert found.ready is found.judged
    assert np.linalg.norm(found.judged.astype(np.float64)) == pytest.approx(1e-3, rel=1e-5)
    assert found.projected
    assert not local_update(at, dataclasses.replace(inputs, bound=64.0)).projected


def test_p1_whether_a_sum_without_noise_was_projected_is_not_even_noted() -> None:
    assert not share(units(), UnsafeSeededSource(1), bound=1e-3).projected
