"""The model card of a simulation, from its summary."""

from __future__ import annotations

from server.card import ModelCard, city_sentence, render_card
from shared.report import figures
from shared.report.document import Table
from shared.report.promises import UNIT_LABELS, UNSAFE_NOISE
from simulation.report.terms import same_terms
from simulation.summary import RunSummary

UNFINISHED = "The run did not finish; the model and its scores are partial."


def model_card(summary: RunSummary, *, model_file: str, model_sha256: str, plan_digest: str) -> str:
    """Return the model card as Markdown.

    Args:
        summary: the run that made the model.
        model_file: name of the safetensors file beside the card.
        model_sha256: its SHA-256, hexadecimal.
        plan_digest: digest of the signed plan that the departments approved, hexadecimal.

    Guarantees:
        States unit, relation, epsilon, delta, mechanism, sampling, clip, noise, steps, accountant and scope of
        every department (privacy 1), or that the noise was unsafe.
    """
    unsafe, partial = summary.noise == "unsafe", not summary.complete
    return render_card(
        ModelCard(
            title=summary.scenario,
            warnings=(UNSAFE_NOISE,) * unsafe + (UNFINISHED,) * partial,
            facts=(
                ("Task", summary.task),
                ("File", model_file),
                ("SHA-256 of the file", model_sha256),
                ("Digest of the approved plan", plan_digest),
                ("Training", f"{figures.counted(summary.rounds, 'round')}, {', '.join(summary.privacy)}"),
                ("Trained", figures.moment(summary.started)),
            ),
            data=summary.data,
            scores=_scores(summary),
            privacy=_privacy(summary),
            terms=same_terms(summary),
        )
    )


def _scores(summary: RunSummary) -> Table | None:
    """Return the federated scores."""
    arm = summary.arms.get("federated")
    if arm is None:
        return None
    rows = [(name, figures.score(value)) for name, value in arm.departments.items()]
    rows.append(("All departments", figures.score(arm.mean)))
    caption = (
        f"Mean {figures.words(summary.metric)} on held-out records over {figures.counted(summary.seeds, 'seed')}; "
        f"95 % interval of the mean over departments: {figures.score_interval(arm.interval)}. "
        "The saved model is one of these seeds."
    )
    return Table(caption=caption, header=("Department", "Score"), rows=tuple(rows))


def _privacy(summary: RunSummary) -> tuple[str | Table, ...]:
    """Return (epsilon, delta) for each department and the city-wide worst case."""
    if not summary.privacy:
        return ("No privacy charge is recorded: treat the model as unprotected.",)
    table = Table(
        caption="What this model cost each department",
        header=("Department", "Epsilon", "Delta", "Cap", "Unit"),
        rows=tuple(
            (
                name,
                figures.epsilon(each.epsilon),
                figures.delta(each.delta),
                figures.number(each.cap),
                UNIT_LABELS[each.unit],
            )
            for name, each in summary.privacy.items()
        ),
    )
    worst = summary.city_worst_case
    if worst is None:
        return (table,)
    unit = next(iter(summary.privacy.values())).unit
    return (table, city_sentence(worst.epsilon, worst.delta, unit=unit, departments=len(summary.privacy)))
