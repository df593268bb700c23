"""Every message between the coordinator and a department (protocol 2 and 3).

Requests go to a department, replies come back; both are tagged unions and decoded strictly. What is signed
travels as :class:`~shared.identity.Signed` bytes, so the receiver verifies exactly what was sent. Every field has
its natural length or largest length, checked before anything is made of it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shared.codec import Encoded, Hash, Number, Record, Tagged, decode
from shared.crypto.keys import KEY_BYTES
from shared.crypto.seal import ENVELOPE_OVERHEAD_BYTES, PUBLIC_KEY_BYTES, SEAL_OVERHEAD_BYTES
from shared.identity import MAX_DEPARTMENTS, ByDepartment, Name, Names, Signed
from shared.secagg.shamir import SHARE_BYTES

SEALED_SEED_BYTES = SEAL_OVERHEAD_BYTES + KEY_BYTES

HpkeKey = Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
SealedSeed = Annotated[bytes, Meta(min_length=SEALED_SEED_BYTES, max_length=SEALED_SEED_BYTES)]
Envelope = Annotated[bytes, Meta(max_length=ENVELOPE_OVERHEAD_BYTES + SHARE_BYTES * MAX_DEPARTMENTS)]
Share = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]

# --- signed bodies, each under its own label -------------------------------------------------------------


class KeyAdvert(Record, frozen=True, kw_only=True):
    """A department's fresh HPKE key for one epoch; label ``key-advert`` (E1)."""

    version: Number
    run: Hash
    epoch: Number
    department: Name
    hpke_key: HpkeKey
    roster_hash: Hash
    policy_hash: Hash
    heads_seen: ByDepartment[Number]


class SealSet(Record, frozen=True, kw_only=True):
    """One sealed seed for each peer; label ``seals`` (E2)."""

    epoch_id: Hash
    department: Name
    seals: ByDepartment[SealedSeed]


class Receipt(Record, frozen=True, kw_only=True):
    """What a department says it sent; label ``receipt`` (3.1)."""

    sid: Hash
    department: Name
    vector_digest: Hash
    self_commitment: Hash
    pair_commitments: ByDepartment[Hash]
    envelope_hashes: ByDepartment[Hash]
    ledger_sequence: Number
    ledger_head: Hash


class ConfirmedSet(Record, frozen=True, kw_only=True):
    """The one survivor list that a department stands by; label ``confirmation`` (3.2)."""

    sid: Hash
    survivors: Names


class ClosedRound(Record, frozen=True, kw_only=True):
    """The authority's account of a finished round; label ``round-closed``. ``final`` ends the run.

    ``receipts_hash`` is over the bodies of the survivors' receipts, in the order of their names. It binds the authority
    to the receipts in its own journal: an auditor who holds that journal and this account, as a department keeps it,
    hashes them again. A department does not, because one that was not asked to reveal has not seen them.
    """

    run: Hash
    round: Number
    sid: Hash
    survivors: Names
    model_hash: Hash
    receipts_hash: Hash
    final: bool
    journal_sequence: Number
    journal_head: Hash


class HeadReceipt(Record, frozen=True, kw_only=True):
    """A department's countersignature on a closed round; label ``head-receipt``."""

    department: Name
    closed_hash: Hash
    journal_sequence: Number
    journal_head: Hash


# --- requests --------------------------------------------------------------------------------------------


class OpenEpoch(Tagged, frozen=True, kw_only=True):
    """Invite to a run: the signed plan and roster, and who is asked (E1)."""

    run: Hash
    epoch: Number
    cohort: Names
    plan: Signed
    roster: Signed


class SealRequest(Tagged, frozen=True, kw_only=True):
    """All adverts of the cohort, keyed by department (E2)."""

    run: Hash
    epoch: Number
    adverts: ByDepartment[Signed]


class UpdateRequest(Tagged, frozen=True, kw_only=True):
    """Train from this model; carries the sealed seeds on the first round of an epoch (E3, 3.1).

    The model is a ``memoryview``: encoding reads it where it lies, decoding points into the request.
    """

    run: Hash
    epoch: Number
    round: Number
    participants: Names
    model: memoryview
    seals: ByDepartment[Signed]


class ConfirmRequest(Tagged, frozen=True, kw_only=True):
    """Who uploaded, when that is not everybody (3.2)."""

    run: Hash
    round: Number
    sid: Hash
    survivors: Names


class RevealRequest(Tagged, frozen=True, kw_only=True):
    """Survivors, their receipts, the confirmations, and the envelopes addressed to this department (3.3)."""

    run: Hash
    round: Number
    sid: Hash
    survivors: Names
    receipts: ByDepartment[Signed]
    confirmations: ByDepartment[Signed]
    envelopes: ByDepartment[Envelope]


class CloseRound(Tagged, frozen=True, kw_only=True):
    """The authority's signed account of the round; answered with a countersignature."""

    closed: Signed


Request = OpenEpoch | SealRequest | UpdateRequest | ConfirmRequest | RevealRequest | CloseRound

# --- replies ---------------------------------------------------------------------------------------------


class AdvertReply(Tagged, frozen=True, kw_only=True):
    """A signed :class:`KeyAdvert`."""

    advert: Signed


class SealReply(Tagged, frozen=True, kw_only=True):
    """A signed :class:`SealSet`."""

    seals: Signed


class MaskedUpdate(Tagged, frozen=True, kw_only=True):
    """The masked vector (little-endian uint32), one envelope per peer and the signed :class:`Receipt`.

    The words are a ``memoryview``: decoding and encoding point into memory instead of copying 90 MB. With fields
    of these names and in this order they start at byte 68 of the message once there are 16,384 of them, so that they
    are aligned where the message is; adding unaligned ones takes 1.4 times as long.
    """

    sid: Hash
    words: memoryview
    envelopes: ByDepartment[Envelope]
    receipt: Signed


class ConfirmReply(Tagged, frozen=True, kw_only=True):
    """A signed :class:`ConfirmedSet`."""

    confirmation: Signed


class Reveal(Tagged, frozen=True, kw_only=True):
    """Shares, never seeds: of b_j for survivors j, and of s_jd for survivor j and dropped d (3.3)."""

    sid: Hash
    self_shares: ByDepartment[Share]
    pair_shares: ByDepartment[ByDepartment[Share]]

    def __repr__(self) -> str:
        return "Reveal()"


class CloseReply(Tagged, frozen=True, kw_only=True):
    """A signed :class:`HeadReceipt`."""

    receipt: Signed


class Refusal(Tagged, frozen=True, kw_only=True):
    """All that the coordinator learns of a no: ``refused`` (a static rule) or ``unavailable`` (anything later)."""

    status: Literal["refused", "unavailable"]


Reply = AdvertReply | SealReply | MaskedUpdate | ConfirmReply | Reveal | CloseReply | Refusal


def decode_request(data: Encoded) -> Request:
    """Decode what a department receives.

    Raises:
        ProtocolError: ``message-too-large``, ``message-malformed``.
    """
    request: Request = decode(data, Request)  # type: ignore[arg-type]  # a union of types, which `type[T]` cannot say
    return request


def decode_reply(data: Encoded) -> Reply:
    """Decode what a department answered.

    Raises:
        ProtocolError: ``message-too-large``, ``message-malformed``.
    """
    reply: Reply = decode(data, Reply)  # type: ignore[arg-type]  # as above
    return reply
