"""The audit as a whole: what is run, what it found, and what counts as failed (privacy 7).

A claim is an epsilon that a plan promises. Two are audited: a reference plan of epsilon 1, where the test has power
whatever is asked for, and the plan that is audited. The same code serves a department, which audits its own
installation before it approves a plan, and a researcher, who audits a scenario's.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from clients.training.audit.bound import Bound, bound_of_scores
from clients.training.audit.canaries import CANARIES, run_canaries
from clients.training.audit.diagnostic import Diagnostic, diagnose
from clients.training.audit.inversion import Inversion, demonstrate_inversion
from clients.training.audit.sensitivity import Sensitivity, measure_sensitivity
from clients.training.clipping import Loss
from clients.training.noise import OsRandomSource, RandomSource, StepStream
from shared.codec import Record
from shared.errors import AuditError
from shared.plan import ModelSpec
from shared.privacy.accountant import calibrate_noise
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.tasks.text import per_unit_loss

Verdict = Literal["exceeded", "not contradicted", "not informative"]

REFERENCE_BUDGET = PrivacyBudget(epsilon=1.0, delta=1e-5)
REFERENCE_SAMPLE_RATE = 0.05
REFERENCE_STEPS = 300


class Claim(Record, frozen=True, kw_only=True):
    """An epsilon that is promised, and the plan that is to keep it; ``steps`` are all that are charged."""

    name: Literal["reference", "plan"]
    privacy: PrivacyParams
    steps: int

    @property
    def epsilon(self) -> float:
        """The promised epsilon."""
        return self.privacy.budget.epsilon

    @property
    def delta(self) -> float:
        """The delta at which it is promised."""
        return self.privacy.budget.delta


class ClaimResult(Record, frozen=True, kw_only=True):
    """What one run of the canary block says about a claim."""

    claim: Claim
    bound: Bound
    verdict: Verdict
    diagnostic: Diagnostic


class Failure(Record, frozen=True, kw_only=True):
    """One thing that must not be: a stable reason code and a sentence."""

    code: str
    text: str


class AuditResult(Record, frozen=True, kw_only=True):
    """Everything that the audit found; ``audit.json``. No figure in it comes from a record of anybody."""

    name: str
    trainable: str
    canaries: int
    claims: tuple[ClaimResult, ...]
    sensitivity: Sensitivity
    inversion: Inversion
    failures: tuple[Failure, ...]
    started: dt.datetime
    cpu_seconds: float

    def require_passed(self) -> None:
        """Refuse an audit with failures.

        Raises:
            AuditError: ``claim-exceeded``, ``numbers-deviate``, ``sensitivity-exceeded``, ``units-coupled``,
                ``record-recovered``; the sentence names every failure, the code is the first one's.
        """
        if self.failures:
            raise AuditError(self.failures[0].code, " ".join(failure.text for failure in self.failures))


def reference_claim() -> Claim:
    """Return the plan on which the audit has power: epsilon 1 at delta 1e-5, 300 steps at sampling rate 0.05."""
    noise = calibrate_noise(budget=REFERENCE_BUDGET, sample_rate=REFERENCE_SAMPLE_RATE, total_steps=REFERENCE_STEPS)
    privacy = PrivacyParams(
        budget=REFERENCE_BUDGET,
        sample_rate=REFERENCE_SAMPLE_RATE,
        steps=REFERENCE_STEPS,
        max_grad_norm=1.0,
        noise_multiplier=noise,
    )
    return Claim(name="reference", privacy=privacy, steps=REFERENCE_STEPS)


def audit_claim(claim: Claim, *, source: RandomSource, membership: StepStream, flags: PerformanceFlags) -> ClaimResult:
    """Train the canary block once under a claim's plan and bound its epsilon.

    Args:
        claim: what is promised.
        source: randomness of the training.
        membership: draws which canaries are in; independent of ``source``.
        flags: as for :func:`clients.training.train.train_round`.
    """
    run = run_canaries(claim.privacy, steps=claim.steps, source=source, membership=membership, flags=flags)
    bound = bound_of_scores(run.scores, run.members, claim.delta)
    return ClaimResult(
        claim=claim,
        bound=bound,
        verdict=judge(bound, claim.epsilon),
        diagnostic=diagnose(run, claim.delta),
    )


def judge(bound: Bound, claimed: float) -> Verdict:
    """Return what a bound says about a claimed epsilon.

    It is ``not informative`` where it is 0, or could not have come above the claim however bad the code.
    """
    if bound.epsilon > claimed:
        return "exceeded"
    return "not informative" if bound.epsilon == 0 or bound.ceiling <= claimed else "not contradicted"


def run_audit(
    name: str,
    *,
    privacy: PrivacyParams,
    attempts: int,
    spec: ModelSpec,
    weights_dir: Path | None,
    flags: PerformanceFlags,
    now: dt.datetime,
    source: RandomSource | None = None,
    membership: StepStream | None = None,
    loss: Loss = per_unit_loss,
) -> AuditResult:
    """Audit the training code installed here with the numbers of a plan.

    Args:
        name: of the plan or scenario, for the report.
        privacy: the plan's parameters. Shared noise is audited as if one department added all of it: what is asked is
            whether sampler, clipper and accountant agree, and no encrypted sum takes part.
        attempts: rounds and spare attempts, all that is charged.
        spec: the plan's model; its trained part is what the sensitivity test trains.
        weights_dir: folder of the base model.
        flags: as for :func:`clients.training.train.train_round`.
        now: when the audit started.
        source: randomness of the training; cryptographic outside tests.
        membership: draws the canaries; cryptographic outside tests.
        loss: what the sensitivity test minimises; production's outside tests.

    Raises:
        CityFedError: as :func:`clients.training.train.train_round`; a failed check is part of the result instead.
    """
    begin = time.process_time()
    randomness = source or OsRandomSource()
    coins = membership or OsRandomSource().fork_step()
    privacy = msgspec.structs.replace(privacy, mechanism="poisson-dpsgd", noise_shares=1)
    plan = Claim(name="plan", privacy=privacy, steps=privacy.steps * attempts)
    claims = tuple(
        audit_claim(claim, source=randomness, membership=coins, flags=flags) for claim in (reference_claim(), plan)
    )
    sensitivity = measure_sensitivity(spec, privacy, weights_dir=weights_dir, flags=flags, loss=loss)
    inversion = demonstrate_inversion(privacy, source=randomness)
    return AuditResult(
        name=name,
        trainable=spec.trainable,
        canaries=CANARIES,
        claims=claims,
        sensitivity=sensitivity,
        inversion=inversion,
        failures=(*claim_failures(claims), *_sensitivity_failures(sensitivity), *_inversion_failures(inversion)),
        started=now,
        cpu_seconds=time.process_time() - begin,
    )


def claim_failures(results: Iterable[ClaimResult]) -> tuple[Failure, ...]:
    """Return what canary runs found wrong, refuted claims first."""
    refuted = [
        Failure(
            code="claim-exceeded",
            text=f"The {item.claim.name} claim is epsilon {item.claim.epsilon:g}, but epsilon is at least "
            f"{item.bound.epsilon:.2f} with 95 % confidence.",
        )
        for item in results
        if item.verdict == "exceeded"
    ]
    deviating = [
        Failure(
            code="numbers-deviate",
            text=f"Under the {item.claim.name} plan noise is {item.diagnostic.noise:.2f} times and a canary's "
            f"contribution {item.diagnostic.contribution:.2f} times what the plan says.",
        )
        for item in results
        if item.diagnostic.deviates
    ]
    return (*refuted, *deviating)


def _sensitivity_failures(found: Sensitivity) -> Iterator[Failure]:
    """Yield what one unit did to a step and must not do."""
    if not found.bounded:
        text = f"With engine {found.engine} one unit moved a step by {found.move:.4f} times the clip."
        yield Failure(code="sensitivity-exceeded", text=text)
    if not found.uncoupled:
        text = f"With engine {found.engine} one unit changed the others' part by {found.coupling:.4f} times the clip."
        yield Failure(code="units-coupled", text=text)


def _inversion_failures(inversion: Inversion) -> tuple[Failure, ...]:
    """Return whether a record was recovered from what a department would release."""
    if inversion.holds:
        return ()
    text = f"A record was recovered from a noised sum (cosine {inversion.protected:.2f})."
    return (Failure(code="record-recovered", text=text),)
