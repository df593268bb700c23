"""A city whose run has been released: the authority's folders, and the police department that fetches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from clients.config import open_journal
from clients.data_check import bind_data
from clients.models import Installed, fetch_model
from policies.evaluate import Decision
from policies.facts import Phase
from policies.load import sign_policy
from server.city import load_plan_key
from server.released import release_model
from server.runs import RunFolder
from shared.codec import decode, dump_json, load_json
from shared.identity import Signed, sign_record
from shared.journal import EntryKind
from shared.plan import Plan
from shared.release import RECORD_FILE, RELEASE_LABEL, ModelRelease
from tests.deployed_city import DeployedCity, now
from tests.finished_city import attack_audit
from tests.refusals import code_of


@dataclass(frozen=True)
class Finished:
    """The city, its plan, the folder of the run, and the folder that was released."""

    city: DeployedCity
    plan: Plan
    run: RunFolder
    out: Path

    @property
    def config(self) -> Path:
        return self.city.config("police")

    def fetch(self, run: str = "") -> Installed:
        return fetch_model(self.config, run or self.run.path.name, source=self.out, now=now())

    def audit(self, signer: str = "health", **changes: object) -> Path:
        return attack_audit(self.city, signer, self.plan, self.out.parent / "audits", **changes)

    def record(self) -> ModelRelease:
        return decode(load_json((self.out / RECORD_FILE).read_bytes(), Signed, where="record").body, ModelRelease)

    def sign_again(self, **changes: object) -> None:
        """Let the authority's key sign something else."""
        changed = msgspec.structs.replace(self.record(), **changes)
        key = load_plan_key(self.city.authority)
        (self.out / RECORD_FILE).write_bytes(dump_json(sign_record(key, RELEASE_LABEL, changed)))


def release(finished: Finished, *audits: Path, approved_by: str = "") -> ModelRelease:
    home, run = finished.city.authority, finished.run.path.name
    return release_model(home, run, finished.out, now=now(), audits=audits, approved_by=approved_by)


def not_released(finished: Finished, *audits: Path, approved_by: str = "") -> str:
    """Why the authority's office releases nothing; what it released before stays as it is."""
    before = sorted((path.name, path.read_bytes()) for path in finished.out.iterdir())
    code = code_of(lambda: release(finished, *audits, approved_by=approved_by))
    assert before == sorted((path.name, path.read_bytes()) for path in finished.out.iterdir())
    return code


def not_installed(finished: Finished, run: str = "") -> str:
    """Why the police department installs nothing."""
    code = code_of(lambda: finished.fetch(run))
    assert not (finished.config.parent / "models").exists()
    return code


def broken_rules(finished: Finished) -> set[str]:
    """The rules that failed in the newest decision of the department's journal."""
    with open_journal(finished.config) as journal:
        decision = decode(list(journal.entries(EntryKind.DECISION))[-1].body, Decision)
    assert decision.phase is Phase.RELEASE
    return {item.rule for item in decision.failed}


def with_policy(finished: Finished, old: str, new: str) -> None:
    """Let the department's policy owner sign another policy."""
    sign_policy_anew(finished.city, "police", old, new)


def sign_policy_anew(city: DeployedCity, name: str, old: str, new: str) -> None:
    """Let a department's policy owner sign another policy."""
    path = city.home(name) / "policy.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    signature = sign_policy(city.policy_owners[name], path.read_bytes()).signature
    path.with_name("policy.sig").write_bytes(signature)
    bind_data(city.config(name), now=now())
