"""The model card that travels with the saved model."""

from __future__ import annotations

from shared.report import figures
from shared.report.document import Definitions, Table
from shared.report.markdown import escape, render_definitions, render_table
from simulation.report.promises import NOT_PROMISED, UNIT_LABELS, UNSAFE_NOISE, privacy_terms, same_terms
from simulation.summary import RunSummary

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
    parts = [f"# Model card: {escape(summary.scenario)}"]
    if summary.noise == "unsafe":
        parts.append(f"> **Attention.** {UNSAFE_NOISE}")
    if not summary.complete:
        parts.append("> **Attention.** The run did not finish; the model and its scores are partial.")
    parts += [_facts(summary, model_file, model_sha256, plan_digest)]
    parts += ["## Training data", escape(summary.data), "## Scores", _scores(summary)]
    parts += ["## Differential privacy", *_privacy(summary)]
    parts += ["## Intended use", _list(INTENDED_USE), "## Limits", _list(LIMITS)]
    parts += ["## Not promised", _list(NOT_PROMISED)]
    return "\n\n".join(parts) + "\n"


def _facts(summary: RunSummary, model_file: str, model_sha256: str, plan_digest: str) -> str:
    """Return what identifies the model."""
    table = Table(
        caption="The model",
        header=("What", "Value"),
        rows=(
            ("Task", summary.task),
            ("File", model_file),
            ("SHA-256 of the file", model_sha256),
            ("Digest of the approved plan", plan_digest),
            ("Training", f"{figures.counted(summary.rounds, 'round')}, {', '.join(summary.privacy)}"),
            ("Trained", figures.moment(summary.started)),
        ),
    )
    return render_table(table)


def _scores(summary: RunSummary) -> str:
    """Return the federated scores, or that there are none."""
    arm = summary.arms.get("federated")
    if arm is None:
        return "No score is recorded."
    rows = [(name, figures.score(value)) for name, value in arm.departments.items()]
    rows.append(("All departments", figures.score(arm.mean)))
    caption = (
        f"Mean {figures.words(summary.metric)} on held-out records over {figures.counted(summary.seeds, 'seed')}; "
        f"95 % interval of the mean over departments: {figures.score_interval(arm.interval)}. "
        "The saved model is one of these seeds."
    )
    return render_table(Table(caption=caption, header=("Department", "Score"), rows=tuple(rows)))


def _privacy(summary: RunSummary) -> list[str]:
    """Return (epsilon, delta) for each department, the city-wide worst case and the terms."""
    if not summary.privacy:
        return ["No privacy charge is recorded: treat the model as unprotected."]
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
    parts = [render_table(table)]
    if summary.city_worst_case is not None:
        worst = summary.city_worst_case
        parts.append(
            f"City-wide worst case, somebody with one record in every department: epsilon "
            f"{figures.epsilon(worst.epsilon)} at delta {figures.delta(worst.delta)}."
        )
    return parts + [
        render_definitions(Definitions(caption=f"Terms at {', '.join(names)}", items=privacy_terms(privacy, summary)))
        for names, privacy in same_terms(summary)
    ]


def _list(items: tuple[str, ...]) -> str:
    """Return sentences as a list."""
    return "\n".join(f"- {escape(item)}" for item in items)
