"""Epochs at the coordinator: opened with whoever answers, and collected again from a checkpoint (protocol 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.exchange import Asker, guarded, require_enough
from shared.codec import Record, decode
from shared.errors import JournalError
from shared.identity import Roster, Signed
from shared.messages import AdvertReply, OpenEpoch, SealReply
from shared.plan import Plan
from shared.secagg.server import EpochCollector


class StandingEpoch(Record, frozen=True, kw_only=True):
    """An epoch as the coordinator got it: who takes part, their signed adverts and seals, under which roster."""

    members: tuple[str, ...]
    adverts: dict[str, Signed]
    seals: dict[str, Signed]
    roster: Signed


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A standing epoch.

    Attributes:
        number: higher than that of every epoch before it in the run.
        name: ``epoch_id``, by which its members know it.
        roster: the roster that counted when it was opened, and in every round of it.
        standing: what was signed for it; the seals ride on the first update request.
    """

    number: int
    name: bytes
    roster: Roster
    standing: StandingEpoch

    @property
    def members(self) -> tuple[str, ...]:
        """Who takes part, in roster order."""
        return self.standing.members


def open_epoch(
    asker: Asker, plan: Plan, signed_plan: Signed, signed_roster: Signed, next_number: Callable[[], int]
) -> Epoch:
    """Ask for adverts, then for seals; whoever misses a step is not in this epoch, and the others begin anew.

    Args:
        asker: of the round that needs it.
        plan: its cohort is asked.
        signed_plan: the plan as departments verify it.
        signed_roster: the roster in force, likewise.
        next_number: gives the number of each attempt.

    Raises:
        RoundAbortedError: ``below-threshold``; ``key-repeated``.
    """
    run, roster = plan.run_id(), roster_of(signed_roster)
    members: tuple[str, ...] = plan.cohort
    while True:
        number = next_number()
        require_enough(plan, asker.number, members)
        collector = EpochCollector(run, number, members, roster)
        invitation = OpenEpoch(run=run, epoch=number, cohort=members, plan=signed_plan, roster=signed_roster)
        answered = asker.ask("advert", dict.fromkeys(members, invitation), AdvertReply, collector.receive_advert)
        if answered == members:
            answered = asker.ask("seal", guarded(collector.seal_requests), SealReply, collector.receive_seals)
        if answered == members:
            return _epoch(collector, number, members, signed_roster)
        members = answered


def restore_epoch(run: bytes, number: int, standing: StandingEpoch) -> Epoch:
    """Collect a standing epoch again from what was signed then.

    Raises:
        ProtocolError: something in it does not verify.
        RoundAbortedError: ``epoch-incomplete``.
    """
    collector = EpochCollector(run, number, standing.members, roster_of(standing.roster))
    for name, advert in standing.adverts.items():
        collector.receive_advert(name, AdvertReply(advert=advert))
    for name, seals in standing.seals.items():
        collector.receive_seals(name, SealReply(seals=seals))
    return _epoch(collector, number, standing.members, standing.roster)


def roster_of(signed: Signed) -> Roster:
    """Read a roster that was verified before it came here."""
    return decode(signed.body, Roster, error=JournalError)


def _epoch(collector: EpochCollector, number: int, members: tuple[str, ...], roster: Signed) -> Epoch:
    """Close the collection."""
    standing = StandingEpoch(members=members, adverts=collector.adverts(), seals=collector.seals_for(), roster=roster)
    return Epoch(number=number, name=collector.epoch_id, roster=roster_of(roster), standing=standing)
