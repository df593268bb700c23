"""After a lost disk: a backup's journal, and what others can tell of the time since (promises P3 and P5; privacy 6).

The journal of a backup may be older than what left. Nothing goes on silently: every run that may have been at work
since is charged in full and for ever, and where it cannot be established what ran, the ledger is closed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from clients.backup import FILES, JOURNAL, Backup, key_files, read_backup
from clients.binding import Declaration, load_declaration
from clients.config import ClientConfig, load_config, load_policy, read_file
from clients.department import charge_of
from clients.enrol import CONFIG_FILE
from clients.plans import plan_of_run
from clients.records import JournalRestored
from shared.audit import ReceiptLine, read_receipt_lines
from shared.codec import Record
from shared.errors import ConfigError
from shared.identity import DepartmentId
from shared.journal import EntryKind, Head, Journal, verify_journal
from shared.privacy.ledger import PlanCharge, PrivacyLedger
from shared.private_files import make_private_folder, replace_private_file

CLOCKS_APART: Final = dt.timedelta(days=1)
"""How far the clocks of department and authority may be apart when it is asked what ran after a backup."""

MOST_LOST: Final = 100_000
"""Entries that a journal may have grown by since its backup; far more than runs and decisions of years write."""


class Restored(Record, frozen=True, kw_only=True):
    """What a restoration found.

    Attributes:
        sequence: last position of the backup's journal.
        newest: newest position that others know of.
        charged: runs that were charged in full, in hex.
        closed: why the ledger was closed; empty if it was not.
    """

    sequence: int
    newest: int
    charged: tuple[str, ...]
    closed: str


def restore_home(home: Path, backup: Path, receipts: Sequence[Path], *, now: dt.datetime) -> Restored:
    """Make a department's home again, with a ledger that shows no less than what left; it is stopped until `resume`.

    Files that lie in the home already are kept, such as those of a new enrolment.

    Args:
        home: without a journal; made if it does not exist.
        backup: from :func:`clients.backup.make_backup`.
        receipts: what the authority, and perhaps other departments, know of this journal.
        now: the present time, UTC.

    Raises:
        ConfigError: ``journal-exists``, ``keys-missing``, ``backup-foreign``, ``receipts-unreadable``,
            ``receipts-implausible``, ``receipts-incomplete``, or as
            :func:`clients.backup.read_backup`; a file is not in order.
        ContractError: the declaration is not in order.
        ProtocolError: a plan of the backup does not verify.
        JournalError: the copy does not verify; ``journal-receipt-mismatch`` if it is not the journal that others saw.
        SetupError: ``home-not-writable``.

    Guarantees:
        As long as one of the receipts names every run that was opened, each of them counts in full unless the backup
        knows its clean end. The journal gets its name only when all that is written.
    """
    found = read_backup(backup)
    config = _restore_files(home, backup, found)
    target = home / config.journal
    lines = [line for path in receipts for line in read_receipt_lines(path) if line.owner == config.department]
    newest = max((line.sequence for line in lines), default=0)
    if newest > found.sequence + MOST_LOST:
        raise ConfigError("receipts-implausible", f"The receipts name entry {newest}; the backup has {found.sequence}.")
    working = target.with_name(f"{target.name}.restoring")
    for left in home.glob(f"{working.name}*"):  # of an attempt that was cut off, with what the database keeps beside it
        left.unlink()
    replace_private_file(working, read_file(backup / JOURNAL))
    head = verify_journal(working, owner=config.department, receipts=_known(lines, found.sequence)).head
    with Journal.open(working, owner=config.department) as journal:
        ledger = PrivacyLedger(journal, lambda: now)
        charged, closed = _charge(home / CONFIG_FILE, ledger, lines, head, found.made_at)
        while head.sequence < newest and journal.head.sequence <= newest:
            lost = JournalRestored(sequence=head.sequence, newest=newest)
            journal.append(EntryKind.REGAINED, lost, now=now)
    replace_private_file(home / config.stop_file, b"")
    working.replace(target)
    working.with_name(f"{working.name}.lock").unlink()
    return Restored(sequence=head.sequence, newest=newest, charged=tuple(run.hex() for run in charged), closed=closed)


def _restore_files(home: Path, backup: Path, found: Backup) -> ClientConfig:
    """Put the files of a backup into a home, beside what lies there."""
    make_private_folder(home)
    for name in found.files:
        if not (home / name).exists():
            make_private_folder((home / name).parent)
            replace_private_file(home / name, read_file(backup / FILES / name))
    config = load_config(home / CONFIG_FILE)
    if config.department != found.department:
        raise ConfigError("backup-foreign", f"{backup} is of {found.department}, {home} of {config.department}.")
    if (home / config.journal).exists():
        raise ConfigError("journal-exists", f"{home / config.journal} exists; a journal is never overwritten.")
    if missing := [name for name in key_files(config) if not (home / name).exists()]:
        raise ConfigError(
            "keys-missing", f"{home / missing[0]} is not there and not in the backup: enrol into a new folder first."
        )
    return config


def _known(lines: Iterable[ReceiptLine], last: int) -> list[Head]:
    """The receipts that the backup's journal has to agree with."""
    return [line.head() for line in lines if line.digest and line.sequence <= last]


def _charge(
    config_path: Path, ledger: PrivacyLedger, lines: Sequence[ReceiptLine], head: Head, made_at: dt.datetime
) -> tuple[tuple[bytes, ...], str]:
    """Charge every run that may have been at work since, or close the ledger; returns the runs, and why it closed."""
    settled = {charge.run for charge in ledger.settled_charges()}
    _require_complete(settled, lines)
    later = {line.run_id() for line in lines if line.sequence > head.sequence and line.run}
    asked = {line.run_id() for line in lines if line.run and line.still_open(made_at - CLOCKS_APART)}
    still_open = {charge.run for charge in ledger.open_charges()}
    charged: list[bytes] = []
    closed = "" if _is_explained(lines, head) else "restore-unexplained"
    for run in sorted(later | (asked - settled) | still_open):
        charge = ledger.charge_of(run) or _full_charge(config_path, run)
        if charge is None:
            closed = closed or "restore-plan-unknown"
        else:
            ledger.restore(charge)
            charged.append(run)
    if closed:
        ledger.close(closed)
    return tuple(charged), closed


def _require_complete(settled: Iterable[bytes], lines: Sequence[ReceiptLine]) -> None:
    """Refuse receipts that do not know of a run that ended here: they are not all there are."""
    named = {line.run_id() for line in lines}
    if not set(settled) <= named:
        raise ConfigError(
            "receipts-incomplete",
            "The receipts do not name every run of the backup: ask the authority for all of them.",
        )


def _is_explained(lines: Sequence[ReceiptLine], head: Head) -> bool:
    """Whether a run is named at or above every position that lies beyond the backup."""
    named = max((line.sequence for line in lines if line.run), default=0)
    return all(line.sequence <= max(named, head.sequence) for line in lines)


def _full_charge(config_path: Path, run: bytes) -> PlanCharge | None:
    """Return what a run costs that the backup's ledger does not know; None where that cannot be established."""
    config = load_config(config_path)
    declaration = load_declaration(config_path.parent / config.binding)
    policy = load_policy(config_path, config).policy
    try:
        plan = plan_of_run(config_path, run)
    except ConfigError as error:
        if error.code != "plan-unknown":
            raise
        return None
    terms = plan.datasets.get(DepartmentId(config.department))
    same = terms is not None and _is_about(declaration, terms.contract_hash, terms.public_size, plan.privacy.unit)
    return charge_of(plan, declaration, policy) if same else None


def _is_about(declaration: Declaration, contract_hash: str, public_size: int, unit: str) -> bool:
    """Whether a plan was made for the data set that the backup has bound."""
    mine = (declaration.contract_hash, declaration.public_size, declaration.unit)
    return mine == (contract_hash, public_size, unit)


def restored_lines(restored: Restored) -> list[str]:
    """Say what a restoration found, and what to do."""
    lines = [f"The backup's journal ends at entry {restored.sequence}; others know of entry {restored.newest}."]
    lines += [f"  charged in full, and over here: run {run[:16]}" for run in restored.charged]
    if restored.closed:
        lines.append(f"The ledger is CLOSED: no data set of it takes part in anything any more. [{restored.closed}]")
    elif not restored.charged:
        lines.append("Nothing was at work since: the ledger goes on.")
    return [*lines, "The department is stopped. Look at roster, plans and budget, then `cityfed-client resume`."]
