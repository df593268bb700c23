"""A police department's node in a small city: what it is offered, what it says, what it writes down."""

from __future__ import annotations

import msgspec

from clients.participant import Participant
from clients.records import Approved, Refused
from server.coordinator import Coordinator
from server.plans import sign_plan
from shared.codec import decode, encode
from shared.identity import DepartmentId
from shared.journal import EntryKind
from shared.messages import OpenEpoch, Refusal
from shared.plan import Plan
from simulation.network import InMemoryTransport
from tests.city import City
from tests.eavesdropper import Eavesdropper

POLICE = DepartmentId("police")
REFUSED, UNAVAILABLE = encode(Refusal(status="refused")), encode(Refusal(status="unavailable"))


def reasons(participant: Participant) -> list[str]:
    return [decode(entry.body, Refused).code for entry in participant.memory.journal.entries(EntryKind.REFUSAL)]


def kinds(participant: Participant) -> list[str]:
    return [entry.kind for entry in participant.memory.journal.entries()]


def first_round(city: City) -> tuple[Coordinator, Eavesdropper]:
    """Run the first of two rounds and stop there."""
    ear = Eavesdropper()
    coordinator = city.coordinator(InMemoryTransport(ear.listen(city.peers)))
    coordinator.run_round(1, city.basis.initial, final=False)
    return coordinator, ear


def offer(city: City, **changes: object) -> OpenEpoch:
    world = city.world
    fields: dict[str, object] = {
        "run": world.plan.run_id(),
        "epoch": 1,
        "cohort": world.plan.cohort,
        "plan": world.signed_plan,
        "roster": world.signed_roster,
    }
    return OpenEpoch(**{**fields, **changes})  # type: ignore[arg-type]  # a test's own fields


def approved_plan(city: City, **changes: object) -> OpenEpoch:
    """Another plan, signed by the real authority and approved in every department."""
    plan: Plan = msgspec.structs.replace(city.world.plan, **changes)
    for participant in city.world.participants.values():
        for person, role in participant.department.policy.policy.approval.people.items():
            approval = Approved(digest=plan.digest(), person=person, role=role, author=False)
            participant.memory.write(EntryKind.APPROVAL, approval)
    return offer(city, run=plan.run_id(), plan=sign_plan(plan, city.world.authority))
