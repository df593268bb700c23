"""The three answers at the top of the report, in plain words."""

from __future__ import annotations

from shared.report import figures
from shared.report.document import Tile
from shared.report.promises import UNIT_LABELS
from simulation.summary import GainSummary, RunSummary

VERDICT_ANSWERS = {
    "gain": "Training together helped",
    "no clear gain": "No clear gain from training together",
    "loss": "Training together did harm",
}


def tiles(summary: RunSummary) -> tuple[Tile, ...]:
    """Return what was gained, what it cost in privacy, and what left."""
    return (_gain_tile(summary), _privacy_tile(summary), _left_tile(summary))


def _gain_tile(summary: RunSummary) -> Tile:
    """Return the verdict with the two means and the paired difference."""
    question = "What was gained?"
    gain, arms = summary.gain, summary.arms
    if gain is None or "local" not in arms or "federated" not in arms:
        return Tile(question=question, answer="Not known yet", meaning="The comparison has not finished a seed.")
    local, federated = figures.score(arms["local"].mean), figures.score(arms["federated"].mean)
    means = f"{_capital(figures.words(summary.metric))} {local} alone, {federated} together"
    if gain.interval is None:
        return Tile(
            question=question, answer="Not known yet", meaning=f"{means}, in a single seed: chance is not known."
        )
    interval = figures.difference_interval(gain.interval)
    meaning = f"{means}: {figures.difference(gain.mean)} (95 % interval {interval}). {_by_verdict(gain)}."
    return Tile(question=question, answer=VERDICT_ANSWERS[gain.verdict], meaning=meaning)


def _by_verdict(gain: GainSummary) -> str:
    """Return how many departments gained, lost, or neither."""
    verdicts = [each.verdict for each in gain.departments.values()]
    counts = [(verdicts.count(verdict), verdict) for verdict in ("gain", "no clear difference", "loss")]
    return "Departments: " + ", ".join(f"{count} {verdict}" for count, verdict in counts if count)


def _privacy_tile(summary: RunSummary) -> Tile:
    """Return the largest charge, or that there was no protection at all."""
    question = "What did it cost in privacy?"
    if summary.noise == "unsafe":
        return Tile(
            question=question, answer="No protection at all", meaning="The noise came from an unsafe test source."
        )
    if not summary.privacy:
        return Tile(question=question, answer="Not known yet", meaning="No charge is recorded.")
    name, worst = max(summary.privacy.items(), key=lambda item: item[1].epsilon)
    within = all(each.epsilon <= each.cap for each in summary.privacy.values())
    caps = "Every department stayed within its own cap." if within else "A charge is above its cap: see the table."
    equal = len({figures.epsilon(each.epsilon) for each in summary.privacy.values()}) == 1
    where = "At every department" if equal else f"At most, at {name}"
    lone = f"; {figures.epsilon(worst.lone_share.epsilon)} if an update were read alone" if worst.lone_share else ""
    meaning = f"{where}{lone}; delta {figures.delta(worst.delta)}; per {UNIT_LABELS[worst.unit]}. {caps}"
    return Tile(question=question, answer=f"Epsilon {figures.epsilon(worst.epsilon)}", meaning=meaning)


def _left_tile(summary: RunSummary) -> Tile:
    """Return how much the departments sent."""
    question = "What left the departments?"
    if not summary.left:
        return Tile(question=question, answer="Nothing recorded", meaning="No message is recorded.")
    most = max(each.bytes for each in summary.left.values())
    inside = f" Noised inside them: {', '.join(extra.name for extra in summary.extras)}." if summary.extras else ""
    meaning = (
        f"At most {figures.count(most)} bytes from one department in one run.{inside} "
        "Nothing else left: no record, no column, no metric of a department."
    )
    return Tile(question=question, answer="Encrypted updates only", meaning=meaning)


def _capital(words: str) -> str:
    """Return the words with a capital first letter, the rest as it is."""
    return words[:1].upper() + words[1:]
