"""What the department's commands show: the declaration, the budget, the receipts, in words and numbers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from clients.binding import Declaration, load_declaration
from clients.config import load_config, load_policy, read_journal
from clients.department import budgets_of, population_of
from clients.desk import open_memory
from clients.plans import Inspection, PlanLine
from clients.records import HeadsSeen, RoundFinished
from policies.explain import as_table
from policies.policy import Policy
from shared.audit import ReceiptLine, receipt_line
from shared.codec import decode
from shared.errors import JournalError
from shared.journal import EntryKind
from shared.messages import ClosedRound
from shared.plan import Plan
from shared.privacy.ledger import BudgetStatus, PrivacyLedger


def declaration_lines(declaration: Declaration) -> list[str]:
    """Say what a data check found: rule names and counts, never values."""
    failures = [f"  {item.rule} of {item.column}: {item.count}" for item in declaration.failures]
    verdict = (
        "The policy's rules on contents are satisfied."
        if declaration.judged_by
        else ("No policy was asked: name --config before a node may use this data set.")
    )
    usable = f"{declaration.rows_usable} usable, of {declaration.units} {declaration.unit}s"
    return [
        f"Data set {declaration.dataset}: {declaration.rows_checked} rows checked, {usable}.",
        f"Public size, told to everybody from now on: {declaration.public_size}.",
        f"Contract hash: {declaration.contract_hash}",
        f"Rules broken: {'none' if not failures else len(failures)}",
        *failures,
        verdict,
    ]


def budget_status(config_path: Path, *, now: dt.datetime) -> BudgetStatus:
    """Ask a department's ledger about the data set that it has bound.

    Args:
        config_path: this department's ``client.toml``.
        now: the present time, UTC.

    Raises:
        ConfigError: a configuration, policy or binding file is not in order.
        JournalError: the journal does not verify.
    """
    config = load_config(config_path)
    policy = load_policy(config_path, config)
    declaration = load_declaration(config_path.parent / config.binding)
    with open_memory(config_path, lambda: now) as memory:
        ledger = PrivacyLedger(memory.journal, lambda: now)
        return ledger.status(declaration.dataset, budgets_of(policy.policy), population=population_of(policy.policy))


def budget_lines(status: BudgetStatus) -> list[str]:
    """Say what a budget status means."""
    again = (
        "nothing ran yet"
        if status.next_epsilon is None
        else f"epsilon {status.next_epsilon:.4f} would count for ever; {'fits' if status.next_fits else 'does not fit'}"
    )
    least = "no noise is enough" if status.next_noise_multiplier is None else f"{status.next_noise_multiplier:.4f}"
    return [
        f"Data set {status.dataset}, {status.runs} runs, delta {status.delta:g}:",
        f"  spent by attempts made      epsilon {status.spent_epsilon:.4f}",
        f"  spent or reserved           epsilon {status.reserved_epsilon:.4f}",
        f"  if exchanged, not removed   epsilon {status.replace_one_epsilon:.4f} (replace-one; no cap)",
        "  counted against the caps" + _closed(status),
        *(f"    {line.scope}: epsilon {line.found:.4f} of {line.limit:g}" for line in status.lines),
        *([] if status.cap_lone_share is not None else [f"  if updates were read alone  {_uncapped(status)}"]),
        f"  one more run like the last  {again}",
        *([] if status.next_epsilon is None else [f"  noise multiplier it needs   {least}"]),
    ]


def _closed(status: BudgetStatus) -> str:
    """Say why nothing more fits, if nothing does."""
    if status.lost:
        return " (CLOSED: what was spent before a disk was lost cannot be established)"
    return " (the lifetime was closed by its first plan)" if status.closed else ""


def _uncapped(status: BudgetStatus) -> str:
    """Say what lone shares would cost where nothing caps them; with a cap they have lines of their own."""
    return f"epsilon {status.lone_share_epsilon:.4f} (no cap: shared noise is refused)"


def plan_lines(lines: Sequence[PlanLine]) -> list[str]:
    """Say which plans lie here and what is the matter with each."""
    return [
        f"{item.digest}  {item.state}"
        + (f"  {item.name} for {item.purpose}, until {item.valid_until}" if item.name else "")
        for item in lines
    ] or ["There is no plan."]


def inspection_lines(found: Inspection, policy: Policy) -> list[str]:
    """Say everything about a plan that a person weighs, and every rule's finding."""
    plan, privacy, sum_of = found.plan, found.plan.privacy, found.plan.aggregation
    given = ", ".join(f"{person} ({role})" for person, role in found.approvals) or "nobody yet"
    return [
        f"Plan {plan.name}, approval {plan.approval}, valid {plan.valid_from} to {plan.valid_until}",
        f"  digest        {found.digest}",
        f"  purpose       {plan.purpose}",
        f"  columns       learns {plan.task.label} from {', '.join(plan.task.features)}",
        f"  contract      {found.contract_hash}",
        f"  public size   {found.public_size}",
        f"  cohort        {', '.join(plan.cohort)}; readable as a sum over at least {sum_of.min_contributors}",
        f"  recipients    {plan.release.in_words()}",
        f"  release       needs {plan.release.demands()}",
        f"  model         {plan.model.architecture}, {plan.model.trainable}, {plan.layout.total_size} numbers",
        f"  training      {plan.rounds} rounds and {plan.spare_attempts} spare, {privacy.steps} steps each",
        f"  privacy       epsilon {found.epsilon_asked:g} and delta {privacy.budget.delta:g} asked",
        f"                epsilon {found.epsilon_computed:.4f} as computed here",
        f"  budget        epsilon {found.epsilon_left:.4f} left of {found.epsilon_cap:g}",
        "                what would count with this plan:",
        *(f"                  {line.scope}: epsilon {line.found:.4f} of {line.limit:g}" for line in found.budgets),
        *(["                  it would be the last plan: it closes the lifetime"] if found.closes_lifetime else []),
        f"  leaves here   at most {found.updates} encrypted updates of {found.update_bytes} bytes",
        f"  metrics       {_metrics(plan)}",
        "  besides       keys, hashes, signatures, journal positions: nothing computed from a record",
        f"  approved by   {given}",
        *([f"  refused by    {', '.join(found.refused_by)}"] if found.refused_by else []),
        as_table(found.decision, policy),
    ]


def _metrics(plan: Plan) -> str:
    """Name the numbers about units that ride in the update, with their noise."""
    noised = [f"{extra.name} with noise of stddev {extra.noise_stddev:.4g} each round" for extra in plan.layout.extras]
    return ", ".join(noised) or "none"


def others_receipts(config_path: Path) -> Iterator[ReceiptLine]:
    """Yield what this department knows of others: runs of the members, how far they had gone, the authority's heads.

    The signatures were checked on arrival; of the members' positions nothing signed is kept.
    """
    with read_journal(config_path) as journal:
        ended, closed = dict[bytes, str](), list[ReceiptLine]()
        for entry in journal.entries(EntryKind.ROUND):
            finished = decode(entry.body, RoundFinished, error=JournalError)
            if decode(finished.closed.body, ClosedRound, error=JournalError).final:
                ended[finished.run] = entry.time
            closed.append(receipt_line("round-closed", finished.closed, run=finished.run))
        seen = [decode(entry.body, HeadsSeen, error=JournalError) for entry in journal.entries(EntryKind.HEADS)]
    adverts = [receipt_line("key-advert", signed, run=b"") for item in seen for signed in item.adverts.values()]
    for line in {(line.owner, line.run): line for line in reversed(adverts)}.values():  # the first of each run
        yield msgspec.structs.replace(line, until=ended.get(line.run_id(), ""))
    positions = dict[str, int]()
    for item in seen:
        positions |= {name: max(at, positions.get(name, 0)) for name, at in item.heads.items()}
    yield from (ReceiptLine(owner=name, sequence=at, digest="") for name, at in sorted(positions.items()))
    yield from closed
