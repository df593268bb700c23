"""A whole city on disk, provisioned by the code that a real one runs: authority home and one home per department.

Used by whatever needs keys, certificates, homes or an approved plan without going through the commands.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from clients.binding import bound_contract, load_binding
from clients.config import load_config
from clients.data_check import bind_data, write_summary
from clients.enrol import CONFIG_FILE, enrol, install_admission
from clients.plans import add_plan, approve_plan
from clients.roster import approve_keys
from policies.load import complete, sign_policy
from server.asks import ModelChoice, PlanAsk, PrivacyAsk
from server.city import found_city, load_city
from server.config import new_config
from server.drafts import draft
from server.home import AuthorityHome
from server.plan_files import load_published, publish, sign
from server.roster import admit, load_members, read_request
from shared.codec import dump_json
from shared.contracts.contract import agreement_hash
from shared.identity import IdentityKey, fingerprint
from shared.plan import LocalOptimizer
from shared.private_files import replace_private_file
from tests.city import FOUR, binding_of, lowered_policy

LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class DeployedCity:
    """Where everything lies, and the keys of the departments' policy owners."""

    folder: Path
    authority: AuthorityHome
    policy_owners: dict[str, IdentityKey]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.policy_owners)

    def home(self, department: str) -> Path:
        return self.folder / department

    def config(self, department: str) -> Path:
        return self.home(department) / CONFIG_FILE

    def edit_config(self, department: str, **changes: object) -> None:
        path = self.config(department)
        path.write_text(tomli_w.dumps({**msgspec.toml.decode(path.read_bytes()), **changes}))

    def edit_authority(self, **changes: object) -> None:
        path = self.authority.config
        path.write_text(tomli_w.dumps({**msgspec.toml.decode(path.read_bytes()), **changes}))


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def found(folder: Path, *, city: str = "metropolis", hosts: Sequence[str] = LOOPBACK, **ports: int) -> AuthorityHome:
    """Found a city; ports as `fleet_port`, `channel_port` and `shelf_port`."""
    home = AuthorityHome(folder / "authority")
    settings = {"fleet_port": 9443, "channel_port": 9444, "shelf_port": 9445} | ports
    found_city(home, new_config(city, hosts, listen="127.0.0.1", **settings), now=now())
    return home


def join(city: DeployedCity, department: str) -> None:
    """Enrol a department and have it admitted, as its people and the authority's would."""
    home, described = city.home(department), load_city(city.authority)
    enrolled = enrol(
        home,
        department,
        city_file=city.authority.city,
        city_fingerprint=described.fingerprint(),
        policy_owner_key=city.policy_owners[department].public.hex(),
    )
    request = read_request(enrolled.request)
    admission = admit(city.authority, request, fingerprint_typed=enrolled.fingerprint, now=now())
    replace_private_file(home / "admission.json", dump_json(admission))
    install_admission(home / CONFIG_FILE, home / "admission.json", now=now())


def bind(city: DeployedCity, department: str) -> None:
    """Give a department its fixture's rows, a signed policy that the small fixture meets, and a declaration."""
    home, source = city.home(department), binding_of(department)
    shutil.copy(source, home / "binding.toml")
    shutil.copy(source.with_suffix(".csv"), home)
    described = load_city(city.authority)
    binding = load_binding(home / "binding.toml")
    text = complete(
        Path(lowered_policy(city.folder, department)).read_text(),
        dataset=binding.dataset,
        contract_hash=agreement_hash(bound_contract(binding)),
        plan_key_fingerprint=fingerprint(described.plan_key),
        roster_key_fingerprint=fingerprint(described.roster_key),
    ).encode()
    config = load_config(city.config(department))
    (home / config.policy).write_bytes(text)
    (home / config.policy_signature).write_bytes(sign_policy(city.policy_owners[department], text).signature)
    bind_data(city.config(department), now=now())


def compare_keys(city: DeployedCity) -> None:
    """Let every department approve every member's key by its fingerprint."""
    members = load_members(city.authority).roster.members
    for department in city.names:
        printed = [fingerprint(key) for key in members.values()]
        approve_keys(city.config(department), printed, city.authority.roster, now=now())


SMALL_ASK = PlanAsk(
    name="small",
    purpose="emergency-triage",
    rounds=2,
    spare_attempts=1,
    model=ModelChoice(architecture="hashed-words"),
    privacy=PrivacyAsk(epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=2, max_grad_norm=1.0),
    optimizer=LocalOptimizer(kind="sgd", learning_rate=2.0),
)


def publish_plan(city: DeployedCity, ask: PlanAsk = SMALL_ASK) -> str:
    """Let every department tell of its data, then draft, sign and publish a plan; returns its digest."""
    summaries = [city.home(name) / "summary.json" for name in city.names]
    for name, path in zip(city.names, summaries, strict=True):
        write_summary(city.config(name), path)
    plan, _ = draft(city.authority, ask, summaries, now=now(), valid_days=30)
    digest = plan.digest().hex()
    sign(city.authority, digest, now=now())
    publish(city.authority, digest, now=now())
    return digest


def hand_out(city: DeployedCity, digest: str) -> None:
    """Put the published plan into every department's folder."""
    for name in city.names:
        add_plan(city.config(name), load_published(city.authority, digest)[0])


def approve_everywhere(city: DeployedCity, digest: str) -> None:
    """Let a steward and IT of every department approve a plan that lies there."""
    for name in city.names:
        person = name if name in FOUR else "police"
        for role in ("steward", "it"):
            approve_plan(city.config(name), digest, person=f"{person}-{role}", author=False, now=now())


def deploy_city(folder: Path, names: Sequence[str] = FOUR, **ports: int) -> DeployedCity:
    """Provision a whole city: every department enrolled, admitted, bound, and knowing every key."""
    folder.mkdir(parents=True, exist_ok=True)
    city = DeployedCity(folder, found(folder, **ports), {name: IdentityKey.generate() for name in names})
    for name in names:
        join(city, name)
        bind(city, name)
    compare_keys(city)
    return city


def deploy_with_plan(
    folder: Path, ask: PlanAsk = SMALL_ASK, names: Sequence[str] = FOUR, **ports: int
) -> tuple[DeployedCity, str]:
    """Provision a whole city with one plan that is published and approved everywhere; returns its digest too."""
    city = deploy_city(folder, names, **ports)
    digest = publish_plan(city, ask)
    hand_out(city, digest)
    approve_everywhere(city, digest)
    return city, digest
