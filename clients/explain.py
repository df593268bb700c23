"""What the department's commands show: the declaration, the budget, the receipts, in words and numbers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

from clients.binding import Declaration, load_declaration
from clients.config import load_config, load_policy, open_journal
from clients.department import budgets_of
from clients.records import RoundFinished
from shared.audit import ReceiptLine, receipt_line
from shared.codec import decode
from shared.errors import JournalError
from shared.journal import EntryKind
from shared.messages import ClosedRound
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


def budget_status(config_path: Path) -> BudgetStatus:
    """Ask a department's ledger about the data set that it has bound.

    Raises:
        ConfigError: a configuration, policy or binding file is not in order.
        JournalError: the journal is in use by a node, or does not verify.
    """
    config = load_config(config_path)
    policy = load_policy(config_path, config)
    declaration = load_declaration(config_path.parent / config.binding)
    with open_journal(config_path) as journal:
        ledger = PrivacyLedger(journal, lambda: dt.datetime.now(dt.UTC))
        return ledger.status(declaration.dataset, budgets_of(policy.policy))


def budget_lines(status: BudgetStatus) -> list[str]:
    """Say what a budget status means."""
    again = (
        "nothing ran yet"
        if status.next_epsilon is None
        else (f"would make it {status.next_epsilon:.4f}, which {'fits' if status.next_fits else 'does not fit'}")
    )
    return [
        f"Data set {status.dataset}, {status.runs} runs, delta {status.delta:g}:",
        f"  spent by attempts made      epsilon {status.spent_epsilon:.4f}",
        f"  spent or reserved           epsilon {status.reserved_epsilon:.4f}",
        f"  counted against the cap     epsilon {status.filter_epsilon:.4f} of {status.cap:g}"
        + (" (closed by its first plan)" if status.closed else ""),
        f"  if updates were read alone  epsilon {status.lone_share_epsilon:.4f} of {_cap(status.cap_lone_share)}",
        f"  one more run like the last  {again}",
    ]


def _cap(cap: float | None) -> str:
    """Return a cap, or that there is none."""
    return "no cap: shared noise is refused" if cap is None else f"{cap:g}"


def authority_receipts(config_path: Path) -> Iterator[ReceiptLine]:
    """Yield the heads of the authority's journal that this department holds, signature checked on arrival."""
    with open_journal(config_path) as journal:
        for entry in journal.entries(EntryKind.ROUND):
            finished = decode(entry.body, RoundFinished, error=JournalError)
            closed = decode(finished.closed.body, ClosedRound, error=JournalError)
            yield receipt_line("authority", closed.journal_sequence, closed.journal_head)
