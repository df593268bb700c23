"""What a department checks before it reveals, and what it reveals: shares, never seeds (protocol 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.crypto.seal import open_envelope
from shared.errors import ProtocolError
from shared.identity import Roster, Signed
from shared.messages import ConfirmRequest, Receipt, Reveal, RevealRequest
from shared.secagg.receipts import (
    check_confirmation,
    check_envelope,
    check_pair_commitments,
    envelope_context,
    open_receipt,
)
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.terms import RoundTerms


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class HeldShares:
    """Keys of the envelopes addressed to this department, and its shares of its own seeds."""

    incoming: dict[str, bytes]
    own: bytes

    def __repr__(self) -> str:
        return "HeldShares()"


def check_round(request: ConfirmRequest | RevealRequest, terms: RoundTerms, department: str) -> tuple[str, ...]:
    """Check that a request is about this round and return its survivors.

    Raises:
        ProtocolError: ``round-mismatch``, ``sid-mismatch``, those of :meth:`RoundTerms.check_survivors`,
            ``not-a-survivor``.
    """
    if (request.run, request.round) != (terms.run, terms.round):
        raise ProtocolError("round-mismatch", "The request is about another run or round.")
    if request.sid != terms.sid():
        raise ProtocolError("sid-mismatch", "The request is about other terms than this department's.")
    survivors = terms.check_survivors(request.survivors)
    if department not in survivors:
        raise ProtocolError("not-a-survivor", "The survivor list leaves this department out.")
    return survivors


def check_reveal(
    request: RevealRequest,
    *,
    terms: RoundTerms,
    department: str,
    roster: Roster,
    own_receipt: Signed,
    expected: tuple[str, ...],
    heads_seen: Mapping[str, int],
) -> dict[str, Receipt]:
    """Check all that a reveal depends on, but for the envelopes, and return the survivors' receipts.

    Args:
        request: as the coordinator sent it.
        terms: this department's terms of the round.
        department: own name.
        roster: the roster pinned here.
        own_receipt: the receipt that was sent.
        expected: the only acceptable survivor list: the confirmed one, or else all participants.
        heads_seen: sequence of the newest ledger head seen here, by member.

    Raises:
        ProtocolError: those of :func:`check_round`, ``confirmation-missing``, ``survivors-changed``,
            ``receipts-incomplete``, ``own-receipt-changed``, those of
            :func:`~shared.secagg.receipts.open_receipt`, ``pair-commitment-mismatch``, ``journal-rolled-back``, those
            of :func:`~shared.secagg.receipts.check_confirmation`, ``too-few-confirmations``.
    """
    survivors = check_round(request, terms, department)
    if survivors != expected:
        if expected == terms.participants:
            raise ProtocolError("confirmation-missing", "This department confirmed no survivor list.")
        raise ProtocolError("survivors-changed", "This department confirmed another survivor list.")
    receipts = _check_receipts(request, survivors, terms, roster)
    if request.receipts[department] != own_receipt:
        raise ProtocolError("own-receipt-changed", "The receipt handed round as this department's is not its own.")
    check_pair_commitments(receipts)
    for name, receipt in receipts.items():
        if name != department and receipt.ledger_sequence <= heads_seen.get(name, -1):
            raise ProtocolError(
                "journal-rolled-back", f"The ledger head of {name} is not newer than the last one seen."
            )
    _check_confirmations(request, survivors, terms, roster)
    return receipts


def _check_receipts(
    request: RevealRequest, survivors: tuple[str, ...], terms: RoundTerms, roster: Roster
) -> dict[str, Receipt]:
    """One valid receipt from each survivor and from nobody else."""
    if set(request.receipts) != set(survivors):
        raise ProtocolError("receipts-incomplete", "The receipts do not come from exactly the survivors.")
    return {name: open_receipt(request.receipts[name], sender=name, terms=terms, roster=roster) for name in survivors}


def _check_confirmations(request: RevealRequest, survivors: tuple[str, ...], terms: RoundTerms, roster: Roster) -> None:
    """Every confirmation given is valid; for a partial list there are at least t of them."""
    sid = terms.sid()
    for name, signed in request.confirmations.items():
        check_confirmation(signed, sender=name, sid=sid, survivors=survivors, roster=roster)
    if survivors != terms.participants and len(request.confirmations) < terms.threshold:
        raise ProtocolError(
            "too-few-confirmations",
            f"{len(request.confirmations)} survivors confirmed the list, the plan asks for {terms.threshold}.",
        )


def read_envelopes(
    request: RevealRequest,
    held: HeldShares,
    *,
    receipts: Mapping[str, Receipt],
    terms: RoundTerms,
    department: str,
) -> dict[str, list[bytes]]:
    """Open the survivors' envelopes, each against the receipt that :func:`check_reveal` returned for its sender.

    Returns:
        By survivor j, this department's shares: of b_j, then of s_jk for j's peers k in order.

    Raises:
        ProtocolError: ``envelopes-incomplete``, ``envelope-mismatch``, ``envelope-invalid``.
    """
    senders = [name for name in request.survivors if name != department]
    if set(request.envelopes) != set(senders):
        raise ProtocolError("envelopes-incomplete", "The envelopes do not come from exactly the other survivors.")
    blobs = {department: held.own}
    for name in senders:
        check_envelope(terms, receipts[name], department, request.envelopes[name])
        associated = envelope_context(request.sid, name, department)
        blobs[name] = open_envelope(held.incoming[name], request.envelopes[name], associated)
    cuts = range(0, SHARE_BYTES * len(terms.participants), SHARE_BYTES)
    return {name: [blob[at : at + SHARE_BYTES] for at in cuts] for name, blob in blobs.items()}


def reveal_shares(terms: RoundTerms, survivors: tuple[str, ...], blobs: Mapping[str, list[bytes]]) -> Reveal:
    """Pick the shares of b_j for survivors j, and of s_jd for survivor j and dropped d.

    Guarantees:
        For no department are both kinds of share given: that of b_j needs j to survive, that of s_jd needs d to
        have dropped. The answer holds shares only, never a seed.
    """
    dropped = [name for name in terms.participants if name not in survivors]
    return Reveal(
        sid=terms.sid(),
        self_shares={name: blobs[name][0] for name in survivors},
        pair_shares={
            name: {other: blobs[name][1 + terms.peers(name).index(other)] for other in dropped}
            for name in (survivors if dropped else ())
        },
    )
