"""The stand-in: public messages, routed to no department, as the departments of a city that nobody lives in.

They are cut into as many pretended departments as the scenario has, each of about the size of a real one, under the
plan that a run of the scenario would have. No department's row is touched.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clients.binding import rounded_size
from server.asks import ModelBasis, draft_plan
from shared.codec import Record
from shared.errors import ConfigError
from shared.identity import DepartmentId, IdentityKey, Roster
from shared.plan import Plan, TaskSpec
from shared.privacy.plan import PrivacyParams
from shared.tasks.device import DeviceName, resolve_device
from shared.tasks.features import FeatureCache
from shared.tasks.text import Prepared, prepare
from simulation.scenario import Scenario
from simulation.world import now

PRETENDED_ROWS = 2_200
"""Rows of a pretended department before its holdout is taken, about those of a real one."""

_MISSING: tuple[tuple[str, Callable[[Scenario], bool], str], ...] = (
    ("data.source", lambda scenario: scenario.data.source != "emergency-messages", "stand in for no other data"),
    ("task", lambda scenario: scenario.task != TaskSpec(), "have a text and one label"),
    ("privacy.unit", lambda scenario: scenario.privacy.unit != "record", "do not say who sent them"),
    ("faults", lambda scenario: bool(scenario.faults), "lie in one place, where no department goes missing"),
)
"""What a scenario may ask for that the stand-in does not have, and why not."""


class _Declared(Record, frozen=True, kw_only=True):
    """What a pretended department declares."""

    public_size: int
    contract_hash: str = ""


def require_stand_in(scenario: Scenario) -> None:
    """Refuse a scenario of which the stand-in would leave something out.

    Raises:
        ConfigError: ``stand-in-unlike``, with the first key that is not modelled.
    """
    for key, asked, why in _MISSING:
        if asked(scenario):
            raise ConfigError(
                "stand-in-unlike",
                f"Settings cannot be tuned for the scenario's `{key}`: the public messages {why}.",
            )


def rows_wanted(scenario: Scenario) -> int:
    """Return how many public messages the pretended departments have together."""
    return min(PRETENDED_ROWS, scenario.data.limit or PRETENDED_ROWS) * len(scenario.departments)


def read_public(
    path: Path, basis: ModelBasis, cache: Path | None, *, limit: int, device: DeviceName = "auto"
) -> Prepared:
    """Read the stand-in, which has the contract's column names.

    Args:
        path: its CSV file.
        basis: the model.
        cache: where encoder features are kept; None computes them every time.
        limit: most rows that are read.
        device: ``performance.device`` of the scenario.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:limit]
    return prepare(
        basis.spec,
        [row["description"] for row in rows],
        [float(row["request"]) for row in rows],
        weights_dir=basis.weights_dir,
        device=resolve_device(device),
        cache=FeatureCache(cache) if cache else None,
    )


def pretend(public: Prepared, departments: int, repeat: int, *, holdout: float) -> tuple[list[Prepared], Prepared]:
    """Cut the stand-in into pretended departments and a part to be measured on; repeats shift the cut."""
    count = len(public)
    order = np.argsort([(index * 7919 + repeat * 104_729) % 1_000_003 for index in range(count)], kind="stable")
    held = order[: round(count * holdout)]
    rest = order[held.size :]
    return [public.take(part) for part in np.array_split(rest, departments)], public.take(held)


def pretended_plan(scenario: Scenario, basis: ModelBasis, privacy: PrivacyParams, parts: Sequence[Prepared]) -> Plan:
    """Return the plan that a run over the pretended departments would have; the parts are those of its cohort.

    Raises:
        ConfigError: ``stand-in-too-small``, ``plan-impossible``.
    """
    names = [DepartmentId(name) for name in sorted(scenario.departments)]
    declared = {name: _Declared(public_size=rounded_size(part.units)) for name, part in zip(names, parts, strict=True)}
    if not all(item.public_size for item in declared.values()):
        raise ConfigError(
            "stand-in-too-small",
            "`data.limit` and `data.holdout` leave a department fewer rows than a public size has.",
        )
    today = now().date()
    return draft_plan(
        scenario.plan_ask(),
        basis,
        declared=declared,
        roster=Roster(city="pretended", serial=1, members={name: IdentityKey.generate().public for name in names}),
        privacy=privacy,
        approval=1,
        valid_from=today,
        valid_until=today,
    )
