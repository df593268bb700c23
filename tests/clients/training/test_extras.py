"""Extra coordinates: what one unit can do to one, how much noise it carries, and that units never meet in it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clients.training.extras import VALUES, release_extras
from clients.training.noise import OsRandomSource, RandomSource, UnsafeSeededSource
from shared.parameters import ExtraSpec, Vector
from shared.plan import ModelSpec
from shared.privacy.extras import KNOWN
from shared.tasks.features import BUCKETS, HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, build, per_unit_loss

LOSS = ExtraSpec(
    name="train-loss-sum", unit_bound=2.0, sample_rate=1.0, noise_multiplier=3.0, max_abs=1e6, scale=2.0**-10
)


def declared(name: str, **changes: object) -> ExtraSpec:
    return msgspec.structs.replace(LOSS, **{"name": name, "unit_bound": KNOWN[name], **changes})


def model() -> nn.Module:
    built = build(
        ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256), None, torch.device("cpu")
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.linspace(-3, 3, parameter.numel()).view_as(parameter))
    return built


def units(count: int, seed: int = 1, stretch: float = 1.0) -> Prepared:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, BUCKETS)).astype(np.float32)
    rows *= stretch / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-9)
    labels = torch.from_numpy((generator.random(count) < 0.5).astype(np.float32))
    return Prepared((torch.from_numpy(rows),), labels, np.ones(count, dtype=np.int64))


def sums(data: Prepared, source: RandomSource, *extras: ExtraSpec) -> Vector:
    """The released sums in their own unit."""
    found = release_extras(model(), data, extras, source=source)
    return found / np.array([extra.scale for extra in extras], dtype=np.float32)


def noiseless(seed: int = 1) -> UnsafeSeededSource:
    return UnsafeSeededSource(seed, noise=False)


def test_every_known_extra_is_computed_and_no_other() -> None:
    assert set(VALUES) == set(KNOWN)


def test_without_noise_each_extra_is_the_plain_sum_over_units() -> None:
    data = units(40)
    assert data.labels is not None
    logits = model()(*data.inputs)
    expected = {
        "correct-count": float(((logits > 0) == (data.labels == 1)).sum()),
        "train-loss-sum": float(per_unit_loss(model(), data).detach().clamp(0, 2).sum()),
        "unit-count": 40.0,
    }
    assert 0 < expected["correct-count"] < 40
    found = sums(data, noiseless(), *(declared(name) for name in expected))
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-5)


@given(seed=st.integers(1, 1000), stretch=st.sampled_from([1e-3, 1.0, 50.0, 1e4]), name=st.sampled_from(sorted(KNOWN)))
def test_p3_one_unit_moves_an_extra_by_at_most_its_bound_and_by_what_it_is_alone(
    seed: int, stretch: float, name: str
) -> None:
    data, extra = units(6, seed, stretch), declared(name)
    whole = sums(data, noiseless(), extra)[0]
    for out in range(6):
        others = sums(data.take(np.delete(np.arange(6), out)), noiseless(), extra)[0]
        alone = sums(data.take(np.array([out])), noiseless(), extra)[0]
        assert 0 <= whole - others <= extra.unit_bound * (1 + 1e-6)
        assert whole - others == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(("value", "counts"), [(math.nan, 0.0), (1e30, 2.0)])
def test_a_unit_that_breaks_the_model_counts_as_nothing_or_as_the_bound(value: float, counts: float) -> None:
    data = units(4)
    data.inputs[0][3] = value * torch.sign(torch.linspace(-3, 3, BUCKETS))
    assert data.labels is not None
    data.labels[3] = 0.0
    others = sums(data.take(np.arange(3)), noiseless(), LOSS)[0]
    assert sums(data, noiseless(), LOSS)[0] - others == pytest.approx(counts, abs=1e-5)


@pytest.mark.parametrize("name", sorted(KNOWN))
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8])
def test_p3_no_model_lets_a_unit_move_an_extra_by_more_than_its_bound(scale: float, name: str) -> None:
    """The logits of equal units lie where their last bits decide: what those are must not depend on who else is there."""
    generator, extra = np.random.default_rng(3), declared(name)
    built = model()
    for count in (3, 4, 7, 60, 200):
        rows = np.repeat(units(1, seed=count).inputs[0].numpy(), count, axis=0)
        data = Prepared((torch.from_numpy(rows),), torch.ones(count), np.ones(count, dtype=np.int64))
        weights = scale * generator.standard_normal(BUCKETS)
        with torch.no_grad():
            head = dict(built.named_parameters())
            head["head.weight"].copy_(torch.from_numpy(weights).float().view(1, -1))
            head["head.bias"].copy_(-torch.nn.functional.linear(2 * data.inputs[0][:1], head["head.weight"])[0])
        whole, others = (
            float(release_extras(built, part, [extra], source=noiseless())[0]) / extra.scale
            for part in (data, data.take(np.arange(count - 1)))
        )
        assert 0 <= whole - others <= extra.unit_bound * (1 + 1e-4)


def test_units_are_drawn_by_coins_of_the_declared_rate() -> None:
    extra = declared("unit-count", sample_rate=0.25)
    counts = [float(sums(units(400), noiseless(seed), extra)[0]) for seed in range(50)]
    # 20,000 coins: six standard deviations, one false alarm in a billion; seeds are fixed anyway.
    assert abs(sum(counts) - 5000) < 6 * (20_000 * 0.25 * 0.75) ** 0.5
    assert len(set(counts)) > 10


@pytest.mark.parametrize("count", [0, 50])
def test_the_noise_has_the_declared_scale_whatever_the_data(count: int) -> None:
    exact = sums(units(count), noiseless(), LOSS)[0]
    source = UnsafeSeededSource(5)
    drawn = np.array([sums(units(count), source, LOSS)[0] - exact for _ in range(600)])
    # Standard deviation 6 from 600 draws: within 15 % but for one time in 10^7.
    assert drawn.std() == pytest.approx(LOSS.noise_stddev, rel=0.15)
    assert abs(drawn.mean()) < 6 * LOSS.noise_stddev / 600**0.5


def test_in_production_no_two_releases_share_noise_and_no_two_extras_do() -> None:
    data = units(5)
    twice = [sums(data, OsRandomSource(), LOSS, LOSS) for _ in range(2)]
    assert len({float(value) for pair in twice for value in pair}) == 4


def test_an_extra_is_clamped_to_its_range_after_noise() -> None:
    tight = declared("unit-count", max_abs=3.0, scale=4.0)
    found = release_extras(model(), units(50), [tight], source=noiseless())
    np.testing.assert_array_equal(found, np.float32(12.0))


def test_units_without_labels_are_the_callers_mistake() -> None:
    bare = Prepared(units(2).inputs, None, np.ones(2, dtype=np.int64))
    with pytest.raises(ValueError, match="labels"):
        sums(bare, noiseless(), LOSS)


RANGES: Mapping[str, dict[str, float]] = {
    "no bound": {"unit_bound": 0.0},
    "no sampling": {"sample_rate": 0.0},
    "negative noise": {"noise_multiplier": -1.0},
    "no range": {"max_abs": 0.0},
    "infinite scale": {"scale": math.inf},
    "a bound that is no number": {"unit_bound": math.nan},
}


@pytest.mark.parametrize("name", RANGES)
def test_a_declaration_has_possible_numbers(name: str) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(LOSS, **RANGES[name])


def test_a_person_counts_once_with_the_mean_of_their_records() -> None:
    records, owners = units(7), np.array([0, 0, 0, 1, 2, 2, 2], dtype=np.int64)
    persons = Prepared(records.inputs, records.labels, records.lengths, owners)
    losses = per_unit_loss(model(), records).detach().clamp(0, 2).numpy()
    expected = losses[:3].mean() + losses[3] + losses[4:].mean()
    loss, count = sums(persons, noiseless(), LOSS, declared("unit-count"))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert count == pytest.approx(3)
    one_less = sums(persons.take(np.array([0, 2])), noiseless(), LOSS)[0]
    assert loss - one_less == pytest.approx(losses[3], rel=1e-4)
