"""What both sides check alike: streams and commitments of seeds, receipts, confirmations (protocol 3)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from shared.codec import sha256
from shared.crypto.keys import commit, context, expand, seed_bytes
from shared.crypto.seal import ENVELOPE_OVERHEAD_BYTES
from shared.errors import ProtocolError
from shared.identity import Roster, Signed, open_signed
from shared.messages import ConfirmedSet, Receipt
from shared.secagg.shamir import SHARE_BYTES
from shared.secagg.terms import RoundTerms

RECEIPT_LABEL = "receipt"
CONFIRMATION_LABEL = "confirmation"


def pair(one: str, other: str) -> tuple[str, str]:
    """Return two names in roster order."""
    return (one, other) if one < other else (other, one)


def self_commitment(sid: bytes, department: str, seed: int) -> bytes:
    """Return the commitment of a self-mask seed b_i."""
    return commit("self-commitment", seed, sid, department)


def pair_commitment(sid: bytes, one: str, other: str, seed: int) -> bytes:
    """Return the commitment of a pair seed s_ij; the same from both sides."""
    return commit("pair-commitment", seed, sid, *pair(one, other))


def self_stream_key(sid: bytes, department: str, seed: int) -> bytes:
    """Return the key of the stream PRG(b_i)."""
    return expand(seed_bytes(seed), "self-stream", sid, department)


def pair_stream_key(sid: bytes, one: str, other: str, seed: int) -> bytes:
    """Return the key of the stream PRG(s_ij); the same from both sides."""
    return expand(seed_bytes(seed), "pair-stream", sid, *pair(one, other))


def envelope_context(sid: bytes, sender: str, recipient: str) -> bytes:
    """Return what an envelope is bound to: round, sender, recipient."""
    return context("envelope", sid, sender, recipient)


def envelope_hash(sid: bytes, sender: str, recipient: str, envelope: bytes) -> bytes:
    """Return the hash of an envelope that the sender's receipt lists."""
    return sha256(context("envelope-hash", sid, sender, recipient), envelope)


def envelope_bytes(terms: RoundTerms) -> int:
    """Return the length of every envelope: one share of b_i and one of each s_ij, sealed."""
    return ENVELOPE_OVERHEAD_BYTES + SHARE_BYTES * len(terms.participants)


def open_receipt(signed: Signed, *, sender: str, terms: RoundTerms, roster: Roster) -> Receipt:
    """Verify one participant's receipt for this round.

    Raises:
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``sid-mismatch``, ``receipt-foreign``,
            ``receipt-incomplete``.
    """
    receipt = open_signed(roster.members[sender], RECEIPT_LABEL, signed, Receipt)
    if receipt.sid != terms.sid():
        raise ProtocolError("sid-mismatch", f"The receipt of {sender} is for another round or other terms.")
    if receipt.department != sender:
        raise ProtocolError("receipt-foreign", f"The receipt handed in as {sender}'s names another department.")
    if not set(receipt.pair_commitments) == set(receipt.envelope_hashes) == set(terms.peers(sender)):
        raise ProtocolError("receipt-incomplete", f"The receipt of {sender} lacks a hash or has one too many.")
    return receipt


def check_pair_commitments(receipts: Mapping[str, Receipt]) -> None:
    """Compare both commitments of every pair among the senders of ``receipts``.

    Raises:
        ProtocolError: ``pair-commitment-mismatch``, naming the pair: their model, participants or settings differ.
    """
    for one, other in combinations(sorted(receipts), 2):
        if receipts[one].pair_commitments[other] != receipts[other].pair_commitments[one]:
            raise ProtocolError(
                "pair-commitment-mismatch",
                f"{one} and {other} committed to different pair seeds: their model, participants or settings differ.",
            )


def check_envelope(terms: RoundTerms, receipt: Receipt, recipient: str, envelope: bytes) -> None:
    """Compare an envelope with the hash in its sender's receipt.

    Raises:
        ProtocolError: ``envelope-mismatch``.
    """
    found = envelope_hash(receipt.sid, receipt.department, recipient, envelope)
    if len(envelope) != envelope_bytes(terms) or found != receipt.envelope_hashes[recipient]:
        raise ProtocolError(
            "envelope-mismatch", f"The envelope from {receipt.department} to {recipient} is not the one it signed."
        )


def check_confirmation(signed: Signed, *, sender: str, sid: bytes, survivors: tuple[str, ...], roster: Roster) -> None:
    """Verify that ``sender``, one of the survivors, stands by exactly this survivor list.

    Raises:
        ProtocolError: ``confirmation-foreign``, ``signature-invalid``, ``message-malformed``, ``sid-mismatch``,
            ``survivors-changed``.
    """
    if sender not in survivors:
        raise ProtocolError("confirmation-foreign", "A confirmation comes from somebody not on the survivor list.")
    confirmed = open_signed(roster.members[sender], CONFIRMATION_LABEL, signed, ConfirmedSet)
    if confirmed.sid != sid:
        raise ProtocolError("sid-mismatch", f"The confirmation of {sender} is for another round or other terms.")
    if confirmed.survivors != survivors:
        raise ProtocolError("survivors-changed", f"{sender} confirmed another survivor list.")
