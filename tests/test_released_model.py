"""From a completed run to scores: the authority signs the model, a department installs and uses it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.config import load_config, load_department, open_journal
from clients.data_check import bind_data
from clients.desk import open_memory
from clients.models import Installed, fetch_model, predict
from clients.participant import Participant
from clients.plans import refuse_plan
from clients.shelf import fetch_released
from clients.training.noise import UnsafeSeededSource
from policies.evaluate import Decision
from policies.facts import Phase
from policies.load import sign_policy
from server.city import load_city, load_plan_key, load_roster_key
from server.coordinator import Coordinator
from server.office import open_office
from server.plan_files import load_published
from server.records import ModelReleased
from server.release import write_model
from server.released import put_on_shelf, release_model
from server.results import RoundResult
from server.roster import load_members
from server.runs import RunFolder
from shared.attack_audit import ATTACK_AUDIT_LABEL, AuditedClaim
from shared.codec import decode, dump_json, encode, load_json
from shared.errors import CityFedError
from shared.identity import IdentityKey, Roster, Signed, sign_record
from shared.journal import EntryKind
from shared.keystore import load_identity
from shared.messages import OpenEpoch
from shared.model_file import MODEL_FILE, file_digest
from shared.parameters import Vector, model_hash
from shared.plan import HOLDERS, Plan, ReleaseTerms
from shared.release import CARD_FILE, RECORD_FILE, RELEASE_LABEL, ModelRelease, open_release
from shared.roster import ROSTER_LABEL, endorse_key
from tests.city import FOUR
from tests.deployed_city import SMALL_ASK, DeployedCity, deploy_with_plan, now
from tests.finished_city import attack_audit, copied, file_run, run_published
from tests.shelf_city import open_shelf_of

TEXTS = ["we need water and food, please send help", "the council met and discussed the budget"]


@dataclass(frozen=True)
class Finished:
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


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("city")
    city, digest = deploy_with_plan(folder / "city")
    run = file_run(city, digest, run_published(city, digest))
    plan = load_published(city.authority, digest)[1]
    audit = attack_audit(city, "health", plan, folder / "audits")
    release_model(city.authority, run.path.name[:12], folder / "out", now=now(), audits=[audit])
    return Finished(city, plan, run, folder / "out")


@pytest.fixture
def finished(original: Finished, tmp_path: Path) -> Finished:
    """A copy that a test may change."""
    city = copied(original.city, tmp_path / "city")
    out = tmp_path / "out"
    out.mkdir()
    for path in original.out.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return Finished(city, original.plan, RunFolder(city.authority.runs / original.run.path.name), out)


def release(finished: Finished, *audits: Path, approved_by: str = "") -> ModelRelease:
    home, run = finished.city.authority, finished.run.path.name
    return release_model(home, run, finished.out, now=now(), audits=audits, approved_by=approved_by)


def refused(finished: Finished, run: str = "") -> str:
    with pytest.raises(CityFedError) as caught:
        finished.fetch(run)
    assert not (finished.config.parent / "models").exists()
    return caught.value.code


def decided(finished: Finished, rule: str) -> bool:
    """The newest finding about a rule in the department's journal."""
    with open_journal(finished.config) as journal:
        decision = decode(list(journal.entries(EntryKind.DECISION))[-1].body, Decision)
    assert decision.phase is Phase.RELEASE
    return all(item.ok for item in decision.findings if item.rule == rule)


def with_policy(finished: Finished, old: str, new: str) -> None:
    """Let the department's policy owner sign another policy."""
    path = finished.config.parent / "policy.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    signature = sign_policy(finished.city.policy_owners["police"], path.read_bytes()).signature
    path.with_name("policy.sig").write_bytes(signature)
    bind_data(finished.config, now=now())


def test_p4_the_signed_record_says_what_the_model_is_and_what_it_cost(original: Finished) -> None:
    signed = load_json((original.out / RECORD_FILE).read_bytes(), Signed, where="record")
    release = open_release(signed, key=load_city(original.city.authority).plan_key, plan=original.plan)
    assert release.contributors == (4, 4)
    assert release.file_sha256 == file_digest((original.out / MODEL_FILE).read_bytes())
    assert 0 < release.privacy.epsilon <= 2
    assert release.privacy.epsilon < release.privacy.city_worst_case.epsilon
    card = (original.out / CARD_FILE).read_text()
    for word in (
        release.file_sha256,
        release.plan_digest.hex(),
        *FOUR,
        release.terms.in_words(),
        "record, not per person",
        "City-wide worst",
    ):
        assert word in card


def test_a_run_that_did_not_complete_has_no_model(finished: Finished) -> None:
    finished.run.write(msgspec.structs.replace(finished.run.status(), state="failed"))
    with pytest.raises(CityFedError, match="has not been completed") as caught:
        release(finished, finished.audit())
    assert caught.value.code == "run-not-completed"


def test_p4_a_model_that_is_not_the_last_rounds_is_not_signed(finished: Finished) -> None:
    write_model(finished.run.path / MODEL_FILE, np.zeros(finished.plan.layout.size, dtype=np.float32), finished.plan)
    with pytest.raises(CityFedError) as caught:
        release(finished, finished.audit())
    assert caught.value.code == "model-changed"


def test_a_fetched_model_scores_a_table_by_the_bound_columns_and_lines_of_text(
    finished: Finished, tmp_path: Path
) -> None:
    finished.fetch()
    table, lines = tmp_path / "new.csv", tmp_path / "new.txt"
    table.write_text("id,narrative\n" + "".join(f'{at},"{text}"\n' for at, text in enumerate(TEXTS)))
    lines.write_text("\n".join(TEXTS) + "\n")
    found: dict[Path, list[dict[str, str]]] = {}
    for file in (table, lines):
        out = io.StringIO(newline="")
        predict(finished.config, file, run="", columns=(), out=out, now=now())
        found[file] = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert [row["id"] for row in found[table]] == ["0", "1"]
    scores = [row["score"] for row in found[table]]
    assert scores == [row["score"] for row in found[lines]]
    assert all(0 <= float(score) <= 1 for score in scores)
    assert len(set(scores)) == 2


def test_p4_what_another_key_signed_is_not_installed(finished: Finished) -> None:
    signed = load_json((finished.out / RECORD_FILE).read_bytes(), Signed, where="record")
    forged = IdentityKey.generate().sign(RELEASE_LABEL, signed.body)
    (finished.out / RECORD_FILE).write_bytes(dump_json(Signed(body=signed.body, signature=forged)))
    assert refused(finished) == "signature-invalid"


@pytest.mark.parametrize("field", ["plan_digest", "layout_digest", "initial_model_sha256", "base_weights_sha256"])
def test_p4_a_record_about_another_plan_is_not_installed(finished: Finished, field: str) -> None:
    finished.sign_again(**{field: "0" * 64 if field.endswith("sha256") else bytes(32)})
    assert refused(finished) == "release-foreign"


def test_p4_another_model_than_the_countersigned_one_is_not_installed_whoever_signed_it(finished: Finished) -> None:
    other = np.zeros(finished.plan.layout.size, dtype=np.float32)
    digest = write_model(finished.out / MODEL_FILE, other, finished.plan)
    assert refused(finished) == "model-changed"
    finished.sign_again(file_sha256=digest)
    assert refused(finished) == "model-changed"
    finished.sign_again(file_sha256=digest, model_hash=model_hash(other))
    assert refused(finished) == "model-changed"


class NeverFinal(Coordinator):
    """An authority that tells nobody which round is the last."""

    def run_round(self, number: int, model: Vector, *, final: bool) -> RoundResult:
        del final
        return super().run_round(number, model, final=False)


@pytest.mark.parametrize("absent", [False, True])
def test_p4_whoever_was_in_every_round_knows_the_last_one_without_being_told(tmp_path: Path, *, absent: bool) -> None:
    city, digest = deploy_with_plan(tmp_path / "city")
    stopped = city.home("police") / load_config(city.config("police")).stop_file
    if absent:
        stopped.touch()
    result = run_published(city, digest, coordinator=NeverFinal)
    stopped.unlink(missing_ok=True)
    plan, run = load_published(city.authority, digest)[1], file_run(city, digest, result)
    lied = Finished(city, plan, run, tmp_path / "out")
    release(lied, lied.audit())
    other = np.zeros(plan.layout.size, dtype=np.float32)
    lied.sign_again(file_sha256=write_model(lied.out / MODEL_FILE, other, plan), model_hash=model_hash(other))
    if absent:
        assert not lied.fetch().countersigned
    else:
        assert refused(lied) == "model-changed"


def test_p4_a_card_that_nobody_signed_is_not_installed(finished: Finished) -> None:
    with (finished.out / CARD_FILE).open("a") as card:
        card.write("Safe for decisions about persons.\n")
    assert refused(finished) == "card-changed"


def test_p4_another_model_than_the_countersigned_one_is_not_used_wherever_it_came_from(
    finished: Finished, tmp_path: Path
) -> None:
    finished.fetch()
    other = np.zeros(finished.plan.layout.size, dtype=np.float32)
    digest = write_model(finished.out / MODEL_FILE, other, finished.plan)
    finished.sign_again(file_sha256=digest, model_hash=model_hash(other))
    for name in (MODEL_FILE, RECORD_FILE):
        (finished.config.parent / "models" / finished.run.path.name / name).write_bytes(
            (finished.out / name).read_bytes()
        )
    with pytest.raises(CityFedError) as caught:
        predict(finished.config, tmp_path / "none.txt", run="", columns=(), out=io.StringIO(), now=now())
    assert caught.value.code == "model-changed"


def test_p4_a_model_of_a_plan_that_people_refused_is_not_installed(finished: Finished) -> None:
    refuse_plan(finished.config, finished.plan.digest().hex(), person="police-it", reason="", now=now())
    assert refused(finished) == "policy-refused"
    assert decided(finished, "R10") is False
    assert refused(finished, "ff") == "run-unknown"


def test_p4_a_model_whose_recipients_the_policy_does_not_list_any_more_is_not_installed(finished: Finished) -> None:
    with_policy(finished, 'recipients = ["cohort", "central-authority"]', 'recipients = ["cohort"]')
    assert refused(finished) == "policy-refused"
    assert decided(finished, "R21") is False


def test_p4_a_record_that_names_other_recipients_than_the_plan_is_not_installed(finished: Finished) -> None:
    finished.sign_again(terms=ReleaseTerms(recipients=(*HOLDERS, "parks")))
    assert refused(finished) == "release-foreign"


# --- the release gate (R26, R27) ---------------------------------------------------------------------------


def not_released(finished: Finished, *audits: Path) -> str:
    before = sorted((path.name, path.read_bytes()) for path in finished.out.iterdir())
    with pytest.raises(CityFedError) as caught:
        release(finished, *audits)
    assert before == sorted((path.name, path.read_bytes()) for path in finished.out.iterdir())
    return caught.value.code


def test_p4_without_the_audit_that_the_plan_demands_nothing_is_signed(finished: Finished) -> None:
    assert finished.plan.release.attack_audit
    assert not_released(finished) == "audit-missing"


REFUTED = tuple(AuditedClaim(name=name, epsilon=2.0, lower_bound=2.1, ceiling=6.0) for name in ("reference", "plan"))  # type: ignore[arg-type]  # both are claims
AUDITS: dict[str, tuple[dict[str, object], str]] = {
    "of another plan": ({"plan_digest": bytes(32)}, "audit-foreign"),
    "of another package": ({"package_digest": "0" * 64}, "audit-foreign"),
    "in another's name": ({"department": "police"}, "signature-invalid"),
    "of a stranger": ({"department": "zoo"}, "audit-foreign"),
    "that failed": ({"failures": ("claim-exceeded",)}, "audit-failed"),
    "that refutes a claim and does not say so": ({"claims": REFUTED}, "audit-failed"),
    "without the plan's claim": ({"claims": REFUTED[:1]}, "audit-failed"),
    "without a claim": ({"claims": ()}, "audit-failed"),
}


@pytest.mark.parametrize("name", AUDITS)
def test_p4_an_audit_counts_for_nobody(finished: Finished, name: str) -> None:
    """Neither for the authority, nor for a department if the authority's key signed it all the same."""
    changes, code = AUDITS[name]
    path = finished.audit(**changes)
    assert not_released(finished, path) == code
    finished.sign_again(audits=(load_json(path.read_bytes(), Signed, where="audit"),))
    assert refused(finished) == code


def next_roster(finished: Finished, key: IdentityKey | None, *, endorsed: bool = False) -> Signed:
    """A roster of the city's roster key with another key for health, or without health."""
    roster = load_members(finished.city.authority).roster
    members = {name: member for name, member in roster.members.items() if name != "health"}
    words: dict[str, bytes] = {}
    if key is not None:
        members["health"] = key.public
    if key is not None and endorsed:
        old = load_identity(finished.city.home("health") / load_config(finished.city.config("health")).identity)
        words["health"] = endorse_key(old, city=roster.city, department="health", key=key.public)
    newer = msgspec.structs.replace(roster, serial=roster.serial + 1, members=members, endorsements=words)
    return sign_record(load_roster_key(finished.city.authority), ROSTER_LABEL, newer)


def audited_with(finished: Finished, key: IdentityKey) -> None:
    """Let the authority sign a record whose audit by health has another key's signature."""
    (audit,) = finished.record().audits
    finished.sign_again(audits=(Signed(body=audit.body, signature=key.sign(ATTACK_AUDIT_LABEL, audit.body)),))


def test_p4_a_key_that_nobody_approved_here_audits_nothing_whoever_put_it_on_the_roster(finished: Finished) -> None:
    swapped = IdentityKey.generate()
    signed, plan = load_published(finished.city.authority, finished.plan.digest().hex())
    offer = OpenEpoch(
        run=plan.run_id(), epoch=99, cohort=plan.cohort, plan=signed, roster=next_roster(finished, swapped)
    )
    with open_journal(finished.config) as journal:
        node = Participant(load_department(finished.config), journal=journal, source=UnsafeSeededSource(1), clock=now)
        node.handle(encode(offer))
        assert node.last_refusal is not None
        assert node.last_refusal.code == "roster-key-unapproved"
    audited_with(finished, swapped)
    assert refused(finished) == "audit-foreign"


def test_p4_an_audit_by_a_key_that_was_exchanged_counts_no_more_and_one_by_the_new_key_does(finished: Finished) -> None:
    new = IdentityKey.generate()
    with open_memory(finished.config, now) as memory:
        memory.see_roster(signed := next_roster(finished, new, endorsed=True), decode(signed.body, Roster))
    assert refused(finished) == "signature-invalid"
    audited_with(finished, new)
    finished.fetch()


def test_p4_an_audit_by_a_department_that_was_removed_counts_no_more(finished: Finished) -> None:
    with open_memory(finished.config, now) as memory:
        memory.see_roster(signed := next_roster(finished, None), decode(signed.body, Roster))
    assert refused(finished) == "audit-foreign"


def test_p4_one_department_is_one_audit(finished: Finished) -> None:
    path = finished.audit()
    assert not_released(finished, path, path) == "audit-repeated"
    assert len(release(finished, path, finished.audit("police")).audits) == 2
    finished.fetch()


def test_p4_a_model_without_the_audit_is_not_installed_whoever_signed_it(finished: Finished) -> None:
    finished.sign_again(audits=())
    assert refused(finished) == "policy-refused"
    assert decided(finished, "R27") is False


@pytest.mark.parametrize(
    "change", [{"epsilon": 0.1}, {"lone_share_epsilon": 0.01}, {"delta": 1e-9}, {"unit": "person"}]
)
def test_p4_a_model_that_is_said_to_have_cost_less_is_not_installed(
    finished: Finished, change: dict[str, float | str]
) -> None:
    finished.sign_again(privacy=msgspec.structs.replace(finished.record().privacy, **change))
    assert refused(finished) == "policy-refused"
    assert decided(finished, "R27") is False


def test_p4_a_model_of_which_a_sum_had_a_single_contributor_is_not_installed(finished: Finished) -> None:
    finished.sign_again(contributors=(1,) * finished.plan.rounds)
    assert refused(finished) == "policy-refused"
    assert decided(finished, "R27") is False


def test_p4_a_department_that_wants_a_persons_approval_sees_one_or_installs_nothing(finished: Finished) -> None:
    with_policy(finished, "human_approval = false", "human_approval = true")
    assert refused(finished) == "policy-refused"
    assert decided(finished, "R26") is False
    release(finished, finished.audit(), approved_by="head of office")
    finished.fetch()
    assert "head of office" in (finished.out / CARD_FILE).read_text()


def test_p5_a_release_is_in_the_offices_journal_with_whom_it_is_for(finished: Finished) -> None:
    signed = release(finished, finished.audit("police"), approved_by="head of office")
    with open_office(finished.city.authority) as office:
        note = decode(list(office.journal.entries(EntryKind.MODEL_RELEASED))[-1].body, ModelReleased)
    assert (note.run, note.file_sha256) == (signed.run, signed.file_sha256)
    assert (note.recipients, note.audited_by, note.approved_by) == (HOLDERS, ("police",), "head of office")


def test_p4_a_plan_that_demands_a_person_is_not_released_without_one(tmp_path: Path) -> None:
    city, digest = deploy_with_plan(
        tmp_path / "city", ask=msgspec.structs.replace(SMALL_ASK, release=ReleaseTerms(human_approval=True))
    )
    plan = load_published(city.authority, digest)[1]
    run = file_run(city, digest, run_published(city, digest))
    (tmp_path / "out").mkdir()
    flagged = Finished(city, plan, run, tmp_path / "out")
    assert not_released(flagged, flagged.audit()) == "approver-missing"
    assert release(flagged, flagged.audit(), approved_by="head of office").approved_by == "head of office"


def test_p4_a_model_from_the_shelf_is_judged_as_one_from_a_folder(finished: Finished) -> None:
    home, run = finished.config.parent, finished.run.path.name
    with open_shelf_of(finished.city):
        with pytest.raises(CityFedError, match="no model of such a run"):
            fetch_released(finished.config, run, now=now())
        put_on_shelf(finished.city.authority, run, now=now(), audits=[finished.audit()])
        refuse_plan(finished.config, finished.plan.digest().hex(), person="police-it", reason="", now=now())
        with pytest.raises(CityFedError, match="R10"):
            fetch_released(finished.config, run, now=now())
        assert not (home / "models").exists()
        other = finished.city.config("health")
        installed = fetch_released(other, run[:8], now=now())
    assert installed.countersigned
    for name in (MODEL_FILE, RECORD_FILE, CARD_FILE):
        assert (other.parent / "models" / run / name).read_bytes() == (finished.out / name).read_bytes()
    assert not [*home.glob(".fetch-*"), *other.parent.glob(".fetch-*")]


def test_what_was_changed_after_it_was_installed_is_not_used(finished: Finished, tmp_path: Path) -> None:
    finished.fetch()
    model = finished.config.parent / "models" / finished.run.path.name / MODEL_FILE
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(CityFedError) as caught:
        predict(finished.config, tmp_path / "none.txt", run="", columns=(), out=io.StringIO(), now=now())
    assert caught.value.code == "model-changed"
