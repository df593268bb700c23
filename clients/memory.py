"""What a department remembers across restarts, rebuilt from its journal when it opens.

The once-per-(run, round) rule of protocol 3 lives here: a step that was answered stays answered, whatever
epoch or sid the next request names.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from clients.outbox import decisions_beside, leave_decision, read_decisions
from clients.records import (
    Approved,
    EpochOpened,
    HeadsSeen,
    KeyApproved,
    PlanRefused,
    Refused,
    RosterSeen,
    RoundFinished,
    StepAnswered,
)
from policies.facts import Approval
from shared.codec import Record, decode
from shared.errors import JournalError, ProtocolError
from shared.identity import DepartmentId, Roster, Signed
from shared.journal import EntryKind, Journal
from shared.private_files import sync_file


@dataclass
class RunMemory:
    """One run as the journal knows it."""

    last_epoch: int = 0
    answered: set[tuple[int, str]] = field(default_factory=set)
    updated: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    last_round: int = 0

    def answer(self, round_number: int, step: str) -> None:
        """Remember an answered step; ``last_round`` is the highest round with one."""
        self.answered.add((round_number, step))
        self.last_round = max(self.last_round, round_number)
        if step == "update":
            self.updated.add(round_number)

    @property
    def aborted_rounds(self) -> int:
        """Rounds with an update, but without shares given for a sum or without the authority's account of it.

        An account alone says nothing: the authority can sign one of a sum that never was.
        """
        revealed = {number for number, step in self.answered if step == "reveal"}
        return len(self.updated - (self.finished & revealed))


class Memory:
    """Typed, durable writes to the journal and the state that follows from them.

    Attributes:
        runs: what is known of each run.
        heads: the newest journal position seen of each member.
        approvals: every person's approval of a plan; a withdrawn one has no role and still names the author.
        refusals: who said no to a plan, by digest; a no stands until the same person approves.
        roster: the verified roster with the highest serial; None before the first.
        keys: keys approved since the configuration was written, by department.

    Args:
        journal: this department's own; one that was opened to read needs an outbox.
        clock: returns the present time, UTC.
        outbox: folder in which decisions wait for the node that holds the journal; None for the node itself.
    """

    def __init__(self, journal: Journal, clock: Callable[[], dt.datetime], *, outbox: Path | None = None) -> None:
        self.journal = journal
        self._outbox = outbox
        self._clock = clock
        self.runs: dict[bytes, RunMemory] = {}
        self.heads: dict[str, int] = {}
        self.approvals: list[Approved] = []
        self.refusals: dict[bytes, set[str]] = {}
        self.roster: Roster | None = None
        self.keys: dict[DepartmentId, bytes] = {}
        self._folded = 0  # the last position that is in all that
        if outbox is None:
            self._fold()
            return
        for waiting in decisions_beside(outbox, self._fold):
            if not self._is_outdated(waiting.body):
                self._apply(waiting.body)

    def run(self, run: bytes) -> RunMemory:
        """Return what is known of a run."""
        return self.runs.setdefault(run, RunMemory())

    def write(self, kind: EntryKind, body: Record) -> None:
        """Append durably, then remember; with an outbox the entry is left there for whoever holds the journal.

        Raises:
            JournalError: when the entry could not be made durable; nothing is remembered then.
        """
        if self._outbox is None:
            self.journal.append(kind, body, now=self._clock())
        else:
            leave_decision(self._outbox, kind, body)
        self._apply(body)

    def take_over(self, outbox: Path) -> bool:
        """Append what people decided while this journal was held, and return whether a newer roster is among it.

        Raises:
            JournalError: ``decision-malformed``, or an entry could not be made durable; it keeps waiting then.
            OSError: the folder cannot be written.
        """
        newer = False
        for waiting in read_decisions(outbox):
            if not self._is_outdated(waiting.body):
                self.write(waiting.kind, waiting.body)
                newer = newer or isinstance(waiting.body, RosterSeen)
            waiting.path.unlink()
            sync_file(outbox)  # one that came back after a power cut would count again, over what was decided since
        return newer

    def _is_outdated(self, body: Record) -> bool:
        """Whether a roster that waited is no newer than the one that was seen meanwhile."""
        if not isinstance(body, RosterSeen) or self.roster is None:
            return False
        return decode(body.roster.body, Roster, error=JournalError).serial <= self.roster.serial

    def answer(self, run: bytes, round_number: int, step: str, *, request_hash: bytes, reply_hash: bytes) -> None:
        """Log an answer by the SHA-256 of request and reply, before its bytes leave (protocol 3).

        Raises:
            ProtocolError: ``step-already-answered`` when this step of the round was answered before.
            JournalError: when the entry could not be made durable; the reply must not leave.
        """
        self.require_open(run, round_number, step)
        hashes = {"request_hash": request_hash, "reply_hash": reply_hash}
        self.write(EntryKind.ANSWERED, StepAnswered(run=run, round=round_number, step=step, **hashes))

    def require_open(self, run: bytes, round_number: int, step: str) -> None:
        """Refuse a step that was answered before, and an update for a round that is not new.

        Raises:
            ProtocolError: ``step-already-answered``, ``round-not-new``.
        """
        known = self.run(run)
        if (round_number, step) in known.answered:
            raise ProtocolError("step-already-answered", f"Step {step} of round {round_number} was answered before.")
        if step == "update" and round_number <= known.last_round:
            raise ProtocolError(
                "round-not-new", f"Round {round_number} is not above round {known.last_round}, already answered."
            )

    def see_roster(self, signed: Signed, roster: Roster) -> bool:
        """Store a verified roster durably if it is newer than the last one, and return whether it is."""
        newer = self.roster is None or roster.serial > self.roster.serial
        if newer:
            self.write(EntryKind.ROSTER, RosterSeen(roster=signed))
        return newer

    def see_heads(self, heads: Mapping[str, tuple[int, bytes]], adverts: Mapping[str, Signed]) -> None:
        """Store the newest ledger position of each member durably, with adverts that were not stored yet."""
        positions = {name: sequence for name, (sequence, _) in heads.items()}
        self.write(EntryKind.HEADS, HeadsSeen(heads=positions, adverts=dict(adverts)))

    def approvals_of(self, digest: bytes) -> tuple[Approval, ...]:
        """Return the approvals of one plan digest; while somebody's refusal stands, none of them has a role."""
        refused = bool(self.refused_by(digest))
        return tuple(
            Approval(person=item.person, role="" if refused else item.role, digest=item.digest, author=item.author)
            for item in self.approvals
            if item.digest == digest
        )

    def refused_by(self, digest: bytes) -> tuple[str, ...]:
        """Return the people whose refusal of a plan stands."""
        return tuple(sorted(self.refusals.get(digest, ())))

    def _fold(self) -> None:
        """Fold what the journal has and was not read yet."""
        for entry in self.journal.entries(after=self._folded):
            record_type = _RECORDS.get(entry.kind)
            if record_type is not None:
                self._apply(decode(entry.body, record_type, error=JournalError))
            self._folded = entry.sequence

    def _apply(self, body: Record) -> None:
        """Fold one record into the state."""
        if isinstance(body, RosterSeen):
            self.roster = decode(body.roster.body, Roster, error=JournalError)
        elif isinstance(body, KeyApproved):
            self.keys[DepartmentId(body.department)] = body.key
        elif isinstance(body, EpochOpened):
            known = self.run(body.run)
            known.last_epoch = max(known.last_epoch, body.epoch)
        elif isinstance(body, StepAnswered):
            self.run(body.run).answer(body.round, body.step)
        elif isinstance(body, RoundFinished):
            self.run(body.run).finished.add(body.round)
        elif isinstance(body, HeadsSeen):
            for name, sequence in body.heads.items():
                self.heads[name] = max(sequence, self.heads.get(name, -1))
        elif isinstance(body, Approved):
            self.approvals.append(body)
            self.refusals.get(body.digest, set()).discard(body.person)
        elif isinstance(body, PlanRefused):
            self.refusals.setdefault(body.digest, set()).add(body.person)
            self.approvals = [_withdrawn(item) if item.digest == body.digest else item for item in self.approvals]


def _withdrawn(approval: Approved) -> Approved:
    """An approval that counts no more; who wrote the plan stays its author."""
    return msgspec.structs.replace(approval, role="")


_RECORDS: dict[str, type[Record]] = {
    EntryKind.ROSTER: RosterSeen,
    EntryKind.KEY: KeyApproved,
    EntryKind.EPOCH: EpochOpened,
    EntryKind.ANSWERED: StepAnswered,
    EntryKind.ROUND: RoundFinished,
    EntryKind.HEADS: HeadsSeen,
    EntryKind.APPROVAL: Approved,
    EntryKind.PLAN_REFUSED: PlanRefused,
    EntryKind.REFUSAL: Refused,
}
