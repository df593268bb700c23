"""What the lies about a round have in common: who is lied to, and what its peers or the authority could sign."""

from __future__ import annotations

from shared.codec import decode
from shared.identity import IdentityKey, Signed, sign_record
from shared.messages import ClosedRound, CloseRound, ConfirmedSet, Receipt
from shared.parameters import model_hash
from shared.secagg.terms import RoundTerms, round_terms
from tests.protocol.liar import Liar, replace

VICTIM = "health"
PEER = "police"
LAST = "transport"
FIRST_THREE = ("environment", VICTIM, PEER)
LAST_THREE = (VICTIM, PEER, LAST)


def signed_by(liar: Liar, name: str, label: str, record: ConfirmedSet | Receipt) -> Signed:
    """What a department could have signed, had it wanted to."""
    return sign_record(liar.department(name).identity, label, record)


def receipt_of(liar: Liar, name: str) -> Receipt:
    return decode(liar.updates[name].receipt.body, Receipt)


def terms_of(liar: Liar) -> RoundTerms:
    """The terms of the round in progress, as the honest coordinator computes them."""
    epoch_id = liar.participants[VICTIM]._session.epoch.epoch_id  # type: ignore[union-attr]  # an epoch stands
    return round_terms(
        liar.plan,
        epoch_id=epoch_id,
        round_number=liar.round,
        participants=liar.members,
        model_hash=model_hash(liar.town.initial),
    )


def account(liar: Liar, key: IdentityKey | None = None, **changes: object) -> CloseRound:
    """The authority's account of the round in progress."""
    closed = ClosedRound(
        run=liar.run,
        round=liar.round,
        sid=liar.sid,
        survivors=liar.names,
        model_hash=bytes(32),
        receipts_hash=bytes(32),
        final=False,
        journal_sequence=1,
        journal_head=bytes(32),
    )
    body = replace(closed, **changes)
    return CloseRound(closed=sign_record(key or liar.world.authority, "round-closed", body))
