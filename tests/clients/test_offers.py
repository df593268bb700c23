"""An offer that this department's trust, policy or budget does not hold is refused, and the reason stays here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec
import pytest

from clients.records import Refused
from server.plans import sign_plan
from shared.codec import decode, encode
from shared.errors import InsufficientBudgetError, PolicyViolation
from shared.identity import IdentityKey, Roster, sign_record
from shared.journal import EntryKind
from shared.messages import (
    OpenEpoch,
)
from shared.plan import HOLDERS, ReleaseTerms
from tests.city import City
from tests.clients.participant_city import (
    POLICE,
    REFUSED,
    approved_plan,
    kinds,
    offer,
    reasons,
)

Offer = Callable[[City], OpenEpoch]


def with_contract(city: City, digest: str) -> OpenEpoch:
    plan = city.world.plan
    terms = msgspec.structs.replace(plan.datasets["police"], contract_hash=digest)
    return approved_plan(city, datasets={**plan.datasets, "police": terms})


def with_roster(city: City, roster: Roster, key: IdentityKey) -> OpenEpoch:
    return offer(city, roster=sign_record(key, "roster", roster))


def over_the_cap(city: City) -> OpenEpoch:
    """A plan that says the same epsilon and would cost more."""
    return approved_plan(city, rounds=30, spare_attempts=0)


def with_epsilon(city: City, epsilon: float) -> OpenEpoch:
    """A plan that says another epsilon and costs the same."""
    privacy = city.world.plan.privacy
    budget = msgspec.structs.replace(privacy.budget, epsilon=epsilon)
    return approved_plan(city, privacy=msgspec.structs.replace(privacy, budget=budget))


OFFERS: Mapping[str, tuple[Offer, str]] = {
    "plan signed by somebody else": (
        lambda city: offer(city, plan=sign_plan(city.world.plan, IdentityKey.generate())),
        "signature-invalid",
    ),
    "roster signed by somebody else": (
        lambda city: with_roster(city, city.world.roster, IdentityKey.generate()),
        "signature-invalid",
    ),
    "run of another name": (lambda city: offer(city, run=bytes(32)), "run-foreign"),
    "epoch zero": (lambda city: offer(city, epoch=0), "epoch-not-new"),
    "cohort with a stranger": (
        lambda city: offer(city, cohort=(*city.world.plan.cohort, "zoo")),
        "cohort-foreign",
    ),
    "another version of this package": (
        lambda city: approved_plan(city, package_digest="0" * 64),
        "package-foreign",
    ),
    "roster that has grown": (lambda city: approved_plan(city, roster_size=5), "roster-size"),
    "plan that nobody approved": (
        lambda city: offer(
            city,
            run=(other := msgspec.structs.replace(city.world.plan, approval=2)).run_id(),
            plan=sign_plan(other, city.world.authority),
        ),
        "policy-refused",
    ),
    "plan with another contract": (lambda city: with_contract(city, "0" * 64), "policy-refused"),
    "plan for another purpose": (lambda city: approved_plan(city, purpose="marketing"), "policy-refused"),
    "plan whose model goes to somebody else": (
        lambda city: approved_plan(city, release=ReleaseTerms(recipients=(*HOLDERS, "parks"))),
        "policy-refused",
    ),
    "plan with more rounds than allowed": (
        lambda city: approved_plan(city, rounds=10_000, spare_attempts=0),
        "policy-refused",
    ),
    "plan that states a greater epsilon than the policy allows a run": (
        lambda city: with_epsilon(city, 2 * city.world.plan.privacy.budget.epsilon),
        "policy-refused",
    ),
    "plan over the budget": (over_the_cap, "budget-run"),
}


@pytest.mark.parametrize("name", OFFERS)
def test_p4_an_offer_is_refused_in_one_word_and_the_reason_stays_here(city: City, name: str) -> None:
    make, code = OFFERS[name]
    request = make(city)
    police = city.world.participants[POLICE]
    assert police.handle(encode(request)) == REFUSED
    assert reasons(police) == [code]
    assert police.last_refusal is not None
    assert police.last_refusal.code == code
    assert EntryKind.EPOCH not in kinds(police)
    assert EntryKind.RESERVED not in kinds(police)


def test_p4_a_contract_mismatch_names_its_rule_in_the_journal(city: City) -> None:
    police = city.world.participants[POLICE]
    police.handle(encode(with_contract(city, "0" * 64)))
    assert isinstance(police.last_refusal, PolicyViolation)
    assert "R06 (found contract in the plan: 000000" in police.last_refusal.message


def test_p3_a_plan_is_not_charged_to_a_name_that_the_policy_owner_did_not_sign(city: City) -> None:
    police = city.world.participants[POLICE]
    renamed = msgspec.structs.replace(police.department.declaration, dataset="police-2")
    police.department = replace(police.department, declaration=renamed)
    police.handle(encode(approved_plan(city)))
    assert isinstance(police.last_refusal, PolicyViolation)
    assert "R06 (found data set: police-2; allowed data set: police-fixture" in police.last_refusal.message
    assert EntryKind.RESERVED not in kinds(police)


def test_p4_a_recipient_that_the_policy_does_not_list_is_named_in_the_journal(city: City) -> None:
    police = city.world.participants[POLICE]
    police.handle(encode(approved_plan(city, release=ReleaseTerms(recipients=(*HOLDERS, "parks")))))
    (refused,) = (decode(item.body, Refused) for item in police.memory.journal.entries(EntryKind.REFUSAL))
    assert refused.code == "policy-refused"
    assert "R21 (found recipients: parks; allowed recipients: only cohort, central-authority)" in refused.message


def test_a_plan_over_the_budget_is_told_as_a_budget_and_not_as_a_rule(city: City) -> None:
    police = city.world.participants[POLICE]
    police.handle(encode(over_the_cap(city)))
    assert isinstance(police.last_refusal, InsufficientBudgetError)
    assert re.fullmatch(r"The epsilon of the run would be \d\.\d+, the limit is 3\.", police.last_refusal.message)
