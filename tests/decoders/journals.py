"""The body of every journal entry, and a journal file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

from clients import records as client_records
from server import records as server_records
from shared.codec import Record
from shared.identity import sign_record
from shared.journal import EntryKind, Journal, JournalEntry
from shared.privacy.accountant import event_of
from shared.privacy.charges import Budgets, PlanCharge
from shared.privacy.ledger import AttemptBurned, ChargeReserved, ChargeRestored, LedgerClosed, RunSettled
from tests.decoders.messages import NAMES, OFFICE, closed_round, frozen_signed
from tests.server.small_plan import PRIVACY

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def journal_bodies() -> Iterator[tuple[type[Record], Record]]:
    """The body of every entry kind."""
    run, closed = bytes(32), sign_record(OFFICE, "round-closed", closed_round())
    charge = PlanCharge(
        run=run,
        dataset="reports",
        unit="record",
        event=event_of(PRIVACY, 1),
        attempts=3,
        delta=1e-4,
        accountant=PRIVACY.accountant,
        public_size=100,
    )
    budgets = Budgets(run=PRIVACY.budget, lifetime=PRIVACY.budget)
    hashes = {"request_hash": bytes(32), "reply_hash": bytes(32)}
    bodies: list[Record] = [
        client_records.RosterSeen(roster=frozen_signed("roster")),
        client_records.KeyApproved(department="health", key=bytes(32), means="fingerprint"),
        client_records.EpochOpened(run=run, epoch=1),
        client_records.StepAnswered(run=run, round=1, step="update", **hashes),
        client_records.RoundFinished(run=run, round=1, closed=closed),
        client_records.HeadsSeen(heads={"health": 3}, adverts={"health": frozen_signed("advert")}),
        client_records.JournalRestored(sequence=3, newest=9),
        client_records.Refused(step="update", status="refused", code="sid-mismatch", message="No."),
        client_records.Approved(digest=run, person="ann", role="steward", author=False),
        server_records.RunOpened(run=run, plan_digest=run, cohort=NAMES),
        server_records.EpochReady(run=run, epoch=1, members=NAMES, adverts={"health": frozen_signed("advert")}),
        server_records.DepartmentMissing(run=run, round=1, step="update", department="health", status="no-answer"),
        server_records.RoundDone(
            run=run, round=1, sid=run, survivors=NAMES, model_hash=run, receipts={"health": frozen_signed("receipt")}
        ),
        server_records.Countersigned(run=run, round=1, receipts={"health": frozen_signed("receipt")}),
        server_records.RoundFailed(run=run, round=1, code="below-threshold", message="Too few."),
        server_records.ModelReleased(
            run=run, file_sha256="0" * 64, recipients=NAMES, audited_by=("health",), approved_by="ann"
        ),
        server_records.RunEnded(run=run, status="completed", rounds=2),
        ChargeReserved(charge=charge, budgets=budgets, closes_lifetime=False),
        AttemptBurned(run=run, round=1),
        RunSettled(run=run),
        ChargeRestored(charge=charge),
        LedgerClosed(reason="restore-plan-unknown"),
    ]
    yield from ((type(body), body) for body in bodies)


def journal_file(path: Path) -> bytes:
    with Journal.open(path, owner="health") as journal:
        for _ in range(3):
            journal.append(
                EntryKind.COUNTERSIGNED, server_records.RunEnded(run=bytes(32), status="", rounds=1), now=NOW
            )
    return path.read_bytes()


def entry(body: bytes) -> JournalEntry:
    return JournalEntry(
        sequence=1, kind="decision", time="", salt=bytes(16), body=body, previous=bytes(32), digest=bytes(32)
    )
