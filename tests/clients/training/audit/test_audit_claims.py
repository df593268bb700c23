"""The audit passes correct code at every claim and fails each planted fault at the reference claim of 1.

Sources are seeded, so these tests are the same on every run. For fresh randomness: noise divided by four gave bounds
of 1.36 to 1.75 in 8 runs and a mean of 1.70 with standard deviation 0.15 in simulation, so it would be missed in fewer
than one run in 100,000; correct code gave at most 0.52.
"""

from __future__ import annotations

import datetime as dt

import msgspec
import numpy as np
import pytest

from clients.training.audit.bound import Bound
from clients.training.audit.canaries import CANARIES, run_canaries
from clients.training.audit.page import build_document, lines
from clients.training.audit.run import (
    AuditResult,
    Claim,
    ClaimResult,
    audit_claim,
    claim_failures,
    judge,
    reference_claim,
    run_audit,
)
from clients.training.clipping import CLIP_MARGIN
from clients.training.noise import OsRandomSource, RandomSource, UnsafeSeededSource
from shared.errors import AuditError
from shared.plan import ModelSpec
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.report.page import render_page
from shared.tasks.features import HASHED_WORDS_SHA256
from tests.clients.training.audit.planted_faults import (
    UnsafeSmallNoiseSource,
    UnsafeUnsampledSource,
    unsafe_membership,
    unsafe_over_positives,
)

CPU = PerformanceFlags(device="cpu")
HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)


STEPS = 100
NOISE_MULTIPLIERS = {1.0: 3.38, 3.0: 1.4948, 8.0: 0.8616}
"""Calibrated by the accountant: 100 steps at sampling rate 0.1 and delta 1e-4 keep each epsilon."""


def plan_claim(epsilon: float) -> Claim:
    privacy = PrivacyParams(
        budget=PrivacyBudget(epsilon=epsilon, delta=1e-4),
        sample_rate=0.1,
        steps=STEPS,
        max_grad_norm=0.1,
        noise_multiplier=NOISE_MULTIPLIERS[epsilon],
    )
    return Claim(name="plan", privacy=privacy, steps=STEPS)


def audited(claim: Claim, source: RandomSource, seed: int = 1) -> ClaimResult:
    return audit_claim(claim, source=source, membership=unsafe_membership(seed), flags=CPU)


def failed_with(result: ClaimResult) -> set[str]:
    return {failure.code for failure in claim_failures([result])}


def small_audit(source: RandomSource | None = None, **changes: object) -> AuditResult:
    """Audit with a short plan."""
    return run_audit(
        "small",
        privacy=msgspec.structs.replace(plan_claim(1.0).privacy, steps=STEPS // 5),
        attempts=5,
        spec=HASHED,
        weights_dir=None,
        flags=CPU,
        now=dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
        source=UnsafeSeededSource(7) if source is None else source,
        membership=unsafe_membership(7),
        **changes,  # type: ignore[arg-type]  # chosen by each test
    )


@pytest.fixture(scope="module")
def passed() -> AuditResult:
    """A whole audit of correct code."""
    return small_audit()


def test_correct_code_passes_a_whole_audit_within_a_minute_of_processor_time(passed: AuditResult) -> None:
    passed.require_passed()
    reference, plan = passed.claims
    assert (reference.claim.name, reference.claim.epsilon, reference.verdict) == ("reference", 1.0, "not contradicted")
    assert 0 < reference.bound.epsilon < 1
    assert reference.bound.ceiling == pytest.approx(6.24, abs=0.01)
    assert (plan.claim.name, plan.verdict) == ("plan", "not contradicted")
    assert passed.canaries >= 2000
    assert passed.cpu_seconds < 60


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_correct_code_passes_at_plan_claims(epsilon: float) -> None:
    result = audited(plan_claim(epsilon), UnsafeSeededSource(3), 3)
    assert 0 < result.bound.epsilon < epsilon < result.bound.ceiling
    assert result.verdict == "not contradicted"
    assert failed_with(result) == set()


def test_a_claim_above_the_ceiling_passes_as_not_informative() -> None:
    result = audited(plan_claim(8.0), UnsafeSeededSource(4), 4)
    assert 1 < result.bound.epsilon < result.bound.ceiling < 8
    assert result.verdict == "not informative"
    assert failed_with(result) == set()


def test_noise_divided_by_four_fails_the_audit_at_the_reference_claim_and_the_report_says_so_first() -> None:
    result = small_audit(UnsafeSmallNoiseSource(5, 4))
    reference = result.claims[0]
    assert reference.bound.epsilon > 1.2
    assert reference.verdict == "exceeded"
    assert failed_with(reference) == {"claim-exceeded", "numbers-deviate"}
    with pytest.raises(AuditError, match="The reference claim is epsilon 1, but epsilon is at least 1") as caught:
        result.require_passed()
    assert (caught.value.code, caught.value.exit_code) == ("claim-exceeded", 11)
    document = build_document(result)
    assert document.warnings == tuple(failure.text for failure in result.failures)
    assert "exceeded" in render_page(document)
    assert any(line.startswith("reference: ") and line.endswith(": exceeded") for line in lines(result))


def test_missing_subsampling_fails_at_the_reference_claim() -> None:
    result = audited(reference_claim(), UnsafeUnsampledSource(6), 6)
    assert result.bound.epsilon > 4
    assert result.verdict == "exceeded"
    assert result.diagnostic.contribution == pytest.approx(20, rel=0.1)
    assert failed_with(result) == {"claim-exceeded", "numbers-deviate"}


def test_noise_divided_by_two_escapes_the_bound_and_not_the_diagnostic() -> None:
    result = audited(reference_claim(), UnsafeSmallNoiseSource(8, 2), 8)
    assert result.bound.epsilon < 1
    assert result.diagnostic.noise == pytest.approx(0.5, abs=0.06)
    assert failed_with(result) == {"numbers-deviate"}


def test_a_coupled_loss_fails_the_audit_by_its_sensitivity() -> None:
    result = small_audit(loss=unsafe_over_positives)
    assert [failure.code for failure in result.failures] == ["sensitivity-exceeded", "units-coupled"]
    with pytest.raises(AuditError) as caught:
        result.require_passed()
    assert (caught.value.code, caught.value.exit_code) == ("sensitivity-exceeded", 11)


@pytest.mark.parametrize(
    ("bound", "ceiling", "claimed", "verdict"),
    [
        (0.0, 6.0, 1.0, "not informative"),
        (0.2, 6.0, 1.0, "not contradicted"),
        (1.0, 6.0, 1.0, "not contradicted"),
        (1.001, 6.0, 1.0, "exceeded"),
        (2.0, 6.0, 6.0, "not informative"),
        (2.0, 6.0, 8.0, "not informative"),
    ],
)
def test_a_verdict_never_calls_silence_safe(bound: float, ceiling: float, claimed: float, verdict: str) -> None:
    assert judge(Bound(epsilon=bound, guesses=2, right=2, ceiling=ceiling), claimed) == verdict


def test_no_bound_is_printed_as_none_and_not_informative(passed: AuditResult) -> None:
    silent = msgspec.structs.replace(
        passed.claims[1],
        bound=msgspec.structs.replace(passed.claims[1].bound, epsilon=0.0),
        verdict="not informative",
    )
    told = msgspec.structs.replace(passed, claims=(passed.claims[0], silent))
    assert any("lower bound none" in line and line.endswith("not informative") for line in lines(told))
    page = render_page(build_document(told))
    assert "no sign of safety" in page
    assert ">Safe" not in page


@pytest.mark.parametrize("max_grad_norm", [1e-6, 0.1, 1e6])
def test_each_canary_adds_one_clip_to_its_own_coordinate_in_each_step_that_samples_it(max_grad_norm: float) -> None:
    privacy = msgspec.structs.replace(plan_claim(1.0).privacy, sample_rate=1.0, max_grad_norm=max_grad_norm)
    run = run_canaries(
        privacy, steps=20, source=UnsafeSeededSource(10, noise=False), membership=unsafe_membership(10), flags=CPU
    )
    np.testing.assert_allclose(run.scores[run.members], 20 * CLIP_MARGIN, rtol=1e-4)
    np.testing.assert_array_equal(run.scores[~run.members], 0)
    assert run.scores.shape == (CANARIES,)


def test_canaries_are_drawn_afresh_and_by_a_fair_coin() -> None:
    privacy = msgspec.structs.replace(plan_claim(1.0).privacy, sample_rate=1.0)
    first, second = (
        run_canaries(
            privacy,
            steps=1,
            source=UnsafeSeededSource(11, noise=False),
            membership=OsRandomSource().fork_step(),
            flags=CPU,
        ).members
        for _ in range(2)
    )
    # Six standard deviations of a binomial: a false alarm in fewer than one run in 100 million.
    assert abs(int(first.sum()) - CANARIES // 2) < 3 * CANARIES**0.5
    assert np.any(first != second)
