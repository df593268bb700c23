"""A whole run in which persons or devices are the privacy unit, from the bound files to the released model."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from clients.explain import budget_lines
from server.asks import PrivacyAsk
from shared.errors import ContractError
from shared.identity import DepartmentId
from shared.privacy.plan import PrivacyUnit
from simulation.scenario import Scenario, ScenarioDepartment
from tests.city import FOUR, MESSAGES, City, lowered_policy, open_city, small_scenario

RECORDS = 3
"""Records of each constructed citizen."""


def owner_policy(text: str, unit: str) -> str:
    """Protect persons or devices, of which the fixture has about thirty."""
    text = text.replace("minimum_units = 50", "minimum_units = 20").replace('unit = "record"', f'unit = "{unit}"')
    return text.replace("[aggregation]", '[privacy.population]\nname = "citizens"\nepsilon = 12.0\n\n[aggregation]', 1)


def owner_binding(folder: Path, name: str, unit: str) -> str:
    """Write a department's rows with a citizen's number in place of the report's own."""
    header, *rows = list(csv.reader((MESSAGES / f"{name}.csv").read_text().splitlines()))
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        citizens = [[*row, f"citizen-{number // RECORDS}"] for number, row in enumerate(rows)]
        csv.writer(file).writerows([[*header, "citizen"], *citizens])
    text = (MESSAGES / f"{name}.toml").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("service_request_id")]
    text = "\n".join(kept).replace("[columns]", '[columns]\nservice_request_id = "citizen"')
    path = folder / f"{name}.toml"
    path.write_text(text.replace("[source]", f'unit = "{unit}"\nowner = "service_request_id"\n\n[source]', 1))
    return str(path)


def owner_scenario(folder: Path, max_records: int, unit: PrivacyUnit) -> Scenario:
    own = folder / "own"
    own.mkdir()
    departments = {
        name: ScenarioDepartment(
            binding=owner_binding(own, name, unit),
            policy=lowered_policy(own, name, partial(owner_policy, unit=unit)),
        )
        for name in FOUR
    }
    ask = PrivacyAsk(
        epsilon=2.0,
        delta=1e-4,
        sample_rate=0.2,
        steps=2,
        max_grad_norm=1.0,
        unit=unit,
        max_records=max_records,
    )
    return small_scenario(folder, departments=departments, privacy=ask)


@pytest.mark.parametrize(("unit", "max_records"), [("person", 1), ("person", 2), ("device", 2)])
def test_a_run_protects_persons_from_the_bound_files_to_the_model(
    tmp_path: Path, unit: PrivacyUnit, max_records: int
) -> None:
    folder = tmp_path / "city"
    folder.mkdir()
    with open_city(folder, owner_scenario(folder, max_records, unit)) as city:
        result = city.run()
        assert np.abs(result.model - city.basis.initial).max() > 0
        for name, department in city.world.departments.items():
            units = department.rows(city.world.plan)
            declared = department.declaration
            assert units.units == declared.units < declared.rows_usable
            assert units.sizes.max() == max_records
            assert declared.public_size <= declared.units
            ledger = city.world.participants[name].ledger
            status = ledger.status(declared.dataset, department.budgets(), population="citizens")
            assert status.runs == 1
            shown = "\n".join(budget_lines(status))
            for scope in ("the data set", "population citizens, all its data sets"):
                assert f"{scope}, updates read alone: epsilon {status.lone_share_epsilon:.4f} of 18" in shown
        refuses_records(city)


def refuses_records(city: City) -> None:
    """A plan for single records does not reach the rows of persons."""
    plan = city.world.plan
    records = structs.replace(plan, privacy=structs.replace(plan.privacy, unit="record", max_records=1))
    with pytest.raises(ContractError) as caught:
        city.world.departments[DepartmentId("police")].rows(records)
    assert caught.value.code == "unit-foreign"
