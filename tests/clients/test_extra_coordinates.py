"""Extra coordinates of an update: permitted, noised and paid for, or refused by name (protocol 4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from shared.codec import encode
from shared.journal import EntryKind
from shared.messages import (
    OpenEpoch,
    Refusal,
    decode_reply,
)
from shared.parameters import ExtraSpec
from shared.privacy.accountant import MechanismEvent, epsilon
from shared.privacy.ledger import ExtraCharge
from tests.city import City, open_city, small_scenario
from tests.clients.participant_city import (
    POLICE,
    REFUSED,
    approved_plan,
    kinds,
    reasons,
)
from tests.ledger_history import history

EXTRA = ExtraSpec(
    name="train-loss-sum", unit_bound=2.0, sample_rate=1.0, noise_multiplier=500.0, max_abs=1000.0, scale=2.0**-6
)


def with_extra(city: City, **changes: object) -> OpenEpoch:
    extra = msgspec.structs.replace(EXTRA, **changes)
    return approved_plan(city, layout=msgspec.structs.replace(city.world.plan.layout, extras=(extra,)))


EXTRAS: Mapping[str, tuple[dict[str, object], str, str]] = {
    "of a kind that nobody computes": ({"name": "income-sum"}, "extra-unknown", "income-sum"),
    "without noise": ({"noise_multiplier": 0.0}, "extra-not-noised", "train-loss-sum"),
    "that the policy does not list": ({"name": "unit-count"}, "policy-refused", "R17 (found metrics: unit-count"),
    "with less noise than the policy's floor": (
        {"noise_multiplier": 0.4},
        "policy-refused",
        "R17 (found noise multiplier of train-loss-sum: 0.4; allowed noise multiplier of train-loss-sum: at least 0.5)",
    ),
    "that does not fit the budget": ({"noise_multiplier": 1.0}, "budget-run", "epsilon of the run"),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_p3_an_extra_coordinate_is_refused_by_name(city: City, name: str) -> None:
    changes, code, words = EXTRAS[name]
    police = city.world.participants[POLICE]
    assert police.handle(encode(with_extra(city, **changes))) == REFUSED
    assert reasons(police) == [code]
    assert police.last_refusal is not None
    assert words in police.last_refusal.message
    assert EntryKind.EPOCH not in kinds(police)


def test_an_extra_that_is_permitted_noised_and_affordable_is_accepted(city: City) -> None:
    police = city.world.participants[POLICE]
    assert not isinstance(decode_reply(police.handle(encode(with_extra(city)))), Refusal)


def test_p3_an_extra_has_a_charge_of_its_own_in_the_ledger(tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path, extras=("train-loss-sum",))
    with open_city(tmp_path, scenario) as city:
        city.run()
        plan = city.world.plan
        (extra,) = plan.layout.extras
        for participant in city.world.participants.values():
            ledger, dataset = participant.ledger, participant.department.declaration.dataset
            training, released = history(ledger, dataset)
            assert released == MechanismEvent(
                noise_multiplier=extra.noise_multiplier, sample_rate=1.0, steps=plan.rounds
            )
            (exported,) = ledger.export()
            assert exported.extras == (ExtraCharge(name="train-loss-sum", event=released),)
            status = ledger.status(dataset, participant.department.budgets())
            delta = plan.privacy.budget.delta
            assert status.spent_epsilon == epsilon([training, released], delta) > epsilon([training], delta)
