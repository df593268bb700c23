"""After a lost disk: a backup's journal, and what others can tell of the time since (promises P3 and P5; privacy 6).

The journal of a backup may be older than what left. Nothing goes on silently: every run that may have been at work
since is charged in full and for ever, and where it cannot be established what that costs, the ledger is closed.

Others only hand back what this department signed, so nobody else can make up a run or a position. What they leave out
is not missed here; whose journal others saw further stops at its next run.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from clients.backup import FILES, Backup, key_files, read_backup
from clients.binding import Declaration, load_declaration
from clients.config import ClientConfig, load_config, load_policy, load_trust, read_signed
from clients.department import charge_of
from clients.enrol import CONFIG_FILE
from clients.plans import plan_of_run
from clients.records import JournalRestored, KeyApproved
from clients.restored_files import placed_files, take_back
from shared.audit import ReceiptLine, read_receipt_lines, verify_line
from shared.codec import Record, decode
from shared.errors import ConfigError, JournalError
from shared.identity import DepartmentId
from shared.journal import EntryKind, Head, Journal
from shared.journal_file import lock, logs_beside
from shared.keystore import load_identity
from shared.messages import KeyAdvert
from shared.privacy.ledger import PlanCharge, PrivacyLedger
from shared.private_files import make_private_folder, replace_private_file, sync_file
from shared.roster import KeyState, key_states, open_roster

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


def restore_home(
    home: Path, backup: Path, receipts: Sequence[Path], *, now: dt.datetime, rosters: Sequence[Path] = ()
) -> Restored:
    """Make a department's home again, with a ledger that shows no less than what left; it is stopped until `resume`.

    Files that lie in the home already are kept, such as those of a new enrolment. A restoration that is refused, or cut
    off, leaves no file of its backup there.

    Args:
        home: without a journal; made if it does not exist.
        backup: from :func:`clients.backup.make_backup`.
        receipts: what the authority, and perhaps other departments, know of this journal.
        now: the present time, UTC.
        rosters: signed rosters with keys that came after the backup, each vouched for by the one before.

    Raises:
        ConfigError: ``journal-exists``, ``backup-foreign``, ``keys-missing``, ``receipts-unreadable``,
            ``receipts-implausible``, ``receipt-unsigned``, ``receipt-forged``, ``receipts-incomplete``, or as
            :func:`clients.backup.read_backup`; a file is not in order.
        ContractError: the declaration is not in order.
        ProtocolError: a plan of the backup, or a roster, does not verify.
        JournalError: ``journal-locked`` while a node or another restoration is at work on the journal;
            ``journal-unwritable``; the copy does not verify; ``journal-receipt-mismatch`` if it is not the journal that
            others saw.
        SetupError: ``home-not-writable``.
        OSError: when the disk is full.

    Guarantees:
        As long as one of the receipts names every run that this department took part in, each of them counts in full
        unless the backup knows its clean end. Only what one of this department's own keys signed charges a run or
        closes the ledger. The journal gets its name only when all that is written.
    """
    found = read_backup(backup)
    make_private_folder(home)
    with _held_journal(home, backup):
        config = _prepare(home, backup, found)
        lines = [line for path in receipts for line in read_receipt_lines(path) if line.owner == config.department]
        newest = max((line.sequence for line in lines), default=0)
        if newest > found.sequence + MOST_LOST:
            raise ConfigError(
                "receipts-implausible", f"The receipts name entry {newest}; the backup has {found.sequence}."
            )
        target = home / config.journal
        with placed_files(home, backup, found.files, journal=target) as working:
            with Journal.open(working, owner=config.department) as journal:
                head, keys = journal.head, _own_keys(home, backup, config, journal, rosters)
                for line in lines:
                    if line.label or line.digest or line.run:  # a bare position charges nothing
                        verify_line(line, keys)
                journal.check_receipts(_known(lines, journal))
                ledger = PrivacyLedger(journal, lambda: now)
                charged, closed = _charge(home / CONFIG_FILE, ledger, lines, head, found.made_at)
                while head.sequence < newest and journal.head.sequence <= newest:
                    lost = JournalRestored(sequence=head.sequence, newest=newest)
                    journal.append(EntryKind.REGAINED, lost, now=now)
            _require_whole(working)
            replace_private_file(home / config.stop_file, b"")
            working.replace(target)
            sync_file(target.parent)
    return Restored(sequence=head.sequence, newest=newest, charged=tuple(run.hex() for run in charged), closed=closed)


@contextlib.contextmanager
def _held_journal(home: Path, backup: Path) -> Iterator[None]:
    """Hold the lock of the journal that a home does not have yet: no node begins one, nor does another restoration."""
    descriptor = lock(home / _config_without_journal(home, backup).journal)
    try:
        yield
    finally:
        os.close(descriptor)


def _prepare(home: Path, backup: Path, found: Backup) -> ClientConfig:
    """Refuse a home that this backup cannot become, before a file of it is put there."""
    config = _config_without_journal(home, backup)  # of a home with a journal nothing is taken back
    take_back(home, journal=home / config.journal)  # of an attempt that was cut off
    config = _config_without_journal(home, backup)
    if config.department != found.department:
        raise ConfigError("backup-foreign", f"{backup} is of {found.department}, {home} of {config.department}.")
    if missing := [name for name in key_files(config) if name not in found.files and not (home / name).exists()]:
        raise ConfigError(
            "keys-missing", f"{home / missing[0]} is not there and not in the backup: enrol into a new folder first."
        )
    return config


def _require_whole(working: Path) -> None:
    """Refuse a journal of which a part still lies in the database's log, which would be left behind."""
    if logs_beside(working):
        raise JournalError("journal-unwritable", f"The journal {working} cannot be written: its log was not taken in.")


def _config_without_journal(home: Path, backup: Path) -> ClientConfig:
    """Read the configuration that counts in a home that is restored, in which there is no journal yet."""
    own = home / CONFIG_FILE
    config = load_config(own if own.exists() else backup / FILES / CONFIG_FILE)
    journal = home / config.journal
    if found := [path for path in (journal, *logs_beside(journal)) if path.exists()]:
        raise ConfigError("journal-exists", f"{found[0]} exists; a journal is never overwritten.")
    return config


def _known(lines: Iterable[ReceiptLine], journal: Journal) -> list[Head]:
    """The receipts that the backup's journal has to agree with; of what an earlier restoration found lost, none is."""
    regained = [decode(item.body, JournalRestored, error=JournalError) for item in journal.entries(EntryKind.REGAINED)]
    return [
        line.head()
        for line in lines
        if line.digest
        and line.sequence <= journal.head.sequence
        and not any(item.sequence < line.sequence <= item.newest for item in regained)
    ]


def _own_keys(
    home: Path, backup: Path, config: ClientConfig, journal: Journal, rosters: Sequence[Path]
) -> frozenset[bytes]:
    """Return every key that is or was this department's: people here approved it, or the one before vouches for it."""
    name = DepartmentId(config.department)
    keys = {load_identity(home / config.identity).public}
    for known in (config, load_config(backup / FILES / CONFIG_FILE)):
        keys |= {key for member, key in load_trust(known).pins.items() if member == name}
    for entry in journal.entries(EntryKind.KEY):
        approved = decode(entry.body, KeyApproved, error=JournalError)
        keys |= {approved.key} if approved.department == name else set()
    trusted = load_trust(config).roster_key
    opened = [open_roster(read_signed(path), roster_key=trusted, newest=None) for path in rosters]
    for roster in sorted(opened, key=lambda item: item.serial):
        if any(key_states(roster, {name: old}).get(name) is KeyState.ENDORSED for old in keys):
            keys.add(roster.members[name])
    return frozenset(keys)


def _charge(
    config_path: Path, ledger: PrivacyLedger, lines: Sequence[ReceiptLine], head: Head, made_at: dt.datetime
) -> tuple[tuple[bytes, ...], str]:
    """Charge every run that may have been at work since, or close the ledger; returns the runs, and why it closed."""
    settled = {charge.run for charge in ledger.settled_charges()}
    later = {line.run_id() for line in lines if line.run and line.sequence > head.sequence}
    _require_complete(lines, settled | later)
    if later & settled:
        raise ConfigError("receipt-forged", "A receipt from after the backup names a run that had ended here before.")
    asked = {line.run_id() for line in lines if line.run and line.still_open(made_at - CLOCKS_APART)}
    at_work = later | (asked - settled) | {charge.run for charge in ledger.open_charges()}
    if not at_work and any(line.sequence > head.sequence for line in lines):
        raise ConfigError("receipts-incomplete", "Somebody knows of a later entry, and no receipt names a run for it.")
    charged: list[bytes] = []
    closed = ""
    for run in sorted(at_work):
        charge = ledger.charge_of(run) or _full_charge(config_path, run, _policies_of(run, lines))
        if charge is None:
            closed = "restore-plan-unknown"
        else:
            ledger.restore(charge)
            charged.append(run)
    if closed:
        ledger.close(closed)
    return tuple(charged), closed


def _require_complete(lines: Sequence[ReceiptLine], runs: Iterable[bytes]) -> None:
    """Refuse receipts without the advert of a run that this department took part in: they are not all there are."""
    proven = {line.run_id() for line in lines if line.label == "key-advert"}
    if not set(runs) <= proven:
        raise ConfigError(
            "receipts-incomplete",
            "The receipts lack the advert of a run that this department was in: ask the authority for all of them.",
        )


def _policies_of(run: bytes, lines: Sequence[ReceiptLine]) -> frozenset[bytes]:
    """Return the digests of the policies under which this department signed that it takes part in a run."""
    signed = [line.signed for line in lines if line.label == "key-advert" and line.run_id() == run]
    return frozenset(decode(item.body, KeyAdvert, error=JournalError).policy_hash for item in signed if item)


def _full_charge(config_path: Path, run: bytes, policies: frozenset[bytes]) -> PlanCharge | None:
    """Return what a run costs that the backup's ledger does not know; None where that cannot be established.

    A plan names no data set; the policy that the department's own adverts name does (R06).
    """
    config = load_config(config_path)
    declaration = load_declaration(config_path.parent / config.binding)
    signed = load_policy(config_path, config)
    if policies != {signed.digest} or declaration.dataset != signed.policy.dataset:
        return None
    try:
        plan = plan_of_run(config_path, run)
    except ConfigError as error:
        if error.code != "plan-unknown":
            raise
        return None
    terms = plan.datasets.get(DepartmentId(config.department))
    same = terms is not None and _is_about(declaration, terms.contract_hash, terms.public_size, plan.privacy.unit)
    return charge_of(plan, declaration, signed.policy) if same else None


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
