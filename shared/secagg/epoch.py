"""A department's side of an epoch: pair secrets set up once per run (protocol 2).

::

    open_epoch -> AdvertisedEpoch --SealRequest--> SealedEpoch --seals--> ReadyEpoch --terms--> ReadyEpoch, KeyedRound

States are used once: a successor takes the secrets over, and the old state refuses to work again. Keys live in
memory only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from shared.crypto.keys import KEY_BYTES, Entropy, OneUse, advance, extract
from shared.crypto.seal import SealingKey, seal
from shared.errors import ProtocolError
from shared.identity import IdentityKey, Roster, Signed, sign_record
from shared.messages import AdvertReply, KeyAdvert, SealReply, SealRequest, SealSet
from shared.secagg.adverts import (
    ADVERT_LABEL,
    PROTOCOL_VERSION,
    SEALS_LABEL,
    check_adverts,
    epoch_identifier,
    open_seals,
    seal_info,
)
from shared.secagg.receipts import pair
from shared.secagg.round import KeyedRound, RoundView, round_keys
from shared.secagg.terms import RoundTerms

MAX_RATCHET_STEPS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochContext:
    """What a department knows by itself when an epoch opens; nothing secret.

    Attributes:
        run: the approved run.
        epoch: number of the epoch within the run.
        department: own name.
        cohort: who takes part, in roster order, this department among them.
        roster: the roster pinned here.
        policy_hash: hash of the own policy.
        heads_seen: sequence of the newest ledger head seen here, by member.
        own_sequence: sequence of the newest entry in the own ledger.
    """

    run: bytes
    epoch: int
    department: str
    cohort: tuple[str, ...]
    roster: Roster
    policy_hash: bytes
    heads_seen: Mapping[str, int]
    own_sequence: int

    @property
    def peers(self) -> tuple[str, ...]:
        """The cohort without this department."""
        return tuple(name for name in self.cohort if name != self.department)

    def __repr__(self) -> str:
        return f"EpochContext(epoch={self.epoch}, department={self.department!r})"


def open_epoch(
    context: EpochContext, identity: IdentityKey, *, entropy: Entropy = os.urandom
) -> tuple[AdvertisedEpoch, AdvertReply]:
    """Make a fresh HPKE key and sign the advert for it (E1).

    Args:
        context: what is known here.
        identity: the key that the roster lists for this department.
        entropy: only the frozen vectors pass anything but ``os.urandom``.

    Raises:
        ProtocolError: ``cohort-unordered``, ``cohort-foreign``, ``not-in-cohort``, ``cohort-too-small``,
            ``identity-not-on-roster``.
    """
    _check_context(context, identity)
    key = SealingKey.generate(entropy)
    advert = KeyAdvert(
        version=PROTOCOL_VERSION,
        run=context.run,
        epoch=context.epoch,
        department=context.department,
        hpke_key=key.public,
        roster_hash=context.roster.digest(),
        policy_hash=context.policy_hash,
        heads_seen={name: context.heads_seen[name] for name in context.peers if name in context.heads_seen},
    )
    signed = sign_record(identity, ADVERT_LABEL, advert)
    return AdvertisedEpoch(context, identity, signed, OneUse(key), entropy), AdvertReply(advert=signed)


def _check_context(context: EpochContext, identity: IdentityKey) -> None:
    """The cohort comes from the coordinator, so a bad one is outside data."""
    cohort, members = context.cohort, context.roster.members
    if list(cohort) != sorted(set(cohort)):
        raise ProtocolError("cohort-unordered", "The cohort is not in roster order, or names a department twice.")
    if not set(cohort) <= set(members):
        raise ProtocolError("cohort-foreign", "The cohort names somebody who is not on the roster.")
    if context.department not in cohort:
        raise ProtocolError("not-in-cohort", "This department is not in the cohort.")
    if len(cohort) < 3:
        raise ProtocolError("cohort-too-small", f"A cohort has at least 3 departments, this one has {len(cohort)}.")
    if identity.public != members[context.department]:
        raise ProtocolError("identity-not-on-roster", "The roster lists another key for this department.")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class AdvertisedEpoch:
    """The own key is advertised; waits for everybody's adverts."""

    context: EpochContext
    _identity: IdentityKey
    _advert: Signed
    _key: OneUse[SealingKey]
    _entropy: Entropy

    def receive(self, request: SealRequest) -> tuple[SealedEpoch, SealReply]:
        """Check all adverts and seal one fresh seed to each peer (E2).

        Raises:
            ProtocolError: ``epoch-mismatch``, ``cohort-mismatch``, ``own-advert-changed``, then per member
                ``signature-invalid``, ``message-malformed``, ``version-unsupported``, ``advert-foreign``,
                ``roster-mismatch``, ``key-malformed``; then ``key-repeated``, ``journal-rolled-back``.
            RuntimeError: the state was used already.
        """
        context = self.context
        self._key.peek()
        adverts = check_adverts(
            request, run=context.run, epoch=context.epoch, cohort=context.cohort, roster=context.roster
        )
        if request.adverts[context.department] != self._advert:
            raise ProtocolError("own-advert-changed", "The advert handed round as this department's is not its own.")
        for name, advert in adverts.items():
            if advert.heads_seen.get(context.department, -1) > context.own_sequence:
                raise ProtocolError(
                    "journal-rolled-back", f"{name} has seen a newer ledger head of this department than it has itself."
                )
        epoch_id = epoch_identifier(request, cohort=context.cohort)
        seeds = {name: self._entropy(KEY_BYTES) for name in context.peers}
        sealed = {
            name: seal(adverts[name].hpke_key, seed, seal_info(epoch_id, context.department, name))
            for name, seed in seeds.items()
        }
        seals = SealSet(epoch_id=epoch_id, department=context.department, seals=sealed)
        reply = SealReply(seals=sign_record(self._identity, SEALS_LABEL, seals))
        secrets = OneUse((self._key.take(), seeds))
        return SealedEpoch(context, self._identity, epoch_id, secrets, self._entropy), reply

    def __repr__(self) -> str:
        return f"AdvertisedEpoch({self.context!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SealedEpoch:
    """Own seeds are sealed; waits for those of the peers."""

    context: EpochContext
    _identity: IdentityKey
    epoch_id: bytes
    _secrets: OneUse[tuple[SealingKey, dict[str, bytes]]]
    _entropy: Entropy

    def receive(self, seals: Mapping[str, Signed]) -> ReadyEpoch:
        """Open the peers' seeds and derive every root at once (E3); the HPKE key is forgotten.

        Args:
            seals: each peer's signed :class:`SealSet`; the own one may be among them and is not read.

        Raises:
            ProtocolError: ``seals-incomplete``, then per peer ``signature-invalid``, ``message-malformed``,
                ``epoch-mismatch``, ``seals-foreign``, ``seals-incomplete``, ``seal-invalid``.
            RuntimeError: the state was used already.
        """
        context = self.context
        key, own_seeds = self._secrets.peek()
        if set(seals) | {context.department} != set(context.cohort):
            raise ProtocolError("seals-incomplete", "The sealed seeds do not come from exactly the cohort.")
        roots: dict[str, bytes] = {}
        for name in context.peers:
            sealed = open_seals(
                seals[name], sender=name, epoch_id=self.epoch_id, cohort=context.cohort, roster=context.roster
            ).seals[context.department]
            theirs = key.open(sealed, seal_info(self.epoch_id, name, context.department))
            low, high = pair(context.department, name)
            material = own_seeds[name] + theirs if low == context.department else theirs + own_seeds[name]
            roots[name] = extract(material, self.epoch_id, "root", low, high)
        self._secrets.take()
        # The epoch starts before round 1, so the roots of round 1 are one step on.
        ready = {name: advance(root, 1) for name, root in roots.items()}
        return ReadyEpoch(context, self._identity, self.epoch_id, 1, OneUse(ready), self._entropy)

    def __repr__(self) -> str:
        return f"SealedEpoch({self.context!r})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ReadyEpoch:
    """Holds one root per peer, already moved on to ``next_round``, so no root of an earlier round exists here."""

    context: EpochContext
    _identity: IdentityKey
    epoch_id: bytes
    next_round: int
    _roots: OneUse[dict[str, bytes]]
    _entropy: Entropy

    def begin(self, terms: RoundTerms) -> tuple[ReadyEpoch, KeyedRound]:
        """Derive a round's keys and move every root past the round.

        Raises:
            ProtocolError: those of :meth:`check`.
            RuntimeError: the state was used already.

        Guarantees:
            Afterwards nothing here can derive the keys of this round or an earlier one again.
        """
        self._roots.peek()
        self.check(terms)
        sid, department = terms.sid(), self.context.department
        current = {name: advance(root, terms.round - self.next_round) for name, root in self._roots.take().items()}
        keys = round_keys({name: current[name] for name in terms.peers(department)}, sid, department)
        following = OneUse({name: advance(root, 1) for name, root in current.items()})
        view = RoundView(terms=terms, sid=sid, department=department, roster=self.context.roster)
        successor = ReadyEpoch(self.context, self._identity, self.epoch_id, terms.round + 1, following, self._entropy)
        return successor, KeyedRound(view, OneUse(keys), self._entropy)

    def check(self, terms: RoundTerms) -> None:
        """Refuse terms that do not belong to this epoch, or a round that is not ahead; uses nothing up.

        Raises:
            ProtocolError: ``run-mismatch``, ``epoch-mismatch``, ``participant-foreign``, ``not-a-participant``,
                ``round-not-newer``, ``ratchet-too-far``.
        """
        if terms.run != self.context.run:
            raise ProtocolError("run-mismatch", "The round belongs to another run.")
        if terms.epoch_id != self.epoch_id:
            raise ProtocolError("epoch-mismatch", "The round belongs to another epoch.")
        if not set(terms.participants) <= set(self.context.cohort):
            raise ProtocolError("participant-foreign", "A participant of the round is not in the epoch's cohort.")
        if self.context.department not in terms.participants:
            raise ProtocolError("not-a-participant", "This department does not take part in the round.")
        if terms.round < self.next_round:
            raise ProtocolError("round-not-newer", f"Round {terms.round} is not newer than the last one.")
        if terms.round - self.next_round >= MAX_RATCHET_STEPS:
            raise ProtocolError("ratchet-too-far", f"A round may be at most {MAX_RATCHET_STEPS} after the last one.")

    def __repr__(self) -> str:
        return f"ReadyEpoch({self.context!r}, next_round={self.next_round})"
