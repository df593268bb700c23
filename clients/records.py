"""What a department writes into its journal beside privacy charges: one small record per entry kind."""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.codec import Record
from shared.identity import Signed


class RosterSeen(Record, frozen=True, kw_only=True):
    """A roster that was verified here: no lower serial counts any more, even if its offer was refused (protocol 1)."""

    roster: Signed


class KeyApproved(Record, frozen=True, kw_only=True):
    """From here on this is the department's key: a person compared the fingerprint, or the old key vouched for it."""

    department: str
    key: bytes
    means: Literal["fingerprint", "endorsement"]


class EpochOpened(Record, frozen=True, kw_only=True):
    """An epoch this department joined; epoch numbers of a run only grow (protocol 2)."""

    run: bytes
    epoch: int


class StepAnswered(Record, frozen=True, kw_only=True):
    """The once-per-(run, round) record: written and fsynced before the reply's bytes leave (protocol 3)."""

    run: bytes
    round: int
    step: str
    request_hash: bytes
    reply_hash: bytes


class RoundFinished(Record, frozen=True, kw_only=True):
    """The authority's signed account of a round, kept as a receipt against the authority's own journal."""

    run: bytes
    round: int
    closed: Signed


class JournalRestored(Record, frozen=True, kw_only=True):
    """Stands for an entry that was lost with a disk: the backup ended at ``sequence``, others knew of ``newest``.

    As many are written as take the journal beyond every position that others saw; they would refuse it otherwise.
    """

    sequence: int
    newest: int


class HeadsSeen(Record, frozen=True, kw_only=True):
    """The newest ledger position seen of every member (privacy 6, rollback).

    ``adverts`` are the others' signed adverts of a run, once for each epoch: they prove to whoever loses a disk that it
    took part.
    """

    heads: dict[str, int]
    adverts: dict[str, Signed] = msgspec.field(default_factory=dict)


class Refused(Record, frozen=True, kw_only=True):
    """Why this department said no; the coordinator saw only ``status``."""

    step: str
    status: str
    code: str
    message: str


class Approved(Record, frozen=True, kw_only=True):
    """One person's approval of a plan by digest (R10)."""

    digest: bytes
    person: str
    role: str
    author: bool


class PlanRefused(Record, frozen=True, kw_only=True):
    """One person's no to a plan: every approval given before it is withdrawn (R10)."""

    digest: bytes
    person: str
    reason: str
