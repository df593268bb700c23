"""A department's side of one round: mask once, confirm at most once, reveal at most once (protocol 3).

::

    KeyedRound --mask--> MaskedRound --confirm--> ConfirmedRound --reveal--> RevealedRound
                                     `----------reveal (everybody uploaded)----'

States are used once: a successor takes the secrets over, and the old state refuses to work again, so a second
answer in a round cannot be written. The durable once-per-round record is the journal's job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shared.crypto.keys import Entropy, OneUse, expand, to_seed
from shared.crypto.seal import close_envelope
from shared.crypto.stream import RING_DTYPE
from shared.errors import ProtocolError
from shared.identity import IdentityKey, Roster, Signed, sign_record
from shared.messages import ConfirmedSet, ConfirmReply, ConfirmRequest, MaskedUpdate, Receipt, Reveal, RevealRequest
from shared.parameters import Vector
from shared.secagg.masking import mask_into
from shared.secagg.receipts import (
    CONFIRMATION_LABEL,
    RECEIPT_LABEL,
    envelope_context,
    envelope_hash,
    pair,
    pair_commitment,
    pair_stream_key,
    self_commitment,
    self_stream_key,
)
from shared.secagg.reveal import HeldShares, check_reveal, check_round, read_envelopes, reveal_shares
from shared.secagg.ring import Encoder, RingVector
from shared.secagg.shamir import share_to_bytes, split
from shared.secagg.terms import RoundTerms


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundView:
    """The public facts of a round as one department sees them."""

    terms: RoundTerms
    sid: bytes
    department: str
    roster: Roster

    def __repr__(self) -> str:
        return f"RoundView(round={self.terms.round}, department={self.department!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RoundKeys:
    """A round's keys by peer: pair seeds s_ij, and envelope keys in both directions."""

    pair_seeds: dict[str, int]
    outgoing: dict[str, bytes]
    incoming: dict[str, bytes]

    def __repr__(self) -> str:
        return "RoundKeys()"


def round_keys(roots: Mapping[str, bytes], sid: bytes, department: str) -> RoundKeys:
    """Derive the keys of a round from the peers' roots; each is HKDF-Expand(root, label, sid)."""
    return RoundKeys(
        pair_seeds={
            name: to_seed(expand(root, "pair-seed", sid, *pair(department, name))) for name, root in roots.items()
        },
        outgoing={name: expand(root, "envelope-key", sid, department, name) for name, root in roots.items()},
        incoming={name: expand(root, "envelope-key", sid, name, department) for name, root in roots.items()},
    )


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyedRound:
    """The round's keys are derived; nothing has been sent."""

    view: RoundView
    _keys: OneUse[RoundKeys]
    _entropy: Entropy = os.urandom

    def mask(
        self,
        vector: Vector | RingVector,
        *,
        identity: IdentityKey,
        ledger_sequence: int,
        ledger_head: bytes,
        out: RingVector | None = None,
    ) -> tuple[MaskedRound, MaskedUpdate]:
        """Encode, mask and sign the update; share every seed among the participants (3.1).

        Args:
            vector: shape (dimension,), C-contiguous; float32, noised and projected, or uint32 ring words that carry
                their noise and are masked as they are (privacy 4.3).
            identity: the key that the roster lists for this department.
            ledger_sequence: sequence of the newest ledger entry, the charge of this round included.
            ledger_head: its 32-byte hash.
            out: where the masked words go, shape (dimension,), dtype uint32; ``vector.view(np.uint32)`` saves the
                memory and erases the update. The reply's vector points into it, so it must stay untouched until
                the reply has been encoded.

        Raises:
            ValueError: for a vector, ledger head or ``out`` of another shape or dtype, or another identity.
            ProtocolError: ``update-not-finite``, ``update-beyond-bound``; the round is then used up.
            RuntimeError: the state was used already.

        Guarantees:
            The keys are forgotten before the first word is masked, so an update is never masked twice. Seeds of
            masks live no longer than this call.
        """
        view, terms = self.view, self.view.terms
        _check_arguments(view, vector, identity, ledger_head)
        target = np.empty(terms.dimension, dtype=RING_DTYPE) if out is None else out
        if target.shape != vector.shape or target.dtype != RING_DTYPE or not target.flags.c_contiguous:
            raise ValueError("`out` is C-contiguous little-endian uint32 of the vector's shape")
        keys = self._keys.take()
        self_seed = to_seed(self._entropy(32))
        digest = _mask_vector(view, target, vector, self_seed, keys.pair_seeds)
        shares = _share_seeds(terms, view.department, self_seed, keys.pair_seeds, self._entropy)
        envelopes = _close_envelopes(view, keys.outgoing, shares, self._entropy)
        receipt = Receipt(
            sid=view.sid,
            department=view.department,
            vector_digest=digest,
            self_commitment=self_commitment(view.sid, view.department, self_seed),
            pair_commitments=_commit_pairs(view, keys.pair_seeds),
            envelope_hashes=_hash_envelopes(view, envelopes),
            ledger_sequence=ledger_sequence,
            ledger_head=ledger_head,
        )
        signed = sign_record(identity, RECEIPT_LABEL, receipt)
        held = HeldShares(incoming=keys.incoming, own=shares[view.department])
        update = MaskedUpdate(sid=view.sid, words=target.data.cast("B"), envelopes=envelopes, receipt=signed)
        return MaskedRound(view, identity, signed, OneUse(held)), update

    def __repr__(self) -> str:
        return f"KeyedRound({self.view!r})"


def _check_arguments(view: RoundView, vector: Vector | RingVector, identity: IdentityKey, ledger_head: bytes) -> None:
    """Refuse a caller's mistake before any key is used up."""
    known = vector.dtype in (np.float32, RING_DTYPE)
    if vector.shape != (view.terms.dimension,) or not known or not vector.flags.c_contiguous:
        raise ValueError(f"the vector is C-contiguous float32 or uint32 of shape ({view.terms.dimension},)")
    if identity.public != view.roster.members[view.department]:
        raise ValueError("the identity is the one that the roster lists for this department")
    if len(ledger_head) != 32:
        raise ValueError("a ledger head has 32 bytes")


def _mask_vector(
    view: RoundView, target: RingVector, vector: Vector | RingVector, self_seed: int, pair_seeds: Mapping[str, int]
) -> bytes:
    """Write y_i = encode(x_i) + PRG(b_i) + sum_{j>i} PRG(s_ij) - sum_{j<i} PRG(s_ij) and return its digest."""
    sid, me, terms = view.sid, view.department, view.terms
    streams = {name: pair_stream_key(sid, me, name, seed) for name, seed in pair_seeds.items()}
    plus = [self_stream_key(sid, me, self_seed), *(key for name, key in streams.items() if name > me)]
    minus = [key for name, key in streams.items() if name < me]
    ready = vector.dtype == RING_DTYPE
    encode_into = np.copyto if ready else Encoder(bits=terms.fraction_bits, bound=terms.bound).encode_into
    return mask_into(target, vector, encode_into, plus, minus)


def _share_seeds(
    terms: RoundTerms, department: str, self_seed: int, pair_seeds: Mapping[str, int], entropy: Entropy
) -> dict[str, bytes]:
    """Split b_i and every s_ij; returns, by participant, its shares in order: of b_i, then of s_ij by peer."""
    seeds = [self_seed, *(pair_seeds[name] for name in terms.peers(department))]
    splits = [split(seed, terms.threshold, terms.points(), entropy) for seed in seeds]
    return {
        name: b"".join(share_to_bytes(shares[terms.point(name)]) for shares in splits) for name in terms.participants
    }


def _close_envelopes(
    view: RoundView, keys: Mapping[str, bytes], shares: Mapping[str, bytes], entropy: Entropy
) -> dict[str, bytes]:
    """Encrypt each peer's shares to it."""
    sid, me = view.sid, view.department
    return {
        name: close_envelope(key, shares[name], envelope_context(sid, me, name), entropy=entropy)
        for name, key in keys.items()
    }


def _commit_pairs(view: RoundView, pair_seeds: Mapping[str, int]) -> dict[str, bytes]:
    """Commit to every pair seed."""
    return {name: pair_commitment(view.sid, view.department, name, seed) for name, seed in pair_seeds.items()}


def _hash_envelopes(view: RoundView, envelopes: Mapping[str, bytes]) -> dict[str, bytes]:
    """Hash every envelope for the receipt."""
    return {name: envelope_hash(view.sid, view.department, name, value) for name, value in envelopes.items()}


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class MaskedRound:
    """The update is masked; what is left is the own shares and the keys of incoming envelopes."""

    view: RoundView
    _identity: IdentityKey
    _receipt: Signed
    _held: OneUse[HeldShares]

    def confirm(self, request: ConfirmRequest) -> tuple[ConfirmedRound, ConfirmReply]:
        """Sign the one survivor list that this department will reveal for (3.2).

        Raises:
            ProtocolError: ``round-mismatch``, ``sid-mismatch``, ``survivor-repeated``, ``survivor-foreign``,
                ``survivors-unordered``, ``below-min-contributors``, ``not-a-survivor``, ``nobody-dropped``.
            RuntimeError: the state was used already.
        """
        view = self.view
        self._held.peek()
        survivors = check_round(request, view.terms, view.department)
        if survivors == view.terms.participants:
            raise ProtocolError("nobody-dropped", "Everybody uploaded, so there is nothing to confirm.")
        confirmed = ConfirmedSet(sid=view.sid, survivors=survivors)
        reply = ConfirmReply(confirmation=sign_record(self._identity, CONFIRMATION_LABEL, confirmed))
        return ConfirmedRound(view, self._receipt, survivors, OneUse(self._held.take())), reply

    def reveal(self, request: RevealRequest, *, heads_seen: Mapping[str, int]) -> tuple[RevealedRound, Reveal]:
        """Reveal shares when everybody uploaded (3.3); without a confirmation of ours a partial list is refused.

        Args:
            request: the coordinator's survivors, receipts and envelopes.
            heads_seen: sequence of the newest ledger head seen here, by member.

        Raises:
            ProtocolError: those of :func:`~shared.secagg.reveal.check_reveal`.
            RuntimeError: the state was used already.
        """
        return _reveal(
            request,
            view=self.view,
            own_receipt=self._receipt,
            expected=self.view.terms.participants,
            held=self._held,
            heads_seen=heads_seen,
        )

    def __repr__(self) -> str:
        return f"MaskedRound({self.view!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ConfirmedRound:
    """One survivor list is confirmed; no other will be revealed for."""

    view: RoundView
    _receipt: Signed
    survivors: tuple[str, ...]
    _held: OneUse[HeldShares]

    def reveal(self, request: RevealRequest, *, heads_seen: Mapping[str, int]) -> tuple[RevealedRound, Reveal]:
        """Reveal shares for the confirmed list, given enough confirmations (3.3).

        Args:
            request: the coordinator's survivors, receipts, confirmations and envelopes.
            heads_seen: sequence of the newest ledger head seen here, by member.

        Raises:
            ProtocolError: those of :func:`~shared.secagg.reveal.check_reveal`.
            RuntimeError: the state was used already.
        """
        return _reveal(
            request,
            view=self.view,
            own_receipt=self._receipt,
            expected=self.survivors,
            held=self._held,
            heads_seen=heads_seen,
        )

    def __repr__(self) -> str:
        return f"ConfirmedRound({self.view!r}, survivors={self.survivors})"


@dataclass(frozen=True, kw_only=True, slots=True)
class RevealedRound:
    """The round is over for this department; it holds no secret.

    ``ledger_heads`` maps each surviving peer to its ledger's (sequence, head), for this department to remember.
    """

    view: RoundView
    survivors: tuple[str, ...]
    ledger_heads: Mapping[str, tuple[int, bytes]]


def _reveal(
    request: RevealRequest,
    *,
    view: RoundView,
    own_receipt: Signed,
    expected: tuple[str, ...],
    held: OneUse[HeldShares],
    heads_seen: Mapping[str, int],
) -> tuple[RevealedRound, Reveal]:
    """Check everything first, use the shares up last."""
    shares = held.peek()
    receipts = check_reveal(
        request,
        terms=view.terms,
        department=view.department,
        roster=view.roster,
        own_receipt=own_receipt,
        expected=expected,
        heads_seen=heads_seen,
    )
    blobs = read_envelopes(request, shares, receipts=receipts, terms=view.terms, department=view.department)
    reply = reveal_shares(view.terms, expected, blobs)
    heads = {
        name: (receipt.ledger_sequence, receipt.ledger_head)
        for name, receipt in receipts.items()
        if name != view.department
    }
    held.take()
    return RevealedRound(view=view, survivors=expected, ledger_heads=heads), reply
