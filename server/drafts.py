"""Draft a plan: what the authority asks for, the present roster, and what its departments told of their data sets."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from server.asks import (
    PACKAGED,
    ModelBasis,
    ModelChoice,
    PlanAsk,
    calibrate,
    draft_plan,
    packaged_scenario,
)
from server.city import load_city
from server.config import load_server
from server.home import AuthorityHome
from server.plan_files import PlanState, list_plans, write_plan
from server.release import write_model
from server.roster import load_members
from shared.city import SUMMARY_LABEL, DatasetSummary
from shared.codec import decode, encode, load_json, parse_toml
from shared.errors import ConfigError, ProtocolError
from shared.files import read_file
from shared.identity import DepartmentId, Roster, Signed, verify_bytes
from shared.package import package_digest
from shared.plan import (
    ModelSpec,
    Plan,
    default_aggregation,
)
from shared.privacy.citywide import city_worst_case
from shared.privacy.extras import plan_events
from shared.private_files import make_private_folder
from shared.report.promises import in_every_department
from shared.tasks.features import HASHED_WORDS_SHA256

WEIGHTS_FILE = "model.safetensors"

SIMULATED_ONLY = ("seed", "seeds", "departments", "data", "performance", "faults")
"""Keys of a scenario that play a city and say nothing about a plan."""


def load_ask(name_or_path: str) -> PlanAsk:
    """Read a scenario's plan: a packaged one by name, or a TOML file by path.

    A scenario of ``cityfed-sim`` will do; of its optimisers the federated one counts.

    Raises:
        ConfigError: ``scenario-missing``, ``scenario-unreadable``, ``toml-syntax``, ``toml-content``.
    """
    where = f"Scenario {name_or_path}"
    tree = parse_toml(_scenario_text(name_or_path), where=where)
    for key in SIMULATED_ONLY:
        tree.pop(key, None)
    optimizer = tree.get("optimizer")
    if isinstance(optimizer, dict) and "federated" in optimizer:
        tree["optimizer"] = optimizer["federated"]
    try:
        return msgspec.convert(tree, type=PlanAsk, strict=True)
    except msgspec.ValidationError as cause:
        raise ConfigError("toml-content", f"{where}: {str(cause).replace(' - at `$', ' at `')}.") from cause


def draft(
    home: AuthorityHome, ask: PlanAsk, summaries: Sequence[Path], *, now: dt.datetime, valid_days: int
) -> tuple[Plan, Path]:
    """Draft a plan from the present roster and what its departments told.

    Args:
        home: the authority's home.
        ask: what is wanted.
        summaries: files of ``cityfed-client data declare``, one for each department of the cohort.
        now: the present time, UTC; the plan is valid from today.
        valid_days: days until it is not valid any more.

    Raises:
        ConfigError: ``roster-missing``, ``valid-days``, ``file-missing``, ``json-content``, ``cohort-too-small``,
            ``weights-missing``, ``plan-impossible``.
        ProtocolError: a summary does not verify: ``member-unknown``, ``signature-invalid``, ``city-foreign``,
            ``package-foreign``, ``summary-repeated``;
            ``message-malformed`` for a plan on file or the draft that cannot be read.
        SetupError: base weights are missing.
        ModelError: base weights are not usable.
    """
    if not 1 <= valid_days <= 366:
        raise ConfigError("valid-days", "A plan is valid for 1 to 366 days.")
    roster = load_members(home).roster
    told = _read_summaries(summaries, roster, load_city(home).digest())
    _require_cohort(len(told), len(roster.members))
    basis = load_basis(home, ask.model)
    plan = draft_plan(
        ask,
        basis,
        declared=told,
        roster=roster,
        privacy=calibrate(
            ask.privacy,
            attempts=ask.rounds + ask.spare_attempts,
            extras=ask.extras,
            aggregation=default_aggregation(len(roster.members), bound=ask.bound),
        ),
        approval=1 + max((line.approval for line in list_plans(home) if line.name == ask.name), default=0),
        valid_from=now.date(),
        valid_until=now.date() + dt.timedelta(days=valid_days),
    )
    content = encode(plan)
    decode(content, Plan, where="The draft")  # what nobody could read again would stand in the way of every other plan
    make_private_folder(home.models)
    write_model(home.model(plan.initial_model_sha256), basis.initial, plan)
    return plan, write_plan(home, PlanState.DRAFT, plan, content)


def city_line(plan: Plan) -> str:
    """Say what a plan costs somebody who is in every department's data, which no department can know (privacy 1)."""
    worst = city_worst_case(plan_events(plan, plan.attempts), len(plan.datasets), plan.privacy.budget.delta)
    who = in_every_department(plan.privacy.unit, worst.departments)
    return f"{who[0].upper()}{who[1:]} pays at most epsilon {worst.epsilon:.4f} at delta {worst.delta:g}."


def load_basis(home: AuthorityHome, choice: ModelChoice) -> ModelBasis:
    """Read layout and starting point of a model; base weights lie in the folder that server.toml names.

    Raises:
        ConfigError: ``weights-missing``, ``toml-content``.
        SetupError: base weights are missing.
        ModelError: base weights are not usable.
    """
    if choice.architecture == "hashed-words":
        return ModelBasis.load(choice.spec(HASHED_WORDS_SHA256), None)
    config = load_server(home)
    folder = home.root / config.weights
    file = folder / WEIGHTS_FILE
    if not config.weights or not file.is_file():
        raise ConfigError("weights-missing", f"`weights` in {home.config} must name the folder of {WEIGHTS_FILE}.")
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    spec: ModelSpec = choice.spec(digest)
    return ModelBasis.load(spec, folder)


def _scenario_text(name_or_path: str) -> str:
    """Read a packaged scenario or a file."""
    if name_or_path in PACKAGED:
        return packaged_scenario(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        known = ", ".join(PACKAGED)
        raise ConfigError("scenario-missing", f"There is no scenario {name_or_path}: give a TOML file or {known}.")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError("scenario-unreadable", f"{path} cannot be read as UTF-8 text.") from cause


def _read_summaries(files: Sequence[Path], roster: Roster, city: bytes) -> dict[DepartmentId, DatasetSummary]:
    """Verify what each department told with its key on the roster."""
    told: dict[DepartmentId, DatasetSummary] = {}
    for file in files:
        summary = _read_summary(file, roster, city)
        if summary.department in told:
            raise ProtocolError("summary-repeated", f"{file} is a second summary of {summary.department}.")
        told[DepartmentId(summary.department)] = summary
    return told


def _read_summary(file: Path, roster: Roster, city: bytes) -> DatasetSummary:
    """Read one summary."""
    signed = load_json(read_file(file), Signed, where=str(file))
    summary = decode(signed.body, DatasetSummary)
    if summary.department not in roster.members:
        raise ProtocolError("member-unknown", f"{file} comes from {summary.department}, which is not on the roster.")
    verify_bytes(roster.members[summary.department], SUMMARY_LABEL, signed.body, signed.signature)
    if summary.city != city:
        raise ProtocolError("city-foreign", f"{file} was made for another city.")
    if summary.package_digest != package_digest():
        raise ProtocolError(
            "package-foreign", f"{summary.department} has another version of this package installed than the authority."
        )
    return summary


def _require_cohort(departments: int, members: int) -> None:
    """Refuse a cohort that could never reach the least number of contributors."""
    least = default_aggregation(members, bound=1.0).min_contributors if members > 2 else 3
    if departments < least:
        raise ConfigError(
            "cohort-too-small",
            f"{departments} departments told of a data set; with {members} members on the roster {least} are needed.",
        )
