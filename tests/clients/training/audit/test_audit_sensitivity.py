"""What one unit does to a noiseless step, for every trained part, and losses that couple units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from clients.training.audit.inversion import demonstrate_inversion
from clients.training.audit.sensitivity import measure_sensitivity
from clients.training.noise import UnsafeSeededSource
from shared.plan import ModelSpec
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared
from tests.clients.training.audit.planted_faults import (
    unsafe_averaged,
    unsafe_centred,
    unsafe_class_weighted,
    unsafe_over_positives,
)
from tests.fixtures.tiny_bert import tiny_spec

HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)
Loss = Callable[[nn.Module, Prepared], Tensor]


def privacy(clipping: str = "flat", max_grad_norm: float = 0.1, noise_multiplier: float = 3.0) -> PrivacyParams:
    rule: Any = clipping  # parametrised
    return PrivacyParams(
        budget=PrivacyBudget(epsilon=1, delta=1e-4),
        sample_rate=0.1,
        steps=20,
        max_grad_norm=max_grad_norm,
        clipping=rule,
        noise_multiplier=noise_multiplier,
    )


def flags(engine: str = "auto", physical_batch_size: int = 256) -> PerformanceFlags:
    name: Any = engine  # parametrised
    return PerformanceFlags(device="cpu", physical_batch_size=physical_batch_size, engine=name)


@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("part", [("head",), ("last-n", 1), ("full",), ("lora", 0, 2), ("hashed",)])
def test_no_unit_moves_a_step_by_more_than_the_clip(
    weights: Path, part: tuple[Any, ...], clipping: str, engine: str
) -> None:
    spec = HASHED if part == ("hashed",) else tiny_spec((weights / "sha256").read_text(), *part)
    found = measure_sensitivity(spec, privacy(clipping), weights_dir=weights, flags=flags(engine, 3))
    assert found.bounded
    assert found.uncoupled
    assert found.engine == ("head" if part in {("head",), ("hashed",)} else engine)
    assert found.move > 0.9, "units that hardly move a step would prove nothing"


@pytest.mark.parametrize("clip", [0.1, 1.0])
@pytest.mark.parametrize("loss", [unsafe_over_positives, unsafe_class_weighted, unsafe_centred, unsafe_averaged])
def test_a_coupled_loss_is_found_at_the_plans_clip_or_around_it(loss: Loss, clip: float) -> None:
    found = measure_sensitivity(HASHED, privacy(max_grad_norm=clip), weights_dir=None, flags=flags(), loss=loss)
    assert not found.uncoupled


def test_a_coupled_loss_can_exceed_the_clip() -> None:
    found = measure_sensitivity(HASHED, privacy(), weights_dir=None, flags=flags(), loss=unsafe_over_positives)
    assert found.move > 1.2
    assert not found.bounded


def test_a_record_is_recovered_from_its_gradient_and_not_from_a_noised_sum() -> None:
    found = demonstrate_inversion(privacy(), source=UnsafeSeededSource(1))
    assert found.informative
    assert found.unprotected == pytest.approx(1, abs=1e-6)
    assert found.holds
    assert found.protected < 0.5


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_little_noise_still_hides_the_record_in_the_sum(noise: float) -> None:
    assert demonstrate_inversion(privacy(noise_multiplier=noise), source=UnsafeSeededSource(2)).holds
