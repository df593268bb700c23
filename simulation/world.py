"""A world: one city on one machine, made of the same files that a real city has.

``cityfed-sim`` plays every owner (roster office, authority, policy owners, approvers); everything that is
made here is verified by the production code that reads it. Each seed and arm has a world of its own with
fresh keys and ledgers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from clients.binding import Declaration, bound_contract, load_binding
from clients.config import ClientConfig, load_department, open_journal
from clients.data_check import bind_data
from clients.department import Department
from clients.enrol import CONFIG_FILE
from clients.participant import Participant
from clients.records import Approved
from clients.training.noise import RandomSource
from policies.load import complete, department_names, department_policy, sign_policy
from policies.policy import Policy
from server.asks import ModelBasis, draft_plan
from server.audit import OWNER
from server.plans import sign_plan
from shared.contracts.contract import agreement_hash
from shared.errors import ConfigError
from shared.identity import DepartmentId, IdentityKey, Roster, Signed, fingerprint, sign_record
from shared.journal import EntryKind, Journal
from shared.keystore import save_identity
from shared.plan import Plan
from shared.privacy.plan import PerformanceFlags, PrivacyParams
from shared.private_files import make_private_folder, write_private_file
from simulation.rows import Split
from simulation.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class World:
    """One city: the authority's part and every department's Participant.

    Attributes:
        folder: holds ``authority/`` and one folder per department.
    """

    folder: Path
    plan: Plan
    signed_plan: Signed
    roster: Roster
    signed_roster: Signed
    authority: IdentityKey
    authority_journal: Journal
    participants: Mapping[DepartmentId, Participant]
    departments: Mapping[DepartmentId, Department]


@contextmanager
def open_world(
    folder: Path,
    *,
    scenario: Scenario,
    scenario_folder: Path,
    privacy: PrivacyParams,
    basis: ModelBasis,
    splits: Mapping[DepartmentId, Split],
    caches: Mapping[DepartmentId, Path | None],
    source: Callable[[DepartmentId], RandomSource],
) -> Iterator[World]:
    """Build a world in an empty folder, open its journals, and close them at the end.

    Raises:
        CityFedError: whatever the production code refuses: a binding, contract, policy or key.
    """
    make_private_folder(folder)
    keys = _Keys.generate(tuple(splits))
    today = now().date()
    declarations = {
        name: _found_department(
            folder / name,
            name,
            policy_text=policy_source(name, scenario, scenario_folder),
            keys=keys,
            split=splits[name],
            cache=caches[name],
            weights_dir=basis.weights_dir,
            performance=scenario.performance,
        )
        for name in splits
    }
    roster = Roster(city="simulated-city", serial=1, members={name: key.public for name, key in keys.members.items()})
    plan = draft_plan(
        scenario.plan_ask(),
        basis,
        declared=declarations,
        roster=roster,
        privacy=privacy,
        approval=1,
        valid_from=today,
        valid_until=today + dt.timedelta(days=30),
    )
    make_private_folder(folder / "authority")
    with (
        Journal.open(folder / "authority" / "journal.sqlite", owner=OWNER) as authority_journal,
        _open_participants(folder, plan, {name: source(name) for name in splits}) as participants,
    ):
        yield World(
            folder=folder,
            plan=plan,
            signed_plan=sign_plan(plan, keys.authority),
            roster=roster,
            signed_roster=sign_record(keys.roster, "roster", roster),
            authority=keys.authority,
            authority_journal=authority_journal,
            participants=participants,
            departments={name: node.department for name, node in participants.items()},
        )


@dataclass(frozen=True)
class _Keys:
    """Every private key of a simulated city; in a real one no two of them are in one place."""

    roster: IdentityKey
    authority: IdentityKey
    policy_owner: IdentityKey
    members: dict[DepartmentId, IdentityKey]

    @classmethod
    def generate(cls, names: tuple[DepartmentId, ...]) -> _Keys:
        """Make fresh keys."""
        return cls(
            roster=IdentityKey.generate(),
            authority=IdentityKey.generate(),
            policy_owner=IdentityKey.generate(),
            members={name: IdentityKey.generate() for name in names},
        )


def _found_department(
    home: Path,
    name: DepartmentId,
    *,
    policy_text: str,
    keys: _Keys,
    split: Split,
    cache: Path | None,
    weights_dir: Path | None,
    performance: PerformanceFlags,
) -> Declaration:
    """Write a department's folder as its own people would: key, policy, signature, configuration, declaration."""
    make_private_folder(home)
    binding = load_binding(split.train)
    text = complete(
        policy_text,
        dataset=binding.dataset,
        contract_hash=agreement_hash(bound_contract(binding)),
        plan_key_fingerprint=fingerprint(keys.authority.public),
        roster_key_fingerprint=fingerprint(keys.roster.public),
    ).encode()
    write_private_file(home / "policy.toml", text)
    write_private_file(home / "policy.sig", sign_policy(keys.policy_owner, text).signature)
    save_identity(home / "identity.key", keys.members[name])
    config = ClientConfig(
        department=name,
        roster_key=keys.roster.public.hex(),
        authority_key=keys.authority.public.hex(),
        policy_owner_key=keys.policy_owner.public.hex(),
        members={str(member): key.public.hex() for member, key in keys.members.items()},
        binding=str(split.train.absolute()),
        weights=str(weights_dir.absolute()) if weights_dir else "",
        feature_cache=str(cache.absolute()) if cache else "",
        performance=performance,
    )
    write_private_file(home / CONFIG_FILE, tomli_w.dumps(msgspec.to_builtins(config)).encode())
    return bind_data(home / CONFIG_FILE, now=now())


def policy_source(name: DepartmentId, scenario: Scenario, scenario_folder: Path) -> str:
    """Return the policy text of a department: its own file, or the packaged one of its name.

    Raises:
        ConfigError: ``policy-missing``.
    """
    own = scenario.departments[name].policy
    if own:
        path = scenario_folder / own
        if path.is_file():
            return path.read_text()
        raise ConfigError("policy-missing", f"The policy {path} is not there.")
    if name in department_names():
        return department_policy(name)
    raise ConfigError(
        "policy-missing", f"Department {name} has no packaged policy: name a file as `departments.{name}.policy`."
    )


@contextmanager
def _open_participants(
    folder: Path, plan: Plan, sources: Mapping[DepartmentId, RandomSource]
) -> Iterator[dict[DepartmentId, Participant]]:
    """Load every department, open its journal, approve the plan in it, and start its node."""
    with ExitStack() as stack:
        participants: dict[DepartmentId, Participant] = {}
        for name, source in sources.items():
            config = folder / name / CONFIG_FILE
            department, journal = load_department(config), stack.enter_context(open_journal(config))
            _approve(journal, plan, department.policy.policy, now=now())
            participants[name] = Participant(department, journal=journal, source=source, clock=now)
        yield participants


def _approve(journal: Journal, plan: Plan, policy: Policy, *, now: dt.datetime) -> None:
    """Record the approvals that R10 asks for, as the people named in the policy would."""
    for person, role in sorted(policy.approval.people.items()):
        approved = Approved(digest=plan.digest(), person=person, role=role, author=False)
        journal.append(EntryKind.APPROVAL, approved, now=now)


def now() -> dt.datetime:
    """Return the present time, UTC: the one clock of a simulation."""
    return dt.datetime.now(dt.UTC)
