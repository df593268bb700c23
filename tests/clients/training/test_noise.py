"""Statistical tests use fixed seeds, so they pass or fail for good; the stated rate is that of a random seed."""

import math
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.training.noise import CtrStream, OsRandomSource, RandomSource, StepStream, UnsafeSeededSource
from clients.training.sampling import poisson_sample

GRID_STDDEV = 1.1 * 2**20


def stream(seed: int) -> StepStream:
    return UnsafeSeededSource(seed).fork_step()


def exact_law(stddev: float) -> dict[int, float]:
    """The discrete Gaussian by its definition, on the integers within 12 standard deviations."""
    reach = math.ceil(12 * stddev)
    weights = {value: math.exp(-(value**2) / (2 * stddev**2)) for value in range(-reach, reach + 1)}
    total = sum(weights.values())
    return {value: weight / total for value, weight in weights.items()}


def chi_square(observed: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Return the statistic's distance from its mean in standard deviations of the chi-square law."""
    expected = probabilities * observed.sum()
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(probabilities) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("stddev", [0.5, 1.0, 3.7, 33.0])
def test_discrete_gaussian_has_its_exact_probabilities(stddev: float) -> None:
    # False alarm: 5 deviations of a chi-square with at least 4 degrees of freedom, below 1e-3.
    draws = stream(1).discrete_gaussian(400_000, stddev)
    law = {value: p for value, p in exact_law(stddev).items() if p * draws.size > 50}
    counts = np.array([np.count_nonzero(draws == value) for value in law])
    kept = sum(law.values())
    assert abs(chi_square(counts, np.array(list(law.values())) / kept)) < 5
    tail = (1 - kept) * draws.size
    assert draws.size - counts.sum() <= tail + 5 * math.sqrt(tail) + 5


@pytest.mark.parametrize("stddev", [1.0, 40.0, GRID_STDDEV, 2.0**41])
def test_discrete_gaussian_has_the_moments_of_the_normal_law(stddev: float) -> None:
    # From one grid step on they agree to 1e-6. False alarm: 5 standard errors on four moments, below 3e-6.
    draws = stream(2).discrete_gaussian(1_000_000, stddev) / stddev
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((draws**power).mean() - moment) < 5e-3 * math.sqrt(spread)


def test_large_noise_is_uniform_inside_and_normal_between_blocks() -> None:
    # 62 bins of the normal law, and the low four bits; false alarm: 5 deviations each, below 1e-4.
    draws = stream(3).discrete_gaussian(1_000_000, GRID_STDDEV)
    edges = np.linspace(-3, 3, 61)
    cdf = np.array([0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges])
    counts = np.bincount(np.searchsorted(edges, draws / GRID_STDDEV), minlength=62)
    assert abs(chi_square(counts, np.diff(cdf, prepend=0, append=1))) < 5
    low_bits = np.bincount(draws & 15, minlength=16)
    assert abs(chi_square(low_bits, np.full(16, 1 / 16))) < 5


def test_noise_of_neighbouring_coordinates_is_uncorrelated() -> None:
    draws = stream(4).discrete_gaussian(1_000_000, GRID_STDDEV) / GRID_STDDEV
    assert abs((draws[1:] * draws[:-1]).mean()) < 5e-3


def test_coins_come_up_at_their_rate_and_independently() -> None:
    # False alarm: 5 standard deviations, below 1e-6 each.
    for rate in (0.001, 0.08, 0.5):
        coins = stream(5).coins(1_000_000, rate)
        deviation = math.sqrt(rate * (1 - rate) * coins.size)
        assert abs(coins.sum() - rate * coins.size) < 5 * deviation
        both = np.count_nonzero(coins[1:] & coins[:-1])
        assert abs(both - rate**2 * coins.size) < 5 * math.sqrt(rate**2 * coins.size) + 5


def test_extreme_rates_are_exact() -> None:
    assert not stream(6).coins(1000, 0).any()
    assert stream(6).coins(1000, 1).all()
    assert stream(6).coins(0, 0.5).shape == (0,)


def test_sample_sizes_vary_as_poisson_sampling_does() -> None:
    # A shuffled loader would give one size each time. False alarm: 5 standard errors, below 1e-6.
    source = UnsafeSeededSource(7)
    samples = [poisson_sample(source.fork_step(), 2000, 0.08) for _ in range(500)]
    sizes = np.array([sample.size for sample in samples])
    expected = 2000 * 0.08 * 0.92
    assert abs(sizes.mean() - 160) < 5 * math.sqrt(expected / 500)
    assert abs(sizes.var() / expected - 1) < 5 * math.sqrt(2 / 500)
    assert all((np.diff(sample) > 0).all() for sample in samples)
    assert all(sample.dtype == np.int64 for sample in samples)


@pytest.mark.parametrize("size", [0, 1, 385])
def test_the_production_source_never_repeats(size: int) -> None:
    source = OsRandomSource()
    first, second = (source.fork_step().discrete_gaussian(size, GRID_STDDEV) for _ in range(2))
    other = OsRandomSource().fork_step().discrete_gaussian(size, GRID_STDDEV)
    assert first.shape == second.shape == other.shape == (size,)
    if size == 385:
        assert len({array.tobytes() for array in (first, second, other)}) == 3


def test_one_stream_does_not_repeat_itself() -> None:
    once = stream(8)
    assert (once.discrete_gaussian(50, GRID_STDDEV) != once.discrete_gaussian(50, GRID_STDDEV)).all()


def test_the_unsafe_source_is_reproducible_step_by_step() -> None:
    def draws(source: RandomSource) -> list[bytes]:
        steps = [source.fork_step() for _ in range(3)]
        return [step.coins(64, 0.5).tobytes() + step.discrete_gaussian(64, 1e6).tobytes() for step in steps]

    assert draws(UnsafeSeededSource(9)) == draws(UnsafeSeededSource(9))
    assert len({*draws(UnsafeSeededSource(9)), *draws(UnsafeSeededSource(10))}) == 6


def test_switching_noise_off_leaves_the_coins_alone() -> None:
    noisy, silent = UnsafeSeededSource(11).fork_step(), UnsafeSeededSource(11, noise=False).fork_step()
    np.testing.assert_array_equal(noisy.coins(1000, 0.1), silent.coins(1000, 0.1))
    assert not silent.discrete_gaussian(100, GRID_STDDEV).any()
    assert noisy.discrete_gaussian(100, GRID_STDDEV).any()


FORK = """
import os
from clients.training.noise import OsRandomSource
source = OsRandomSource()
stream = source.fork_step()
child = os.fork()
if child == 0:
    refused = 0
    for draw in (source.fork_step, lambda: stream.coins(3, 0.5), lambda: stream.discrete_gaussian(3, 9.0)):
        try:
            draw()
        except RuntimeError:
            refused += 1
    OsRandomSource().fork_step().coins(3, 0.5)
    os._exit(refused)
source.fork_step()
stream.coins(3, 0.5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_use_after_a_fork_is_refused_and_a_new_source_works() -> None:
    result = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "3"


def test_arguments_out_of_range_are_refused() -> None:
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError):
            stream(12).coins(3, rate)
    for stddev in (0.0, -1.0, 2.0**42, math.nan):
        with pytest.raises(ValueError):
            stream(12).discrete_gaussian(3, stddev)


def test_sources_and_streams_do_not_print_keys_or_seeds() -> None:
    key = b"k" * 32
    shown = [repr(thing) for thing in (OsRandomSource(), CtrStream(key), UnsafeSeededSource(424242))]
    assert shown == ["OsRandomSource()", "CtrStream(...)", "UnsafeSeededSource(...)"]
