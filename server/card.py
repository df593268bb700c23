"""The model card that travels with a saved model, whoever made it: a deployment or a simulation."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from shared.attack_audit import AttackAudit, AuditedClaim
from shared.codec import decode
from shared.model_file import MODEL_FILE
from shared.plan import Plan
from shared.privacy.statement import PrivacyStatement
from shared.release import ModelRelease
from shared.report import figures
from shared.report.document import Definitions, Table
from shared.report.markdown import escape, render_definitions, render_table
from shared.report.promises import (
    LONE_SHARE,
    NOT_PROMISED,
    UNIT_LABELS,
    in_every_department,
    odds_sentence,
    privacy_terms,
)

INTENDED_USE = (
    "Research on the task above and comparison of privacy settings.",
    "Support of a person who reads every record anyway, after an evaluation on the city's own data.",
)
LIMITS = (
    "Not for decisions about a person, and not as the only reader of a message that may ask for help.",
    "Scores come from one collection of data; nothing is known about other cities, languages or times.",
    "Scores are not calibrated probabilities; choose a threshold on your own data.",
    "Labels carry the judgement and the bias of those who labelled and routed the records.",
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What differs from card to card.

    Attributes:
        title: the model's name.
        warnings: what nobody may overlook.
        facts: what identifies the model.
        data: one sentence on the training data.
        scores: how good it is; None if no score is recorded.
        privacy: what it cost, before the terms.
        terms: the terms, by the departments that have them.
    """

    title: str
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...]
    data: str
    scores: Table | None
    privacy: tuple[str | Table, ...]
    terms: Sequence[tuple[tuple[str, ...], tuple[tuple[str, str], ...]]]


def render_card(card: ModelCard) -> str:
    """Return the card as Markdown."""
    parts = [f"# Model card: {escape(card.title)}"]
    parts += [f"> **Attention.** {escape(text)}" for text in card.warnings]
    parts.append(render_table(Table(caption="The model", header=("What", "Value"), rows=card.facts)))
    scores = "No score is recorded." if card.scores is None else render_table(card.scores)
    parts += ["## Training data", escape(card.data), "## Scores", scores, "## Differential privacy"]
    parts += [escape(item) if isinstance(item, str) else render_table(item) for item in card.privacy]
    parts += [
        render_definitions(Definitions(caption=f"Terms at {', '.join(names)}", items=items))
        for names, items in card.terms
    ]
    for heading, sentences in (("Intended use", INTENDED_USE), ("Limits", LIMITS), ("Not promised", NOT_PROMISED)):
        parts += [f"## {heading}", "\n".join(f"- {escape(item)}" for item in sentences)]
    return "\n\n".join(parts) + "\n"


def city_sentence(epsilon: float, delta: float, *, unit: str, departments: int) -> str:
    """Say what somebody pays who is in every department's data with one unit."""
    return (
        f"City-wide worst case, {in_every_department(unit, departments)}: epsilon {figures.epsilon(epsilon)} at "
        f"delta {figures.delta(delta)}."
    )


def audit_sentence(release: ModelRelease) -> str:
    """Say what the attacks on the departments' training code found."""
    audits = [decode(item.body, AttackAudit) for item in release.audits]
    found = [f"{item.department}: {'; '.join(map(_claim_words, item.claims))}" for item in audits]
    return ". ".join(found) or "none"


def _claim_words(claim: AuditedClaim) -> str:
    """Say what an attack found about one claim; far below the claim is what correct code gives."""
    return (
        f"{claim.name} claim {figures.epsilon(claim.epsilon)}, epsilon at least {figures.epsilon(claim.lower_bound)} "
        f"found, at most {figures.epsilon(claim.ceiling)} could be"
    )


def released_card(release: ModelRelease, plan: Plan, *, finished: dt.datetime) -> str:
    """Return the card of a deployed run's model.

    Args:
        release: what is signed about it.
        plan: what it was trained by.
        finished: when the run was completed, UTC.
    """
    said, fewest = release.privacy, min(release.contributors)
    rounds = figures.counted(len(release.contributors), "round")
    return render_card(
        ModelCard(
            title=plan.name,
            facts=(
                ("Task", f"learns {plan.task.label} from {', '.join(plan.task.features)}"),
                ("Purpose", plan.purpose),
                ("Recipients", release.terms.in_words()),
                ("Released by", release.approved_by or "the authority"),
                ("Attack audit of the training code", audit_sentence(release)),
                ("Run", release.run.hex()),
                ("File", MODEL_FILE),
                ("SHA-256 of the file", release.file_sha256),
                ("Digest of the approved plan", release.plan_digest.hex()),
                ("Model", f"{plan.model.architecture}, trained: {plan.model.trainable}"),
                ("SHA-256 of the base weights", release.base_weights_sha256),
                ("Training", f"{rounds}, {fewest} to {max(release.contributors)} departments in each sum"),
                ("Finished", figures.moment(finished)),
            ),
            data=f"Records of {', '.join(plan.cohort)}, bound under the contracts that the plan names.",
            scores=None,
            privacy=_privacy(said, plan),
            terms=(
                (
                    plan.cohort,
                    privacy_terms(
                        said,
                        rounds=said.rounds,
                        spare_attempts=said.spare_attempts,
                        lone_share=_lone_share(said),
                    ),
                ),
            ),
        )
    )


def _privacy(said: PrivacyStatement, plan: Plan) -> tuple[str | Table, ...]:
    """Say what the model cost each department, the city, and which metrics left."""
    row = (figures.epsilon(said.epsilon), figures.delta(said.delta), UNIT_LABELS[said.unit])
    cost = Table(
        caption="What this model cost each department, spare attempts included",
        header=("Department", "Epsilon", "Delta", "Unit"),
        rows=tuple((name, *row) for name in plan.cohort),
    )
    worst = said.city_worst_case
    metrics = ", ".join(f"{item.name} (noise stddev {figures.number(item.noise_stddev)})" for item in said.metrics)
    return (
        odds_sentence(said.epsilon, said.delta, said.unit),
        cost,
        city_sentence(worst.epsilon, worst.delta, unit=said.unit, departments=worst.departments),
        f"Noised metrics that left inside the encrypted sums, charged in the figures above: {metrics or 'none'}.",
    )


def _lone_share(said: PrivacyStatement) -> str:
    """Say what a single update costs where the noise is shared."""
    if said.mechanism != "shared-noise":
        return ""
    return LONE_SHARE.format(epsilon=figures.epsilon(said.lone_share_epsilon)) + "."
