"""Everything that fixes a round, in one record whose hash is the round's ``sid`` (protocol 3)."""

from __future__ import annotations

from collections.abc import Sequence

from shared.codec import Record, encode, sha256
from shared.errors import ProtocolError
from shared.mechanisms import MECHANISMS
from shared.plan import Plan
from shared.secagg.ring import fraction_bits


class RoundTerms(Record, frozen=True, kw_only=True):
    """What all participants of a round must agree on; a difference anywhere gives another ``sid``.

    ``participants`` are sorted by name, which is roster order; ``dimension`` counts coordinates with the extra ones;
    ``bound`` is what a participant is allotted in the ring, exact in float32: R, and with shared noise its part of the
    room for the noise as well.
    """

    run: bytes
    plan_digest: bytes
    package_digest: str
    epoch_id: bytes
    round: int
    participants: tuple[str, ...]
    model_hash: bytes
    layout_digest: bytes
    dimension: int
    ring_bits: int
    fraction_bits: int
    bound: float
    threshold: int
    min_contributors: int
    max_colluders: int
    privacy_digest: bytes

    def __post_init__(self) -> None:
        count = len(self.participants)
        hashes = (self.run, self.plan_digest, self.epoch_id, self.model_hash, self.layout_digest, self.privacy_digest)
        if any(len(value) != 32 for value in hashes):
            raise ValueError("every hash of a round's terms has 32 bytes")
        if list(self.participants) != sorted(set(self.participants)):
            raise ValueError("participants are sorted by name, none twice")
        if self.round < 1 or self.dimension < 1:
            raise ValueError("`round` and `dimension` are at least 1")
        if self.max_colluders < 0 or not 2 <= self.threshold <= self.min_contributors <= count:
            raise ValueError("2 <= `threshold` <= `min_contributors` <= number of participants")
        if self.min_contributors < self.max_colluders + 2 or 2 * self.threshold <= count + self.max_colluders:
            raise ValueError("`min_contributors` >= c + 2 and 2 `threshold` > number of participants + c")
        if self.ring_bits != 32 or self.fraction_bits != fraction_bits(count, self.bound):
            raise ValueError("the ring has 32 bits and the fraction bits follow from the bound and the participants")

    def sid(self) -> bytes:
        """Return the round's session id: the hash of every field."""
        return sha256(b"cityfed/1/sid", encode(self))

    def peers(self, department: str) -> tuple[str, ...]:
        """Return the participants other than ``department``, in order."""
        return tuple(name for name in self.participants if name != department)

    def point(self, department: str) -> int:
        """Return the Shamir point: 1 + position among the participants."""
        return 1 + self.participants.index(department)

    def points(self) -> tuple[int, ...]:
        """Return the points of all participants, in order."""
        return tuple(range(1, 1 + len(self.participants)))

    def check_survivors(self, survivors: Sequence[str]) -> tuple[str, ...]:
        """Return a survivor list as a tuple when it may be revealed for.

        Raises:
            ProtocolError: ``survivor-repeated``, ``survivor-foreign``, ``survivors-unordered``,
                ``below-min-contributors``.
        """
        if len(set(survivors)) != len(survivors):
            raise ProtocolError("survivor-repeated", "The survivor list names a department twice.")
        if not set(survivors) <= set(self.participants):
            raise ProtocolError("survivor-foreign", "The survivor list names somebody who does not take part.")
        if list(survivors) != sorted(survivors):
            raise ProtocolError("survivors-unordered", "The survivor list is not in roster order.")
        if len(survivors) < self.min_contributors:
            raise ProtocolError(
                "below-min-contributors",
                f"The survivor list has {len(survivors)} departments, the plan asks for {self.min_contributors}.",
            )
        return tuple(survivors)


def round_terms(
    plan: Plan, *, epoch_id: bytes, round_number: int, participants: Sequence[str], model_hash: bytes
) -> RoundTerms:
    """Work out a round's terms from the signed plan; each side does so itself and compares nothing but ``sid``.

    Args:
        plan: the approved plan.
        epoch_id: the epoch whose pair secrets the round uses.
        round_number: at least 1.
        participants: who is asked, in roster order, within the plan's cohort.
        model_hash: hash of the model that the round starts from.

    Raises:
        ProtocolError: ``threshold-inadmissible``, ``round-out-of-range``, ``participants-unordered``,
            ``participant-foreign``, ``too-few-participants``.
    """
    limits = plan.aggregation
    if not limits.admissible_for(plan.roster_size):
        raise ProtocolError("threshold-inadmissible", "The plan breaks 2t > N + c or m >= max(t, c + 2).")
    if round_number < 1:
        raise ProtocolError("round-out-of-range", f"Round {round_number} is not at least 1.")
    _check_participants(plan, participants)
    bound = MECHANISMS[plan.privacy.mechanism].range(plan, len(participants))
    return RoundTerms(
        run=plan.run_id(),
        plan_digest=plan.digest(),
        package_digest=plan.package_digest,
        epoch_id=epoch_id,
        round=round_number,
        participants=tuple(participants),
        model_hash=model_hash,
        layout_digest=plan.layout.digest(),
        dimension=plan.layout.total_size,
        ring_bits=limits.ring_bits,
        fraction_bits=fraction_bits(len(participants), bound),
        bound=bound,
        threshold=limits.threshold,
        min_contributors=limits.min_contributors,
        max_colluders=limits.max_colluders,
        privacy_digest=sha256(b"privacy", encode(plan.privacy)),
    )


def _check_participants(plan: Plan, participants: Sequence[str]) -> None:
    """Sorted, within the approved cohort, and enough."""
    if list(participants) != sorted(set(participants)):
        raise ProtocolError("participants-unordered", "Participants are not in roster order, or one is named twice.")
    if not set(participants) <= set(plan.cohort):
        raise ProtocolError("participant-foreign", "A participant is not in the plan's approved cohort.")
    if len(participants) < plan.aggregation.min_contributors:
        raise ProtocolError(
            "too-few-participants",
            f"{len(participants)} departments take part, the plan asks for {plan.aggregation.min_contributors}.",
        )
