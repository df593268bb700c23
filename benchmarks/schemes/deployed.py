"""CityFed as it is deployed: `cityfed-server up`, four `cityfed-client up`, a run submitted by `cityfed-server run`.

Nothing is changed but the trainer, which returns a small update at once.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import structs
from schemes.idle_department import NORM
from schemes.processes import Case, DeploymentRow, growth_of

from server.plan_files import PlanState, load_published, publish, sign, write_plan
from server.release import write_model
from server.runs import RunFolder
from shared.codec import encode
from shared.model_file import MODEL_FILE, read_model
from shared.parameters import Layout, TensorSpec, Vector, model_hash
from shared.plan import Plan
from tests.city import FOUR
from tests.deployed_city import SMALL_ASK, DeployedCity, approve_everywhere, deploy_city, hand_out, now, publish_plan
from tests.deployment.running_city import RunningCity, free_ports

ENTRY = Path(__file__).with_name("idle_department.py")
RUN_S = 1800.0


class IdleCity(RunningCity):
    """Departments that train nothing."""

    def start_department(self, name: str) -> None:
        self.start(name, sys.executable, str(ENTRY), "up", str(self.city.config(name)))


def rows(folder: Path, cases: Sequence[Case]) -> list[DeploymentRow]:
    """Start a city and measure every case."""
    fleet, channel, shelf = free_ports(3)
    running = IdleCity(deploy_city(folder, FOUR, fleet_port=fleet, channel_port=channel, shelf_port=shelf))
    plans = [_agreed(running.city, case) for case in cases]
    try:
        running.start_all()
        return [_row(running, plan, case) for plan, case in zip(plans, cases, strict=True)]
    finally:
        running.stop()


def _agreed(city: DeployedCity, case: Case) -> Plan:
    """Let everybody approve a plan whose model has the case's size."""
    digest = publish_plan(city, structs.replace(SMALL_ASK, name=case.name, rounds=case.rounds + 1))
    model = np.random.default_rng(1).standard_normal(case.size, dtype=np.float32)
    layout = Layout(tensors=(TensorSpec(name="head.weight", shape=(case.size,)),))
    plan = structs.replace(
        load_published(city.authority, digest)[1], layout=layout, initial_model_sha256=model_hash(model).hex()
    )
    home, digest = city.authority, plan.digest().hex()
    write_model(home.model(plan.initial_model_sha256), model, plan)
    write_plan(home, PlanState.DRAFT, plan, encode(plan))
    sign(home, digest, now=now())
    publish(home, digest, now=now())
    hand_out(city, digest)
    approve_everywhere(city, digest)
    return plan


def _row(running: RunningCity, plan: Plan, case: Case) -> DeploymentRow:
    """Run a plan through the commands."""
    with growth_of(running.processes["authority"].pid) as growth:
        done = running.server("run", plan.digest().hex(), timeout_s=RUN_S)
    folder = RunFolder(running.authority.runs / plan.run_id().hex())
    if done.returncode or folder.status().missing:
        raise RuntimeError(f"the run failed, or somebody was missing: {done.stderr}")
    _check(read_model(folder.path / MODEL_FILE, plan.layout), plan)
    return case.row("cityfed", departments=len(running.city.names), ends=_ends(folder.log), growth=growth.mib)


def _check(model: Vector, plan: Plan) -> None:
    """Every round has moved every coordinate by the mean of equal updates."""
    start = np.random.default_rng(1).standard_normal(model.size, dtype=np.float32)
    moved = plan.rounds * NORM / np.sqrt(model.size)
    if not np.allclose(model, start + moved, rtol=0, atol=1e-5):
        raise RuntimeError("the model is not what the updates add up to")


def _ends(log: Path) -> list[float]:
    """Read when each round was closed."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    closed = [line for line in lines if re.match(r"round \d+ is closed", line["event"])]
    return [dt.datetime.fromisoformat(line["time"]).timestamp() for line in closed]
