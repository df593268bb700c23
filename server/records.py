"""What the authority writes into its journal."""

from __future__ import annotations

from shared.codec import Record
from shared.identity import Signed
from shared.privacy.extras import NoisedMetric


class RunOpened(Record, frozen=True, kw_only=True):
    """A run began: its plan by digest and the cohort asked."""

    run: bytes
    plan_digest: bytes
    cohort: tuple[str, ...]


class RunResumed(Record, frozen=True, kw_only=True):
    """A run goes on after its coordinator was killed; what it had written of this round is written again."""

    run: bytes
    round: int


class EpochReady(Record, frozen=True, kw_only=True):
    """An epoch stands: who takes part, and each member's signed advert, which proves that it does."""

    run: bytes
    epoch: int
    members: tuple[str, ...]
    adverts: dict[str, Signed]


class DepartmentMissing(Record, frozen=True, kw_only=True):
    """A department gave no usable answer in one step; ``status`` is all that the authority knows."""

    run: bytes
    round: int
    step: str
    department: str
    status: str


class RoundDone(Record, frozen=True, kw_only=True):
    """A finished round: survivors, model by hash, every survivor's signed receipt, and the sum's noised metrics."""

    run: bytes
    round: int
    sid: bytes
    survivors: tuple[str, ...]
    model_hash: bytes
    receipts: dict[str, Signed]
    metrics: tuple[NoisedMetric, ...] = ()


class RoundSummary(Record, frozen=True, kw_only=True):
    """A finished round without its vectors: who is in the sum, who dropped out, the new model by hash.

    ``metrics`` are the extra coordinates of the sum, about the model that the round started from.
    """

    round: int
    survivors: tuple[str, ...]
    dropouts: tuple[str, ...]
    model_hash: bytes
    metrics: tuple[NoisedMetric, ...] = ()


class Countersigned(Record, frozen=True, kw_only=True):
    """The departments' countersignatures on a closed round; they hold each journal's head."""

    run: bytes
    round: int
    receipts: dict[str, Signed]


class RoundFailed(Record, frozen=True, kw_only=True):
    """A round that ended without a sum, and why."""

    run: bytes
    round: int
    code: str
    message: str


class ModelReleased(Record, frozen=True, kw_only=True):
    """A model was signed: for whom, with whose attack audits, and by whom if a person's name was asked for."""

    run: bytes
    file_sha256: str
    recipients: tuple[str, ...]
    audited_by: tuple[str, ...]
    approved_by: str


class RunEnded(Record, frozen=True, kw_only=True):
    """The end of a run: ``completed`` or ``failed``."""

    run: bytes
    status: str
    rounds: int
