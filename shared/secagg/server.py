"""The coordinator's side: collect, compare, add up, unmask (protocol 2 and 3).

Trusted for availability only, and strict all the same: what it lets through would be refused by a department later.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.crypto.stream import RING_DTYPE
from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import Roster, Signed
from shared.messages import (
    AdvertReply,
    ConfirmReply,
    ConfirmRequest,
    MaskedUpdate,
    Receipt,
    Reveal,
    RevealRequest,
    SealReply,
    SealRequest,
)
from shared.secagg.adverts import check_adverts, epoch_identifier, open_advert, open_seals
from shared.secagg.masking import add_hashed, unmask_in_place
from shared.secagg.receipts import (
    check_confirmation,
    check_envelope,
    check_pair_commitments,
    open_receipt,
)
from shared.secagg.ring import RingSum, RingVector
from shared.secagg.shamir import share_from_bytes
from shared.secagg.terms import RoundTerms
from shared.secagg.unmask import streams_to_remove


class EpochCollector:
    """Collects one epoch's adverts and sealed seeds.

    Args:
        run: the approved run.
        epoch: number of the epoch.
        cohort: who takes part, in roster order.
        roster: the roster in force.
    """

    def __init__(self, run: bytes, epoch: int, cohort: tuple[str, ...], roster: Roster) -> None:
        self._run, self._epoch, self._cohort, self._roster = run, epoch, cohort, roster
        self._adverts: dict[str, Signed] = {}
        self._seals: dict[str, Signed] = {}

    def receive_advert(self, department: str, reply: AdvertReply) -> None:
        """Take one department's advert.

        Raises:
            ProtocolError: ``cohort-foreign``, ``advert-repeated``, those of
                :func:`~shared.secagg.adverts.open_advert`.
        """
        self._expect(department, self._adverts, "advert-repeated")
        open_advert(reply.advert, sender=department, run=self._run, epoch=self._epoch, roster=self._roster)
        self._adverts[department] = reply.advert

    def seal_requests(self) -> dict[str, SealRequest]:
        """Return the request that hands everybody all adverts.

        Raises:
            RoundAbortedError: ``epoch-incomplete``.
            ProtocolError: ``key-repeated``.
        """
        request = self._request()
        check_adverts(request, run=self._run, epoch=self._epoch, cohort=self._cohort, roster=self._roster)
        return dict.fromkeys(self._cohort, request)

    @property
    def epoch_id(self) -> bytes:
        """The epoch's name; known once all adverts are in."""
        return epoch_identifier(self._request(), cohort=self._cohort)

    def receive_seals(self, department: str, reply: SealReply) -> None:
        """Take one department's sealed seeds.

        Raises:
            ProtocolError: ``cohort-foreign``, ``seals-repeated``, those of
                :func:`~shared.secagg.adverts.open_seals`.
            RoundAbortedError: ``epoch-incomplete``.
        """
        self._expect(department, self._seals, "seals-repeated")
        open_seals(reply.seals, sender=department, epoch_id=self.epoch_id, cohort=self._cohort, roster=self._roster)
        self._seals[department] = reply.seals

    def seals_for(self) -> dict[str, Signed]:
        """Return the sealed seeds that ride on the first update request.

        Raises:
            RoundAbortedError: ``epoch-incomplete``.
        """
        self._complete(self._seals, "sealed seeds")
        return {name: self._seals[name] for name in self._cohort}

    def adverts(self) -> dict[str, Signed]:
        """Return the signed adverts, from which with the seals the same epoch can be collected again.

        Raises:
            RoundAbortedError: ``epoch-incomplete``.
        """
        return dict(self._request().adverts)

    def _request(self) -> SealRequest:
        """All adverts, keyed in roster order."""
        self._complete(self._adverts, "an advert")
        adverts = {name: self._adverts[name] for name in self._cohort}
        return SealRequest(run=self._run, epoch=self._epoch, adverts=adverts)

    def _expect(self, department: str, taken: Mapping[str, Signed], code: str) -> None:
        """Once from each of the cohort."""
        if department not in self._cohort:
            raise ProtocolError("cohort-foreign", "The reply comes from somebody who is not in the cohort.")
        if department in taken:
            raise ProtocolError(code, f"{department} answered twice in one epoch.")

    def _complete(self, taken: Mapping[str, Signed], what: str) -> None:
        """An epoch needs everybody."""
        missing = [name for name in self._cohort if name not in taken]
        if missing:
            raise RoundAbortedError("epoch-incomplete", f"The epoch lacks {what} from {', '.join(missing)}.")


class RoundCollector:
    """Collects one round: uploads into the ring sum at once, then confirmations, then shares.

    Args:
        terms: what all participants must have agreed on.
        roster: the roster in force; it lists all participants.
    """

    def __init__(self, terms: RoundTerms, roster: Roster) -> None:
        if not set(terms.participants) <= set(roster.members):
            raise ValueError("every participant is on the roster")
        self.terms = terms
        self._sid = terms.sid()
        self._roster = roster
        self._total: RingVector = np.empty(terms.dimension, dtype=RING_DTYPE)  # takes up memory with the first upload
        self._signed: dict[str, Signed] = {}
        self._receipts: dict[str, Receipt] = {}
        self._envelopes: dict[str, dict[str, bytes]] = {}
        self._closed = False
        self._confirmations: dict[str, Signed] = {}
        self._asked: tuple[str, ...] = ()
        self._reveals: dict[str, Reveal] = {}
        self._unmasked = False

    @property
    def survivors(self) -> tuple[str, ...]:
        """Who uploaded so far, in roster order; final once confirmations or reveals were asked for."""
        return tuple(sorted(self._receipts))

    @property
    def receipts(self) -> dict[str, Signed]:
        """The survivors' signed receipts."""
        return {name: self._signed[name] for name in self.survivors}

    def receive_update(self, department: str, update: MaskedUpdate) -> None:
        """Check one upload and add it to the ring sum.

        Raises:
            ProtocolError: ``participant-foreign``, ``update-late``, ``update-repeated``, ``sid-mismatch``,
                those of :func:`~shared.secagg.receipts.open_receipt`, ``vector-length``,
                ``envelopes-incomplete``, ``envelope-mismatch``, ``vector-digest-mismatch``.
        """
        if department not in self.terms.participants:
            raise ProtocolError("participant-foreign", "The update comes from somebody who does not take part.")
        if self._closed:
            raise ProtocolError("update-late", f"The update of {department} came after the survivors were fixed.")
        if department in self._receipts:
            raise ProtocolError("update-repeated", f"{department} sent a second update.")
        if update.sid != self._sid:
            raise ProtocolError("sid-mismatch", f"The update of {department} is for another round or other terms.")
        receipt = open_receipt(update.receipt, sender=department, terms=self.terms, roster=self._roster)
        self._check_content(receipt, update)
        self._add(receipt, update.words)
        self._signed[department] = update.receipt
        self._receipts[department] = receipt
        self._envelopes[department] = update.envelopes

    def _check_content(self, receipt: Receipt, update: MaskedUpdate) -> None:
        """Lengths and envelopes are what the receipt says."""
        sender, expected = receipt.department, 4 * self.terms.dimension
        if len(update.words) != expected:
            raise ProtocolError("vector-length", f"The vector of {sender} does not have {expected} bytes.")
        if set(update.envelopes) != set(self.terms.peers(sender)):
            raise ProtocolError("envelopes-incomplete", f"{sender} did not send one envelope for each of its peers.")
        for recipient, envelope in update.envelopes.items():
            check_envelope(self.terms, receipt, recipient, envelope)

    def _add(self, receipt: Receipt, vector: memoryview) -> None:
        """Hash and add an upload in one pass; one that is not what its sender signed is taken back, exactly."""
        if add_hashed(self._total, vector, first=not self._receipts) != receipt.vector_digest:
            self._total -= np.frombuffer(vector, dtype=RING_DTYPE)
            raise ProtocolError(
                "vector-digest-mismatch", f"The vector of {receipt.department} is not the one it signed."
            )

    def check_commitments(self) -> None:
        """Compare both commitments of every pair of survivors; nothing has been revealed yet.

        Raises:
            ProtocolError: ``pair-commitment-mismatch``, naming the pair.
        """
        check_pair_commitments(self._receipts)

    def confirm_requests(self) -> dict[str, ConfirmRequest]:
        """Fix the survivors; return what to ask them, or nothing when everybody uploaded.

        Raises:
            RoundAbortedError: ``below-threshold``.
            ProtocolError: ``pair-commitment-mismatch``.
        """
        self._close()
        if self.survivors == self.terms.participants:
            return {}
        request = ConfirmRequest(run=self.terms.run, round=self.terms.round, sid=self._sid, survivors=self.survivors)
        return dict.fromkeys(self.survivors, request)

    def _close(self) -> None:
        """From here on the survivors are fixed."""
        self._closed = True
        needed = max(self.terms.min_contributors, self.terms.threshold)
        if len(self._receipts) < needed:
            raise RoundAbortedError(
                "below-threshold", f"{len(self._receipts)} departments uploaded, the plan asks for {needed}."
            )
        self.check_commitments()

    def receive_confirmation(self, department: str, reply: ConfirmReply) -> None:
        """Take one survivor's signature on the survivor list.

        Raises:
            ProtocolError: ``confirmation-early``, ``confirmation-repeated``, those of
                :func:`~shared.secagg.receipts.check_confirmation`.
        """
        if not self._closed:
            raise ProtocolError("confirmation-early", "A confirmation came before anybody was asked for one.")
        if department in self._confirmations:
            raise ProtocolError("confirmation-repeated", f"{department} confirmed twice.")
        check_confirmation(
            reply.confirmation, sender=department, sid=self._sid, survivors=self.survivors, roster=self._roster
        )
        self._confirmations[department] = reply.confirmation

    def reveal_requests(self) -> dict[str, RevealRequest]:
        """Return what to ask the survivors, or those of them that confirmed when somebody dropped.

        Raises:
            RoundAbortedError: ``below-threshold``, ``too-few-confirmations``.
            ProtocolError: ``pair-commitment-mismatch``.
        """
        self._close()
        everybody = self.survivors == self.terms.participants
        if not everybody and len(self._confirmations) < self.terms.threshold:
            raise RoundAbortedError(
                "too-few-confirmations",
                f"{len(self._confirmations)} survivors confirmed, the plan asks for {self.terms.threshold}.",
            )
        self._asked = self.survivors if everybody else tuple(sorted(self._confirmations))
        return {name: self._reveal_request(name) for name in self._asked}

    def _reveal_request(self, department: str) -> RevealRequest:
        """The survivors' receipts and confirmations, and their envelopes to one department."""
        return RevealRequest(
            run=self.terms.run,
            round=self.terms.round,
            sid=self._sid,
            survivors=self.survivors,
            receipts=self.receipts,
            confirmations={name: self._confirmations[name] for name in sorted(self._confirmations)},
            envelopes={name: self._envelopes[name][department] for name in self.survivors if name != department},
        )

    def receive_reveal(self, department: str, reveal: Reveal) -> None:
        """Take one survivor's shares.

        Raises:
            ProtocolError: ``reveal-foreign``, ``reveal-repeated``, ``sid-mismatch``, ``reveal-incomplete``,
                ``share-malformed``.
        """
        if department not in self._asked:
            raise ProtocolError("reveal-foreign", "Shares come from somebody who was not asked for them.")
        if department in self._reveals:
            raise ProtocolError("reveal-repeated", f"{department} revealed twice.")
        if reveal.sid != self._sid:
            raise ProtocolError("sid-mismatch", f"The shares of {department} are for another round or other terms.")
        survivors, dropped = set(self.survivors), set(self.terms.participants) - set(self.survivors)
        pairs_of = survivors if dropped else set()
        shares = [*reveal.self_shares.values()]
        shares += [share for row in reveal.pair_shares.values() for share in row.values()]
        complete = set(reveal.self_shares) == survivors and set(reveal.pair_shares) == pairs_of
        if not complete or any(set(row) != dropped for row in reveal.pair_shares.values()):
            raise ProtocolError("reveal-incomplete", f"{department} did not reveal exactly the shares asked for.")
        for share in shares:
            share_from_bytes(share)
        self._reveals[department] = reveal

    def unmask(self) -> RingSum:
        """Reconstruct the seeds from any t answers and remove their streams.

        Returns:
            The sum over the survivors of their encoded vectors; its memory is the caller's from now on.

        Raises:
            RuntimeError: the sum was unmasked already.
            RoundAbortedError: ``too-few-reveals``, ``shares-inconsistent``.
        """
        if self._unmasked:
            raise RuntimeError("this round was unmasked already")
        if len(self._reveals) < self.terms.threshold:
            raise RoundAbortedError(
                "too-few-reveals",
                f"{len(self._reveals)} departments revealed shares, the plan asks for {self.terms.threshold}.",
            )
        plus, minus = streams_to_remove(self.terms, self._receipts, self._reveals)
        self._unmasked = True
        unmask_in_place(self._total, plus, minus)
        return RingSum(words=self._total, bits=self.terms.fraction_bits)
