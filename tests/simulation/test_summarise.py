"""What a summary says of a run is worked out from its scenario: how it was tuned, and on what."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from server.asks import PACKAGED
from simulation.scenario import load_scenario
from simulation.summarise import summarise
from simulation.summary import EMERGENCY_DATA, STAND_IN_TUNING, RunSummary

UNKNOWN = "The settings of all arms are those of the scenario as it was run; how they were chosen is not recorded."
FAULT = 'faults=[{department="police", kind="drop-reply"}]'


def said(name: str, *overrides: str) -> RunSummary:
    scenario, folder = load_scenario(name, overrides)
    moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return summarise(scenario, [], started=moment, unsafe=False, seconds={}, out=folder)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_study_was_tuned_on_the_stand_in(name: str) -> None:
    assert said(name).tuning == STAND_IN_TUNING


@pytest.mark.parametrize(
    "override",
    [
        "name=mine",
        "seed=7",
        "seeds=3",
        "data.cache_features=false",
        "departments.police.policy=own.toml",
        "performance.engine=opacus",
        "release.human_approval=true",
    ],
)
def test_names_seeds_policies_release_and_speed_leave_the_tuning_as_it_is(override: str) -> None:
    assert said("emergency-triage", override).tuning == STAND_IN_TUNING


@pytest.mark.parametrize(
    "override",
    [
        "bound=0.001",
        "data.holdout=0.9",
        'extras=["train-loss-sum"]',
        "departments={transport={}, police={}, health={}}",
        "task.label=service_code",
        "optimizer.local.momentum=0.5",
        "server_optimizer.kind=fedadam",
        "privacy.epsilon=2.0",
        "model.max_tokens=32",
        "rounds=19",
        "spare_attempts=1",
    ],
)
def test_a_study_that_was_never_tuned_so_does_not_claim_it(override: str) -> None:
    assert said("emergency-triage", override).tuning == UNKNOWN


def test_fewer_rows_and_faults_are_named_as_what_the_settings_were_not_tuned_for() -> None:
    quick = said("emergency-triage", "data.limit=300")
    assert quick.tuning == (
        f"{STAND_IN_TUNING} They were tuned for all rows of a department, and 300 at most were used."
    )
    assert quick.data == f"{EMERGENCY_DATA} At most 300 rows of each department were used."
    both = said("emergency-triage", "data.limit=300", FAULT).tuning
    assert both.startswith(quick.tuning)
    assert both.endswith("They were tuned for rounds in which no department is missing, and faults were switched on.")
    assert said("emergency-triage", "data.limit=300", "bound=1.0").tuning == UNKNOWN
    assert said("emergency-triage").data == EMERGENCY_DATA


def test_a_study_of_three_of_the_four_departments_says_so() -> None:
    three = said("emergency-triage", "departments={transport={}, police={}, health={}}", "data.limit=300")
    assert three.data == f"{EMERGENCY_DATA} Of the four, 3 take part. At most 300 rows of each department were used."


def test_files_of_ones_own_are_not_called_the_emergency_messages(tmp_path: Path) -> None:
    names = ("transport", "environment", "police", "health")
    bindings = [f"departments.{name}.binding={tmp_path / name}.toml" for name in names]
    own = said("emergency-triage", "data.source=files", *bindings)
    assert (own.data, own.tuning) == ("Files that the scenario names.", UNKNOWN)
