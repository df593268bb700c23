"""The one live epoch of a department: what only its process holds, and what a round has to agree with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clients.training.train import Trainer
from shared.errors import ProtocolError
from shared.identity import Roster, Signed
from shared.messages import (
    ClosedRound,
    ConfirmReply,
    ConfirmRequest,
    Reveal,
    RevealRequest,
    SealReply,
    SealRequest,
    UpdateRequest,
)
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

    def seal(self, request: SealRequest, *, own: str) -> SealReply:
        """Check all adverts and seal one seed for each peer; the peers' adverts are kept.

        Raises:
            ProtocolError: ``phase-wrong``; those of :meth:`shared.secagg.epoch.AdvertisedEpoch.receive`.
        """
        if not isinstance(self.epoch, AdvertisedEpoch):
            raise ProtocolError("phase-wrong", "Seals were asked for in another phase of the epoch.")
        self.epoch, reply = self.epoch.receive(request)
        self.adverts = {name: signed for name, signed in request.adverts.items() if name != own}
        return reply

    def verify_round(self, request: UpdateRequest) -> tuple[Vector, RoundTerms, ReadyEpoch]:
        """Compute the terms of a round from what this department knows itself.

        Raises:
            ProtocolError: ``phase-wrong``, ``initial-model``; those of :func:`shared.secagg.terms.round_terms` and of
                the epoch.
            ModelError: ``vector-bytes``, ``vector-not-finite``.
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

    def confirm(self, request: ConfirmRequest) -> ConfirmReply:
        """Stand by one survivor list.

        Raises:
            ProtocolError: ``phase-wrong``; those of :meth:`shared.secagg.round.MaskedRound.confirm`.
        """
        if not isinstance(self.round, MaskedRound):
            raise ProtocolError("phase-wrong", "A confirmation was asked for in another phase of the round.")
        self.round, reply = self.round.confirm(request)
        return reply

    def reveal(self, request: RevealRequest, *, heads_seen: Mapping[str, int]) -> tuple[RevealedRound, Reveal]:
        """Give shares for exactly one survivor list.

        Raises:
            ProtocolError: ``phase-wrong``; those of :meth:`shared.secagg.round.MaskedRound.reveal`.
        """
        if not isinstance(self.round, MaskedRound | ConfirmedRound):
            raise ProtocolError("phase-wrong", "Shares were asked for in another phase of the round.")
        self.round, reply = self.round.reveal(request, heads_seen=heads_seen)
        return self.round, reply

    def check_account(self, closed: ClosedRound, *, own: str) -> None:
        """Refuse an account of a round that is not about the terms and the survivors that this department knows.

        Raises:
            ProtocolError: ``sid-mismatch``; those of the survivor list; ``not-a-survivor``, ``survivors-changed``.
        """
        state = self.round
        if state is None or closed.sid != state.view.sid:
            raise ProtocolError("sid-mismatch", "The round was closed under other terms than this department's.")
        if own not in state.view.terms.check_survivors(closed.survivors):
            raise ProtocolError("not-a-survivor", "The account of the round leaves this department out.")
        if not isinstance(state, MaskedRound) and closed.survivors != state.survivors:
            raise ProtocolError("survivors-changed", "The round was closed for another survivor list.")


def require_epoch(session: LiveEpoch | None, run: bytes, epoch: int) -> LiveEpoch:
    """Return the live epoch, if a request means that one.

    Raises:
        ProtocolError: ``epoch-unknown``.
    """
    if session is None or session.plan.run_id() != run or session.epoch_number != epoch:
        raise ProtocolError("epoch-unknown", "The request belongs to no epoch that is open here.")
    return session


def require_round(session: LiveEpoch | None, run: bytes, round_number: int) -> LiveEpoch:
    """Return the live epoch, if a request means the round in progress.

    Raises:
        ProtocolError: ``round-unknown``.
    """
    if session is None or session.plan.run_id() != run or session.round_number != round_number:
        raise ProtocolError("round-unknown", "The request belongs to no round that is open here.")
    return session
