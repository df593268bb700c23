"""The one live epoch of a department: what only its process holds, and what a round has to agree with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clients.training.train import Trainer
from shared.errors import ProtocolError
from shared.identity import Roster, Signed
from shared.messages import UpdateRequest
from shared.parameters import Vector, model_hash, vector_from_bytes
from shared.plan import Plan
from shared.secagg.epoch import AdvertisedEpoch, ReadyEpoch, SealedEpoch
from shared.secagg.round import ConfirmedRound, MaskedRound, RevealedRound
from shared.secagg.terms import RoundTerms, round_terms


@dataclass
class LiveEpoch:
    """An epoch's plan and roster, and the protocol states that are in memory only."""

    plan: Plan
    roster: Roster
    epoch_number: int
    epoch: AdvertisedEpoch | SealedEpoch | ReadyEpoch
    adverts: Mapping[str, Signed] = field(default_factory=dict)  # those of the peers, until they are stored
    trainer: Trainer | None = None
    round_number: int = 0
    round: MaskedRound | ConfirmedRound | RevealedRound | None = None

    def verify_round(self, request: UpdateRequest) -> tuple[Vector, RoundTerms, ReadyEpoch]:
        """Compute the terms of a round from what this department knows itself.

        Raises:
            ProtocolError: ``phase-wrong``, ``vector-bytes``, ``initial-model``; those of
                :func:`shared.secagg.terms.round_terms` and of the epoch.
        """
        epoch = self.epoch
        if isinstance(epoch, SealedEpoch):
            epoch = epoch.receive(request.seals)
        if not isinstance(epoch, ReadyEpoch):
            raise ProtocolError("phase-wrong", "An update was asked for before the epoch stood.")
        self.epoch = epoch
        model = vector_from_bytes(request.model, self.plan.layout)
        digest = model_hash(model)
        if request.round == 1 and digest.hex() != self.plan.initial_model_sha256:
            raise ProtocolError("initial-model", "The first round does not start from the plan's model.")
        terms = round_terms(
            self.plan,
            epoch_id=epoch.epoch_id,
            round_number=request.round,
            participants=request.participants,
            model_hash=digest,
        )
        epoch.check(terms)
        return model, terms, epoch
