"""The police department's desk, on which one published plan lies that nobody has decided about."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import msgspec

from clients.data_check import bind_data
from clients.plans import add_plan, approve_plan, list_plans, refuse_plan
from server.city import load_plan_key
from server.plan_files import load_published
from shared.identity import sign_record
from shared.plan import Plan
from tests.deployed_city import DeployedCity, now

STEWARD, IT, DPO = "police-steward", "police-it", "police-dpo"


class Desk:
    """The police department's folder, copied from a city that nobody changes."""

    def __init__(self, city: DeployedCity, digest: str, folder: Path) -> None:
        shutil.copytree(city.home("police"), folder / "police")
        self.city, self.digest = city, digest
        self.config = folder / "police" / "client.toml"
        self.plan = load_published(city.authority, digest)[1]
        bind_data(self.config, now=now())  # a binding is known by its absolute paths

    @property
    def file(self) -> Path:
        return self.config.parent / "plans" / f"{self.digest}.plan"

    def approve(self, person: str, *, author: bool = False, digest: str = "", at: dt.datetime | None = None) -> bool:
        found = approve_plan(self.config, digest or self.digest, person=person, author=author, now=at or now())
        return found.decision.accepted

    def refuse(self, person: str) -> None:
        refuse_plan(self.config, self.digest, person=person, reason="not now", now=now())

    def state(self, at: dt.datetime | None = None) -> str:
        (line,) = list_plans(self.config, now=at or now())
        return line.state

    def changed(self, **changes: object) -> str:
        """Put another plan of the authority's into the folder."""
        plan: Plan = msgspec.structs.replace(self.plan, **changes)
        self.file.unlink(missing_ok=True)
        return add_plan(self.config, sign_record(load_plan_key(self.city.authority), "plan", plan)).stem
