"""From a summary and its metric rows to the sections of the report."""

from __future__ import annotations

from collections.abc import Sequence

from shared.report import figures
from shared.report.document import Block, Definitions, Document, Items, Paragraph, Section, Table
from shared.report.promises import (
    NOT_PROMISED,
    ON_ONE_MACHINE,
    UNIT_LABELS,
    UNSAFE_NOISE,
    in_every_department,
    odds_sentence,
)
from simulation.report.charts import budget_figure, curve_figure, gain_figure
from simulation.report.headline import tiles
from simulation.report.terms import same_terms
from simulation.summary import SUMMARY_FILE, ArmName, DepartmentGain, GainSummary, MetricRow, RunSummary

ARM_TITLES: dict[ArmName, str] = {"local": "Local only", "federated": "Federated", "pooled": "Pooled"}

MOST_TENSORS = 6
"""Tensors named in a cell of the report."""

ARMS_MEANING = (
    "Local only: each department trains alone on its own records. Federated: the departments train one model "
    "together and show each other nothing but the encrypted sum. Pooled: all records in one place, which the "
    "departments may not do; it shows what keeping them apart costs. "
)
INTERVALS_MEANING = (
    "Intervals are 95 % Student t intervals over seeds. A seed is a new split of the same data with new noise, so "
    "the intervals show how far chance moves the result here; splits overlap, so they are rather too narrow, and they "
    "do not speak for other cities. Differences are paired: same seed, same split. "
    'A verdict is "gain" or "loss" only if the whole interval lies on one side of zero; each department is judged '
    "on its own."
)
SAME_TARGET = (
    "All arms train under the same privacy target and are scored on the same held-out records of each department. "
    "The mean over departments counts every department the same."
)
OWN_WORLDS = (
    "Each seed and each arm is a world of its own with fresh ledgers; the federation of each seed has fresh keys and "
    "policies too. The privacy figures are what one federated run costs a department; repetitions exist to measure and "
    "would add up if somebody released them."
)
SCORES_OUTSIDE = (
    "Scores on held-out records are computed by the simulation, outside the federation and outside epsilon. "
    "In a deployment no score leaves a department."
)
NOTHING_ELSE = (
    "Nothing else left: no record, no column, no raw value, no metric of a department and no count of examples. The "
    "bytes are updates, clipped, noised and then masked so that only their sum over departments can be read, and the "
    "signed protocol messages around them."
)
NOISED_METRICS = (
    "Numbers that the plan declared and every department's policy permits. Each is summed over a department's records, "
    "every record's part clamped, noised there and masked with the update; only the mean over all departments can be "
    "read, about the model that the round started from. Their epsilon is part of the charge above."
)
CITY_WIDE = (
    "City-wide worst case: one citizen can be in several departments. For {who} the run costs epsilon {epsilon} at "
    "delta {delta}: {how}."
)
CITY_WIDE_HOW = {
    "poisson-dpsgd": "each department adds its own noise, and their charges compose",
    "shared-noise": "one noise covers all departments, so this may be more than their charges added up",
}


def build_document(summary: RunSummary, rows: Sequence[MetricRow]) -> Document:
    """Put the report of a run together; whatever an incomplete run lacks is said and left out."""
    sections = (
        Section(anchor="gain", title="What was gained", blocks=_gain_blocks(summary, rows)),
        Section(anchor="privacy", title="What it cost in privacy", blocks=_privacy_blocks(summary)),
        Section(anchor="left", title="What left each department", blocks=_left_blocks(summary, rows)),
        Section(anchor="comparison", title="How the comparison was made", blocks=_comparison_blocks(summary)),
        Section(anchor="not-promised", title="What is not promised", blocks=(Items(items=NOT_PROMISED),)),
        Section(anchor="run", title="The run", blocks=_run_blocks(summary)),
    )
    return Document(
        title=f"CityFed report: {summary.scenario}",
        subtitle=_subtitle(summary),
        warnings=_warnings(summary),
        tiles=tiles(summary),
        sections=sections,
    )


def _subtitle(summary: RunSummary) -> str:
    """Return the line under the title: task, size of the run, date."""
    seeds, rounds = figures.counted(summary.seeds, "seed"), figures.counted(summary.rounds, "round")
    return f"{summary.task}. {seeds}, {rounds} each, started {figures.moment(summary.started)}."


def _warnings(summary: RunSummary) -> tuple[str, ...]:
    """Return what a reader must know before any figure."""
    warnings = []
    if not summary.complete:
        done = f"{summary.seeds} of {figures.counted(summary.seeds_planned, 'seed')}"
        warnings.append(f"This run did not finish: {done} are in. What follows is partial and may still change.")
    if summary.noise == "unsafe":
        warnings.append(UNSAFE_NOISE)
    return tuple(warnings)


def _gain_blocks(summary: RunSummary, rows: Sequence[MetricRow]) -> tuple[Block, ...]:
    """Return the comparison of the arms and the verdict for each department."""
    if not summary.arms:
        return (Paragraph(text="No arm has finished a seed yet, so there is nothing to compare."),)
    blocks: list[Block] = [
        Paragraph(text=ARMS_MEANING + f"All figures are {figures.words(summary.metric)}; higher is better.")
    ]
    blocks.append(_arms_table(summary))
    if summary.gain is not None:
        blocks += [_gain_table(summary.gain), *_better_alone(summary.gain), gain_figure(summary.gain)]
    curve = curve_figure(summary, rows)
    if curve is not None:
        blocks.append(curve)
    return (*blocks, Paragraph(text=INTERVALS_MEANING))


def _arms_table(summary: RunSummary) -> Table:
    """Return local-only / federated / pooled side by side."""
    arms = {name: summary.arms[name] for name in ARM_TITLES if name in summary.arms}
    departments = list(dict.fromkeys(name for arm in arms.values() for name in arm.departments))
    by_department = tuple(
        (name, *(figures.score(arm.departments[name]) if name in arm.departments else "-" for arm in arms.values()))
        for name in departments
    )
    return Table(
        caption=f"Mean {figures.words(summary.metric)} over {figures.counted(summary.seeds, 'seed')}",
        header=("Department", *(ARM_TITLES[name] for name in arms)),
        rows=(
            *by_department,
            ("All departments", *(figures.score(arm.mean) for arm in arms.values())),
            ("95 % interval", *(figures.score_interval(arm.interval) for arm in arms.values())),
        ),
    )


def _gain_table(gain: GainSummary) -> Table:
    """Return federated minus local-only with intervals and verdicts."""
    named: list[tuple[str, DepartmentGain | GainSummary]] = [*gain.departments.items(), ("All departments", gain)]
    return Table(
        caption="Federated minus local only, paired by seed",
        header=("Department", "Verdict", "Difference", "95 % interval"),
        rows=tuple(
            (name, each.verdict, figures.difference(each.mean), figures.difference_interval(each.interval))
            for name, each in named
        ),
    )


def _better_alone(gain: GainSummary) -> tuple[Block, ...]:
    """Say which departments should keep their own model."""
    names = [name for name, each in gain.departments.items() if each.verdict == "loss"]
    if not names:
        return ()
    return (Paragraph(text=f"Better off with a model of their own: {', '.join(names)}."),)


def _privacy_blocks(summary: RunSummary) -> tuple[Block, ...]:
    """Return charges against caps, the meaning of the figure, the city-wide worst case and the terms."""
    if not summary.privacy:
        return (Paragraph(text="No privacy charge is recorded in this summary."),)
    worst = max(summary.privacy.values(), key=lambda privacy: privacy.epsilon)
    blocks: list[Block] = []
    if summary.noise == "cryptographic":
        blocks.append(Paragraph(text=odds_sentence(worst.epsilon, worst.delta, worst.unit)))
    blocks += [_privacy_table(summary), budget_figure(summary.privacy), *_city_blocks(summary)]
    for names, terms in same_terms(summary):
        blocks.append(Definitions(caption=f"Terms at {', '.join(names)}", items=terms))
    return (*blocks, Paragraph(text=ON_ONE_MACHINE))


def _privacy_table(summary: RunSummary) -> Table:
    """Return epsilon, reserved and spent, against the cap for each department; with shared noise a lone share's too."""
    shared = any(each.lone_share for each in summary.privacy.values())
    lone_header = ("A lone share",) if shared else ()
    return Table(
        caption="Privacy charge for one federated run, by department",
        header=("Department", "Epsilon reserved", "Epsilon spent", "Cap", *lone_header, "Delta", "Unit", "Public size"),
        rows=tuple(
            (
                name,
                figures.epsilon(each.epsilon),
                figures.epsilon(each.spent_epsilon),
                figures.number(each.cap),
                *((figures.epsilon(each.lone_share.epsilon) if each.lone_share else "-",) if shared else ()),
                figures.delta(each.delta),
                UNIT_LABELS[each.unit],
                figures.count(each.public_size),
            )
            for name, each in summary.privacy.items()
        ),
    )


def _city_blocks(summary: RunSummary) -> tuple[Block, ...]:
    """Return the worst case for somebody who is in every department's data."""
    worst = summary.city_worst_case
    if worst is None:
        return ()
    first = next(iter(summary.privacy.values()))  # all are under one plan
    text = CITY_WIDE.format(
        who=in_every_department(first.unit, len(summary.privacy)),
        epsilon=figures.epsilon(worst.epsilon),
        delta=figures.delta(worst.delta),
        how=CITY_WIDE_HOW[first.mechanism],
    )
    return (Paragraph(text=text),)


def _left_blocks(summary: RunSummary, rows: Sequence[MetricRow]) -> tuple[Block, ...]:
    """Return what was sent, in bytes and tensors."""
    if not summary.left:
        return (Paragraph(text="No department has sent anything that is recorded in this summary."),)
    sizes = Table(
        caption="Everything that left, for one federated run",
        header=("Department", "Bytes", "Messages", "Tensors in the masked update"),
        rows=tuple(
            (name, figures.count(each.bytes), figures.count(each.messages), _tensors(each.tensors))
            for name, each in summary.left.items()
        ),
    )
    return (sizes, *_extra_blocks(summary, rows), Paragraph(text=NOTHING_ELSE))


def _extra_blocks(summary: RunSummary, rows: Sequence[MetricRow]) -> tuple[Block, ...]:
    """Return the noised metrics of the first seed, first and last round, with their noise and what they cost."""
    if not summary.extras:
        return ()
    values = {extra.name: [row for row in rows if row.name == extra.name] for extra in summary.extras}
    table = Table(
        caption="Noised metrics, mean over departments",
        header=("Metric", "First round", "Last round", "Noise (stddev)", "Epsilon alone"),
        rows=tuple(
            (
                extra.name,
                _value_at(values[extra.name], first=True),
                _value_at(values[extra.name], first=False),
                figures.number(extra.noise_stddev),
                figures.epsilon(extra.epsilon),
            )
            for extra in summary.extras
        ),
    )
    return (table, Paragraph(text=NOISED_METRICS))


def _value_at(rows: Sequence[MetricRow], *, first: bool) -> str:
    """Return a metric's value in the first or last round of the first seed."""
    if not rows:
        return "-"
    seed = min(row.seed for row in rows)
    ordered = sorted((row for row in rows if row.seed == seed), key=lambda row: row.round)
    return figures.score(ordered[0 if first else -1].value)


def _tensors(tensors: dict[str, tuple[int, ...]]) -> str:
    """Return names and shapes on one line; a long list is cut and says where the rest stands."""
    named = [f"{name} ({figures.shape(shape)})" for name, shape in tensors.items()]
    rest = len(named) - MOST_TENSORS
    return ", ".join(named[:MOST_TENSORS]) + (f" and {rest} more, listed in {SUMMARY_FILE}" if rest > 0 else "")


def _comparison_blocks(summary: RunSummary) -> tuple[Block, ...]:
    """Return the method and where the data comes from."""
    items = (f"Data: {summary.data}", f"Settings: {summary.tuning}", SAME_TARGET, OWN_WORLDS, SCORES_OUTSIDE)
    return (Items(items=items),)


def _run_blocks(summary: RunSummary) -> tuple[Block, ...]:
    """Return times, software and the notes of the run."""
    times = [(name, figures.seconds(value)) for name, value in summary.seconds.items()]
    times.append(("all phases", figures.seconds(sum(summary.seconds.values()))))
    blocks: list[Block] = [
        Table(caption="Time for each phase", header=("Phase", "Time"), rows=tuple(times)),
        Table(caption="Software", header=("Package", "Version"), rows=tuple(summary.versions.items())),
    ]
    if summary.notes:
        blocks.append(Items(items=summary.notes))
    return tuple(blocks)
