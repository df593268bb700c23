"""The report of an audit: ``audit.html``, ``audit.md`` and ``audit.json``, all from one result."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clients.training.audit.bound import CONFIDENCE
from clients.training.audit.inversion import RECOVERED
from clients.training.audit.run import AuditResult, ClaimResult, Verdict
from clients.training.audit.sensitivity import TOLERANCE
from shared.private_files import make_private_folder, replace_private_file
from shared.report import figures
from shared.report.document import Document, Items, Paragraph, Section, Table, Tile
from shared.report.markdown import render_markdown
from shared.report.page import render_page

JSON_FILE = "audit.json"
HTML_FILE = "audit.html"
MARKDOWN_FILE = "audit.md"

PLAN_WORDS = {"reference": "reference plan", "plan": "plan"}

VERDICT_MEANING: dict[Verdict, str] = {
    "exceeded": "The run refutes the claim: the code protects less than its accountant says.",
    "not contradicted": "The run does not refute the claim. That is evidence, not proof.",
    "not informative": "The run says nothing for or against the claim; that is no sign of safety.",
}

BOUND_METHOD = (
    "{canaries} canaries, each in the data with probability one half, train {canaries} coordinates that nothing else "
    "touches, through the function that trains a department: its sampler, clipper, noise, divisor and optimiser. From "
    "what that releases one guesses which canaries were in. So many right guesses would be rare if epsilon were below "
    "the bound (Steinke, Nasr, Jagielski 2023). No private row takes part, and nothing is charged."
)
CEILING_MEANING = (
    "The ceiling is the bound that the same guesses would give if all were right. Where it lies at or below the claim, "
    "no fault of whatever size could have been shown, and the verdict is not informative. The reference claim is "
    "audited for that reason: there, noise divided by four or missing subsampling is found."
)
DIAGNOSTIC_MEANING = (
    "A diagnostic, not a bound. Noise is measured on canaries that were out, contribution as the distance between the "
    "two groups, both as multiples of what the plan says. Noise five standard errors too small, or a contribution "
    "five too large, fails the audit. The epsilon reads both groups as normal laws: an estimate that decides nothing."
)
SENSITIVITY_MEANING = (
    "Noiseless steps on made-up records, with and without each one, under the plan's clip and clips around the "
    "gradients' lengths. One record may move a step by 1 clip (tolerance {tolerance:g}), and the move must be what the "
    "record contributes alone: otherwise records are coupled, and with other records the move could be larger."
)
INVERSION_MEANING = (
    "A demonstration on made-up records. Weight gradient over bias gradient of one record is its feature vector. From "
    "a cosine of {recovered:g} the record counts as recovered."
)
LIMITS = (
    (
        "An audit can refute a claim; it cannot prove one. A bound far below the claim is normal and does not mean "
        "that the claim could be lowered."
    ),
    (
        "The bound of a correct program is above its claim in at most one audit in twenty; in practice far less often, "
        "because it lies well below the claim. Run a failed audit again before you act on it: a fault fails again."
    ),
    (
        "It audits the training code on this machine. It does not look at the encrypted sum, the ledger, the contracts "
        "or what a department does beside its training."
    ),
    (
        "Canaries train a head on features. Other trained layers are covered by the sensitivity test and by the "
        "preflight before every training, on made-up records only."
    ),
    (
        "The noise is judged by its spread over a few thousand sums. A predictable source with the right spread would "
        "pass."
    ),
)


def write_audit(result: AuditResult, folder: Path) -> None:
    """Write the three files, readable by this account only; older ones of the same names are replaced.

    Raises:
        SetupError: ``home-not-writable``.
        OSError: when the disk is full.
    """
    make_private_folder(folder)
    document = build_document(result)
    replace_private_file(folder / JSON_FILE, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    replace_private_file(folder / HTML_FILE, render_page(document).encode())
    replace_private_file(folder / MARKDOWN_FILE, render_markdown(document).encode())


def build_document(result: AuditResult) -> Document:
    """Put the report of an audit together."""
    sections = (
        Section(anchor="bound", title="Lower bound on epsilon", blocks=_bound_blocks(result)),
        Section(anchor="diagnostic", title="Diagnostic", blocks=_diagnostic_blocks(result)),
        Section(anchor="sensitivity", title="Sensitivity", blocks=_sensitivity_blocks(result)),
        Section(anchor="inversion", title="Gradient inversion", blocks=_inversion_blocks(result)),
        Section(anchor="limits", title="What an audit does not show", blocks=(Items(items=LIMITS),)),
    )
    return Document(
        title=f"CityFed privacy audit: {result.name}",
        subtitle=f"{figures.count(result.canaries)} canaries, {figures.seconds(result.cpu_seconds)} of processor time, "
        f"started {figures.moment(result.started)}.",
        warnings=tuple(failure.text for failure in result.failures),
        tiles=tuple(map(_tile, result.claims)),
        sections=sections,
    )


def lines(result: AuditResult) -> tuple[str, ...]:
    """Return the audit in a few lines for a terminal."""
    claims = [
        f"{item.claim.name}: claim epsilon {item.claim.epsilon:g} at delta {figures.delta(item.claim.delta)}, "
        f"lower bound {_bound(item)} (95 %), ceiling {figures_down(item.bound.ceiling)}: {item.verdict}"
        for item in result.claims
    ]
    move, inversion = result.sensitivity, result.inversion
    return (
        *claims,
        f"sensitivity, engine {move.engine}: {move.move:.4f} of 1 clip, coupling {move.coupling:.1e}",
        f"inversion: cosine {inversion.unprotected:.2f} unprotected, {inversion.protected:.2f} from noised sums",
    )


def figures_down(value: float) -> str:
    """Return a bound with two decimals, rounded down: a lower bound may be under-stated and never over-stated."""
    return f"{int(value * 100) / 100:.2f}"


def _bound(result: ClaimResult) -> str:
    """Return the bound, or the words that stand for none."""
    return figures_down(result.bound.epsilon) if result.bound.epsilon > 0 else "none"


def _tile(result: ClaimResult) -> Tile:
    """Return the answer for one claim."""
    claim = result.claim
    return Tile(
        question=f"Does the {PLAN_WORDS[claim.name]} keep epsilon {claim.epsilon:g}?",
        answer=result.verdict.capitalize(),
        meaning=VERDICT_MEANING[result.verdict],
    )


def _bound_blocks(result: AuditResult) -> tuple[Paragraph | Table, ...]:
    """Return method, bounds and the plans behind them."""
    bounds = Table(
        caption=f"Lower bounds with {100 * CONFIDENCE:g} % confidence",
        header=("Claim", "Epsilon claimed", "Lower bound", "Ceiling", "Guesses", "Right", "Verdict"),
        rows=tuple(
            (
                item.claim.name,
                figures.number(item.claim.epsilon),
                _bound(item),
                figures_down(item.bound.ceiling),
                figures.count(item.bound.guesses),
                figures.count(item.bound.right),
                item.verdict,
            )
            for item in result.claims
        ),
    )
    plans = Table(
        caption="The plans that were run",
        header=("Claim", "Delta", "Sampling rate", "Steps", "Clip", "Noise multiplier"),
        rows=tuple(
            (
                item.claim.name,
                figures.delta(item.claim.delta),
                figures.number(item.claim.privacy.sample_rate),
                figures.count(item.claim.steps),
                figures.number(item.claim.privacy.max_grad_norm),
                figures.number(item.claim.privacy.noise_multiplier),
            )
            for item in result.claims
        ),
    )
    method = Paragraph(text=BOUND_METHOD.format(canaries=figures.count(result.canaries)))
    return (method, bounds, plans, Paragraph(text=CEILING_MEANING))


def _diagnostic_blocks(result: AuditResult) -> tuple[Paragraph | Table, ...]:
    """Return measured noise and contribution, and the estimate."""
    table = Table(
        caption="Measured over planned, with one standard error",
        header=("Claim", "Noise", "Contribution", "Epsilon estimate", "95 % lower end", "Verdict"),
        rows=tuple(
            (
                item.claim.name,
                f"{item.diagnostic.noise:.3f} (error {item.diagnostic.noise_error:.3f})",
                f"{item.diagnostic.contribution:.2f} (error {item.diagnostic.contribution_error:.2f})",
                f"{item.diagnostic.epsilon:.2f}",
                f"{item.diagnostic.epsilon_low:.2f}",
                "deviates" if item.diagnostic.deviates else "as planned",
            )
            for item in result.claims
        ),
    )
    return (Paragraph(text=DIAGNOSTIC_MEANING), table)


def _sensitivity_blocks(result: AuditResult) -> tuple[Paragraph | Table, ...]:
    """Return the largest move."""
    found = result.sensitivity
    table = Table(
        caption=f"Largest move by one record; trained part: {result.trainable}",
        header=("Engine", "Largest move over clip", "Coupling over clip", "Pairs compared", "Verdict"),
        rows=(
            (
                found.engine,
                f"{found.move:.4f}",
                f"{found.coupling:.1e}",
                figures.count(found.comparisons),
                "holds" if found.bounded and found.uncoupled else "does not hold",
            ),
        ),
    )
    return (Paragraph(text=SENSITIVITY_MEANING.format(tolerance=TOLERANCE)), table)


def _inversion_blocks(result: AuditResult) -> tuple[Paragraph | Table, ...]:
    """Return what an observer recovers."""
    found = result.inversion
    table = Table(
        caption="Cosine between the record and what was recovered",
        header=("What the observer sees", "Cosine", "Record recovered"),
        rows=(
            ("the gradient of the record alone", f"{found.unprotected:.3f}", _recovered(found.unprotected)),
            (
                f"best of {found.steps} clipped and noised sums over {found.records} records",
                f"{found.protected:.3f}",
                _recovered(found.protected),
            ),
        ),
    )
    note = "" if found.informative else " Here the attack failed even without protection: not informative."
    return (Paragraph(text=INVERSION_MEANING.format(recovered=RECOVERED) + note), table)


def _recovered(cosine: float) -> str:
    """Return whether a record counts as recovered."""
    return "yes" if cosine >= RECOVERED else "no"
