"""The audit goes through the shares of h departments where the plan shares its noise (privacy 4.3 and 7)."""

from __future__ import annotations

from clients.training.audit.run import Claim, ClaimResult, audit_claim
from clients.training.noise import RandomSource, UnsafeSeededSource
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from tests.clients.training.audit.planted_faults import UnsafeSmallNoiseSource, unsafe_membership

STEPS = 60
CLAIM = Claim(
    name="plan",
    steps=STEPS,
    privacy=PrivacyParams(
        mechanism="shared-noise",
        budget=PrivacyBudget(epsilon=1.0, delta=1e-4),
        sample_rate=0.1,
        steps=1,
        max_grad_norm=0.1,
        noise_multiplier=2.7,
        noise_shares=2,
    ),
)


def audited(source: RandomSource, claim: Claim = CLAIM) -> ClaimResult:
    return audit_claim(claim, source=source, membership=unsafe_membership(1), flags=PerformanceFlags(device="cpu"))


def test_p3_the_sum_of_h_shares_carries_the_noise_and_the_canaries_that_are_claimed() -> None:
    result = audited(UnsafeSeededSource(3))
    assert not result.diagnostic.deviates
    assert result.verdict != "exceeded"


def test_p3_shares_that_are_too_small_are_found() -> None:
    assert audited(UnsafeSmallNoiseSource(3, 4)).diagnostic.deviates
