"""What both sides check alike in an epoch: adverts, the epoch's name, sealed seeds (protocol 2)."""

from __future__ import annotations

from collections.abc import Sequence

from shared.codec import sha256
from shared.crypto.keys import context
from shared.errors import ProtocolError
from shared.identity import Roster, Signed, open_signed
from shared.messages import KeyAdvert, SealRequest, SealSet

PROTOCOL_VERSION = 1
ADVERT_LABEL = "key-advert"
SEALS_LABEL = "seals"


def open_advert(signed: Signed, *, sender: str, run: bytes, epoch: int, roster: Roster) -> KeyAdvert:
    """Verify one member's advert for this run and epoch.

    Raises:
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``version-unsupported``, ``advert-foreign``,
            ``roster-mismatch``.
    """
    advert = open_signed(roster.members[sender], ADVERT_LABEL, signed, KeyAdvert)
    if advert.version != PROTOCOL_VERSION:
        raise ProtocolError("version-unsupported", f"{sender} speaks protocol version {advert.version}, not 1.")
    if (advert.department, advert.run, advert.epoch) != (sender, run, epoch):
        raise ProtocolError("advert-foreign", f"The advert of {sender} is for another department, run or epoch.")
    if advert.roster_hash != roster.digest():
        raise ProtocolError("roster-mismatch", f"{sender} holds another roster.")
    return advert


def check_adverts(
    request: SealRequest, *, run: bytes, epoch: int, cohort: Sequence[str], roster: Roster
) -> dict[str, KeyAdvert]:
    """Verify the adverts of exactly the cohort.

    Raises:
        ProtocolError: ``epoch-mismatch``, ``cohort-mismatch``, those of :func:`open_advert`, ``key-repeated``.
    """
    if (request.run, request.epoch) != (run, epoch):
        raise ProtocolError("epoch-mismatch", "The adverts are for another run or epoch.")
    if set(request.adverts) != set(cohort):
        raise ProtocolError("cohort-mismatch", "The adverts do not come from exactly the cohort.")
    adverts = {
        name: open_advert(request.adverts[name], sender=name, run=run, epoch=epoch, roster=roster) for name in cohort
    }
    if len({advert.hpke_key for advert in adverts.values()}) != len(adverts):
        raise ProtocolError("key-repeated", "Two adverts carry the same HPKE key.")
    return adverts


def epoch_identifier(request: SealRequest, *, cohort: Sequence[str]) -> bytes:
    """Return ``epoch_id``: the hash of run, epoch and adverts in roster order."""
    bodies = [request.adverts[name].body for name in cohort]
    return sha256(context("epoch", request.run, request.epoch), *bodies)


def seal_info(epoch_id: bytes, sender: str, recipient: str) -> bytes:
    """Return what a sealed seed is bound to: epoch, sender, recipient."""
    return context("seal", epoch_id, sender, recipient)


def open_seals(signed: Signed, *, sender: str, epoch_id: bytes, cohort: Sequence[str], roster: Roster) -> SealSet:
    """Verify one member's signed set of sealed seeds.

    Raises:
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``epoch-mismatch``, ``seals-foreign``,
            ``seals-incomplete``.
    """
    seals = open_signed(roster.members[sender], SEALS_LABEL, signed, SealSet)
    if seals.epoch_id != epoch_id:
        raise ProtocolError("epoch-mismatch", f"The sealed seeds of {sender} are for another epoch.")
    if seals.department != sender:
        raise ProtocolError("seals-foreign", f"The sealed seeds handed in as {sender}'s name another department.")
    if set(seals.seals) != set(cohort) - {sender}:
        raise ProtocolError("seals-incomplete", f"{sender} did not seal one seed to each of its peers.")
    return seals
