"""Every message between the coordinator and a department (protocol 2 and 3).

Requests go to a department, replies come back; both are tagged unions and decoded strictly. What is signed
travels as :class:`~shared.identity.Signed` bytes, so the receiver verifies exactly what was sent.
"""

from __future__ import annotations

from shared.codec import Record, Tagged, decode
from shared.identity import Signed

# --- signed bodies, each under its own label -------------------------------------------------------------


class KeyAdvert(Record, frozen=True, kw_only=True):
    """A department's fresh HPKE key for one epoch; label ``key-advert`` (E1)."""

    version: int
    run: bytes
    epoch: int
    department: str
    hpke_key: bytes
    roster_hash: bytes
    policy_hash: bytes
    heads_seen: dict[str, int]


class SealSet(Record, frozen=True, kw_only=True):
    """One sealed seed for each peer; label ``seals`` (E2)."""

    epoch_id: bytes
    department: str
    seals: dict[str, bytes]


class Receipt(Record, frozen=True, kw_only=True):
    """What a department says it sent; label ``receipt`` (3.1)."""

    sid: bytes
    department: str
    vector_digest: bytes
    self_commitment: bytes
    pair_commitments: dict[str, bytes]
    envelope_hashes: dict[str, bytes]
    ledger_sequence: int
    ledger_head: bytes


class ConfirmedSet(Record, frozen=True, kw_only=True):
    """The one survivor list that a department stands by; label ``confirmation`` (3.2)."""

    sid: bytes
    survivors: tuple[str, ...]


class ClosedRound(Record, frozen=True, kw_only=True):
    """The authority's account of a finished round; label ``round-closed``."""

    run: bytes
    round: int
    sid: bytes
    survivors: tuple[str, ...]
    model_hash: bytes
    receipts_hash: bytes
    journal_sequence: int
    journal_head: bytes


class HeadReceipt(Record, frozen=True, kw_only=True):
    """A department's countersignature on a closed round; label ``head-receipt``."""

    department: str
    closed_hash: bytes
    journal_sequence: int
    journal_head: bytes


# --- requests --------------------------------------------------------------------------------------------


class OpenEpoch(Tagged, frozen=True, kw_only=True):
    """Invite to a run: the signed plan and roster, and who is asked (E1)."""

    run: bytes
    epoch: int
    cohort: tuple[str, ...]
    plan: Signed
    roster: Signed


class SealRequest(Tagged, frozen=True, kw_only=True):
    """All adverts of the cohort, keyed by department (E2)."""

    run: bytes
    epoch: int
    adverts: dict[str, Signed]


class UpdateRequest(Tagged, frozen=True, kw_only=True):
    """Train from this model; carries the sealed seeds on the first round of an epoch (E3, 3.1)."""

    run: bytes
    epoch: int
    round: int
    participants: tuple[str, ...]
    model: bytes
    seals: dict[str, Signed]


class ConfirmRequest(Tagged, frozen=True, kw_only=True):
    """Who uploaded, when that is not everybody (3.2)."""

    run: bytes
    round: int
    sid: bytes
    survivors: tuple[str, ...]


class RevealRequest(Tagged, frozen=True, kw_only=True):
    """Survivors, their receipts, the confirmations, and the envelopes addressed to this department (3.3)."""

    run: bytes
    round: int
    sid: bytes
    survivors: tuple[str, ...]
    receipts: dict[str, Signed]
    confirmations: dict[str, Signed]
    envelopes: dict[str, bytes]


class CloseRound(Tagged, frozen=True, kw_only=True):
    """The authority's signed account of the round; answered with a countersignature. ``final`` ends the run."""

    closed: Signed
    final: bool


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

    The vector is a ``memoryview``: decoding and encoding point into memory instead of copying 90 MB.
    """

    sid: bytes
    vector: memoryview
    envelopes: dict[str, bytes]
    receipt: Signed


class ConfirmReply(Tagged, frozen=True, kw_only=True):
    """A signed :class:`ConfirmedSet`."""

    confirmation: Signed


class Reveal(Tagged, frozen=True, kw_only=True):
    """Shares, never seeds: of b_j for survivors j, and of s_jd for survivor j and dropped d (3.3)."""

    sid: bytes
    self_shares: dict[str, bytes]
    pair_shares: dict[str, dict[str, bytes]]

    def __repr__(self) -> str:
        return "Reveal()"


class CloseReply(Tagged, frozen=True, kw_only=True):
    """A signed :class:`HeadReceipt`."""

    receipt: Signed


class Refusal(Tagged, frozen=True, kw_only=True):
    """All that the coordinator learns of a no: ``refused`` (a static rule) or ``unavailable`` (anything later)."""

    status: str


Reply = AdvertReply | SealReply | MaskedUpdate | ConfirmReply | Reveal | CloseReply | Refusal


def decode_request(data: bytes) -> Request:
    """Decode what a department receives.

    Raises:
        ProtocolError: ``message-too-large``, ``message-malformed``.
    """
    request: Request = decode(data, Request)  # type: ignore[arg-type]  # a union of types, which `type[T]` cannot say
    return request


def decode_reply(data: bytes) -> Reply:
    """Decode what a department answered.

    Raises:
        ProtocolError: ``message-too-large``, ``message-malformed``.
    """
    reply: Reply = decode(data, Reply)  # type: ignore[arg-type]  # as above
    return reply
