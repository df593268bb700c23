"""Plans at a department: what is wrong with one is named, and nothing runs that two people did not approve."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from clients.cli import main
from clients.config import load_department, open_journal, read_signed
from clients.data_check import bind_data
from clients.memory import Memory
from clients.outbox import leave_decision
from clients.participant import Participant
from clients.plans import add_plan, approve_plan, inspect_plan, list_plans, refuse_plan
from clients.policy_file import sign_policy_file
from clients.records import RosterSeen
from clients.training.noise import UnsafeSeededSource
from server.city import load_plan_key, load_roster_key
from server.plan_files import load_published
from shared.codec import encode
from shared.errors import CityFedError, ConfigError, PolicyViolation
from shared.identity import IdentityKey, Signed, sign_record
from shared.journal import EntryKind
from shared.keystore import save_identity
from shared.messages import Refusal, decode_reply
from shared.parameters import ExtraSpec
from shared.plan import Plan
from tests.command_line import Run, runner
from tests.deployed_city import DeployedCity, deploy_city, hand_out, now, publish_plan

STEWARD, IT, DPO = "police-steward", "police-it", "police-dpo"


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeployedCity, str]:
    """A city with one published plan, handed out and not approved; nobody changes it."""
    city = deploy_city(tmp_path_factory.mktemp("plans"))
    digest = publish_plan(city)
    hand_out(city, digest)
    return city, digest


class Desk:
    """The police department's copy of it."""

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


@pytest.fixture
def desk(provisioned: tuple[DeployedCity, str], tmp_path: Path) -> Desk:
    return Desk(*provisioned, tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(main, capsys, monkeypatch)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(CityFedError) as caught:
        act()
    return caught.value.code


# --- looking -----------------------------------------------------------------------------------------------


def test_inspect_shows_everything_that_a_person_weighs(desk: Desk) -> None:
    found = inspect_plan(desk.config, desk.digest, now=now())
    assert found.plan == desk.plan
    assert found.update_bytes == 4 * desk.plan.layout.total_size
    assert found.updates == desk.plan.rounds + desk.plan.spare_attempts
    assert found.epsilon_asked == desk.plan.privacy.budget.epsilon
    assert 0 < found.epsilon_computed <= found.epsilon_asked
    assert found.epsilon_left == found.epsilon_cap == 12
    lifetime = next(line for line in found.budgets if line.budget == "lifetime")
    assert found.epsilon_computed < lifetime.found < lifetime.limit == found.epsilon_cap
    assert not found.closes_lifetime
    assert {item.rule for item in found.decision.failed} == {"R10"}
    assert (found.approvals, found.refused_by) == ((), ())


def test_what_a_person_reads_agrees_with_the_rules_and_names_nobody_twice(run: Run, desk: Desk) -> None:
    for _ in range(2):
        approve_plan(desk.config, desk.digest, person="police-steward", author=False, now=now())
    found = inspect_plan(desk.config, desk.digest, now=now())
    assert found.approvals == (("police-steward", "steward"),)
    counted = next(line.found for line in found.budgets if line.budget == "lifetime")
    held = {item.rule: item.found for item in found.decision.findings}
    assert any(f"lifetime epsilon with this run: {counted!r}" in item.found for item in found.decision.findings)
    assert held["R17"] == "metrics: none"
    page = run("plan", "inspect", desk.config, desk.digest).out
    assert f"the data set, for ever: epsilon {counted:.4f} of 12" in page
    assert "would be the last plan" not in page


def test_inspect_names_the_metrics_that_would_leave_and_one_without_noise_is_not_judged(run: Run, desk: Desk) -> None:
    assert "  metrics       none\n" in run("plan", "inspect", desk.config, desk.digest).out
    loss = ExtraSpec(
        name="train-loss-sum", unit_bound=2.0, sample_rate=1.0, noise_multiplier=150.0, max_abs=1e4, scale=1e-3
    )
    for noise, words in ((150.0, "train-loss-sum with noise of stddev 300 each round"), (0.0, "extra-not-noised")):
        extra = msgspec.structs.replace(loss, noise_multiplier=noise)
        layout = msgspec.structs.replace(desk.plan.layout, extras=(extra,))
        digest = desk.changed(layout=layout)
        ended = run("plan", "inspect", desk.config, digest)
        assert words in ended.out + ended.err
        assert ended.code == (0 if noise else 7)
        (desk.file.parent / f"{digest}.plan").unlink()


def test_looking_changes_nothing(desk: Desk) -> None:
    def entries() -> int:
        with open_journal(desk.config) as journal:
            return journal.head.sequence

    before = entries()
    inspect_plan(desk.config, desk.digest, now=now())
    list_plans(desk.config, now=now())
    assert entries() == before


def test_every_file_of_the_folder_has_a_state(desk: Desk) -> None:
    assert desk.state() == "waiting"
    assert desk.approve(STEWARD) is False
    assert desk.state() == "waiting"
    assert desk.approve(IT) is True
    assert desk.state() == "approved"
    desk.refuse(DPO)
    assert desk.state() == "refused"


def test_an_empty_folder_is_in_order(desk: Desk) -> None:
    shutil.rmtree(desk.file.parent)
    assert list_plans(desk.config, now=now()) == ()


# --- refused by name ---------------------------------------------------------------------------------------


def test_an_unsigned_or_forged_plan_is_named(desk: Desk) -> None:
    original = desk.file.read_bytes()
    forged = sign_record(IdentityKey.generate(), "plan", desk.plan)
    for content, code in (
        (encode(forged), "signature-invalid"),
        (encode(desk.plan), "message-malformed"),
        (original[:-1], "message-malformed"),
        (original.replace(b"small", b"large", 1), "signature-invalid"),
    ):
        desk.file.write_bytes(content)
        assert desk.state() == code
        assert refusal(lambda: desk.approve(STEWARD)) == code
    assert refusal(lambda: add_plan(desk.config, forged)) == "signature-invalid"


def test_another_plan_under_an_approved_ones_name_is_named(desk: Desk) -> None:
    key = load_plan_key(desk.city.authority)
    desk.file.write_bytes(encode(sign_record(key, "plan", msgspec.structs.replace(desk.plan, rounds=1))))
    assert desk.state() == "plan-changed"
    assert refusal(lambda: desk.approve(STEWARD)) == "plan-changed"


def test_an_expired_plan_is_named_and_one_for_later_is_refused_by_its_rule(desk: Desk) -> None:
    late = now() + dt.timedelta(days=31)
    assert desk.state(late) == "plan-expired"
    assert refusal(lambda: desk.approve(STEWARD, at=late)) == "plan-expired"
    with pytest.raises(PolicyViolation, match="R19"):
        desk.approve(STEWARD, at=now() - dt.timedelta(days=2))


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"package_digest": "other"}, "package-foreign"), ({"roster_size": 5}, "roster-size")],
)
def test_a_plan_for_other_software_or_another_roster_is_named(
    desk: Desk, changes: dict[str, object], code: str
) -> None:
    digest = desk.changed(**changes)
    assert desk.state() == code
    assert refusal(lambda: desk.approve(STEWARD, digest=digest)) == code


def test_a_plan_for_others_is_named(desk: Desk) -> None:
    others = {name: terms for name, terms in desk.plan.datasets.items() if name != "police"}
    desk.changed(datasets=others)
    assert desk.state() == "cohort-foreign"


def test_a_plan_that_a_rule_refuses_cannot_be_approved(desk: Desk) -> None:
    digest = desk.changed(purpose="advertising")
    assert desk.state() == "waiting"
    assert {item.rule for item in inspect_plan(desk.config, digest, now=now()).decision.failed} == {"R02", "R10"}
    with pytest.raises(PolicyViolation, match="R02"):
        desk.approve(STEWARD, digest=digest)
    assert inspect_plan(desk.config, digest, now=now()).approvals == ()


@pytest.mark.parametrize("digest", ["", "ab" * 32, "../client", "ab" * 31])
def test_a_digest_that_names_no_plan_is_one_sentence(desk: Desk, digest: str) -> None:
    for act in (
        lambda: inspect_plan(desk.config, digest, now=now()),
        lambda: approve_plan(desk.config, digest, person=STEWARD, author=False, now=now()),
        lambda: refuse_plan(desk.config, digest, person=STEWARD, reason="", now=now()),
    ):
        assert refusal(act) == "plan-unknown"


# --- deciding ----------------------------------------------------------------------------------------------


def test_only_people_whom_the_policy_names_decide(desk: Desk) -> None:
    assert refusal(lambda: desk.approve("somebody")) == "person-unknown"
    assert refusal(lambda: desk.refuse("somebody")) == "person-unknown"


def test_whoever_wrote_the_plan_is_not_enough(desk: Desk) -> None:
    assert desk.approve(STEWARD, author=True) is False
    assert desk.approve(IT, author=True) is False
    desk_of_two = inspect_plan(desk.config, desk.digest, now=now())
    assert {item.rule for item in desk_of_two.decision.failed} == {"R10"}


def test_an_approval_is_for_one_digest(desk: Desk) -> None:
    desk.approve(STEWARD)
    desk.approve(IT)
    digest = desk.changed(rounds=1)
    assert desk.state() == "waiting"
    assert inspect_plan(desk.config, digest, now=now()).approvals == ()


def test_a_no_stands_until_the_same_person_approves_and_all_is_approved_anew(desk: Desk) -> None:
    desk.approve(STEWARD)
    desk.approve(IT)
    desk.refuse(DPO)
    assert desk.approve(STEWARD) is False
    assert desk.approve(IT) is False, "the data protection officer's no stands"
    assert desk.state() == "refused"
    assert desk.approve(DPO) is True
    desk.refuse(STEWARD)
    assert desk.approve(STEWARD) is False, "IT has to say yes again"
    assert desk.approve(IT) is True


def test_who_wrote_a_plan_stays_its_author_after_a_refusal(desk: Desk) -> None:
    desk.approve(STEWARD, author=True)
    desk.refuse(STEWARD)
    desk.approve(STEWARD)
    assert desk.approve(IT) is True
    with open_journal(desk.config) as journal:
        memory = Memory(journal, now)
    assert any(item.author and not item.role for item in memory.approvals)


def test_decisions_are_in_the_journal_with_every_finding(desk: Desk) -> None:
    desk.approve(STEWARD)
    desk.refuse(IT)
    with open_journal(desk.config) as journal:
        kinds = [entry.kind for entry in journal.entries()]
    assert kinds[-3:] == ["decision", "approval", "plan-refused"]


def test_without_a_roster_nothing_is_judged(desk: Desk) -> None:
    for path in desk.config.parent.glob("journal.sqlite*"):
        path.unlink()
    assert refusal(lambda: inspect_plan(desk.config, desk.digest, now=now())) == "roster-unknown"


# --- beside a node at work ---------------------------------------------------------------------------------


@contextmanager
def node_at_work(desk: Desk) -> Iterator[Participant]:
    with open_journal(desk.config) as journal:
        department = load_department(desk.config)
        yield Participant(department, journal=journal, source=UnsafeSeededSource(1), clock=now)


def ask(node: Participant) -> str:
    """Send what no coordinator would send; returns the status of the refusal."""
    refused = decode_reply(node.handle(b"nothing"))
    assert isinstance(refused, Refusal)
    return refused.status


def test_a_node_takes_over_what_people_decided_before_its_next_answer(desk: Desk) -> None:
    with node_at_work(desk) as node:
        assert desk.approve(STEWARD) is False
        assert desk.approve(IT) is True
        assert desk.state() == "approved"
        assert node.memory.approvals == []
        ask(node)
        assert [item.person for item in node.memory.approvals] == [STEWARD, IT]
        desk.refuse(DPO)
        ask(node)
        assert node.memory.refused_by(desk.plan.digest()) == (DPO,)
        assert all(item.role == "" for item in node.memory.approvals_of(desk.plan.digest()))
        assert not list((desk.config.parent / "outbox").iterdir())
    assert desk.state() == "refused"


def test_what_no_node_took_over_counts_as_soon_as_somebody_opens_the_journal(desk: Desk) -> None:
    with node_at_work(desk):
        desk.approve(STEWARD)
        desk.approve(IT)
    assert desk.state() == "approved"
    assert not list((desk.config.parent / "outbox").iterdir())
    with open_journal(desk.config) as journal:
        assert [entry.kind for entry in journal.entries()][-4:] == ["decision", "approval"] * 2


def test_a_takeover_that_was_interrupted_is_repeated_without_harm(desk: Desk) -> None:
    outbox = desk.config.parent / "outbox"
    with node_at_work(desk) as node:
        desk.approve(STEWARD)
        desk.refuse(STEWARD)
        desk.approve(STEWARD)
        left = {path: path.read_bytes() for path in outbox.iterdir()}
        ask(node)
        for path, content in left.items():
            path.write_bytes(content)
        ask(node)
        assert node.memory.refused_by(desk.plan.digest()) == ()
        counted = {item.person for item in node.memory.approvals_of(desk.plan.digest()) if item.role}
        assert counted == {STEWARD}


def test_a_file_that_is_no_decision_refuses_everything(desk: Desk) -> None:
    outbox = desk.config.parent / "outbox"
    outbox.mkdir()
    foreign = msgspec.msgpack.encode({"kind": "charge-settled", "body": msgspec.msgpack.encode({"run": b"r"})})
    with node_at_work(desk) as node:
        for content, code in ((b"no decision", "message-malformed"), (foreign, "decision-malformed")):
            (outbox / "000001-00.decision").write_bytes(content)
            assert ask(node) == "unavailable"
            assert node.last_refusal is not None
            assert node.last_refusal.code == code


def test_a_roster_that_waited_never_replaces_a_newer_one(desk: Desk) -> None:
    older = desk.city.authority.roster.read_bytes()
    with node_at_work(desk) as node:
        known = node.memory.roster
        assert known is not None
        for serial, taken in ((known.serial, False), (known.serial + 1, True), (known.serial, False)):
            roster = msgspec.structs.replace(known, serial=serial)
            signed = sign_record(load_roster_key(desk.city.authority), "roster", roster)
            leave_decision(desk.config.parent / "outbox", EntryKind.ROSTER, RosterSeen(roster=signed))
            assert node.memory.take_over(desk.config.parent / "outbox") is taken
        assert node.memory.roster == msgspec.structs.replace(known, serial=known.serial + 1)
    assert desk.city.authority.roster.read_bytes() == older


def test_only_what_people_decide_is_left(desk: Desk) -> None:
    with pytest.raises(ValueError, match="command line"):
        leave_decision(desk.config.parent / "outbox", EntryKind.BURNED, desk.plan)


# --- the command -------------------------------------------------------------------------------------------


def test_the_commands_add_list_inspect_approve_and_refuse(run: Run, desk: Desk, tmp_path: Path) -> None:
    handed = tmp_path / "handed.plan"
    desk.file.rename(handed)
    assert run("plan", "list", desk.config).out == "There is no plan.\n"
    assert run("plan", "add", desk.config, handed).out == f"{desk.digest}\n"
    assert read_signed(handed) == read_signed(desk.file)
    out = run("plan", "inspect", desk.config, desk.digest).out
    for word in ("purpose       emergency-triage", "learns request from description", "public size   90", "R10", "R12"):
        assert word in out
    assert "recipients    cohort, central-authority; nobody in another country" in out
    assert f"{desk.plan.attempts} encrypted updates of {4 * desk.plan.layout.total_size} bytes" in out
    ended = run("plan", "approve", desk.config, desk.digest, "--person", STEWARD)
    assert ended.out == f"{STEWARD} approved small. It needs a steward and IT, one of them not its author.\n"
    assert run("plan", "approve", desk.config, desk.digest, "--person", IT).out.endswith("It may run.\n")
    shown = json.loads(run("plan", "inspect", desk.config, desk.digest, "--json").out)
    assert [item["ok"] for item in shown["decision"]["findings"]] == [True] * len(shown["decision"]["findings"])
    assert run("plan", "refuse", desk.config, desk.digest, "--person", DPO, "--reason", "why").code == 0
    assert "refused by    police-dpo" in run("plan", "inspect", desk.config, desk.digest).out
    (line,) = json.loads(run("plan", "list", desk.config, "--json").out)
    assert line["state"] == "refused"
    assert "refused" in run("plan", "list", desk.config).out


def test_a_file_that_is_no_plan_is_one_sentence(run: Run, desk: Desk, tmp_path: Path) -> None:
    for file, code, reason in ((tmp_path / "nowhere", 2, "file-missing"), (desk.config, 7, "message-malformed")):
        ended = run("plan", "add", desk.config, file)
        assert (ended.code, ended.sentence.endswith(f"[{reason}]")) == (code, True)


# --- what a department tells, and its policy ---------------------------------------------------------------


def test_a_summary_tells_public_facts_only(run: Run, desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "summary.json"
    assert run("data", "declare", desk.config, "--out", out).code == 0
    signed = msgspec.json.decode(out.read_bytes(), type=Signed)
    told = msgspec.msgpack.decode(signed.body)
    assert set(told) == {
        "version", "city", "department", "dataset", "contract_hash", "public_size", "package_digest",
    }  # fmt: skip
    declaration = load_department(desk.config).declaration
    assert told["public_size"] == declaration.public_size != declaration.units


def test_the_policy_is_written_and_signed_by_its_owner(run: Run, desk: Desk, tmp_path: Path) -> None:
    policy, key = desk.config.with_name("policy.toml"), tmp_path / "owner.key"
    ended = run("policy", "draft", desk.config, "police")
    assert (ended.code, ended.sentence.endswith("[policy-exists]")) == (2, True)
    policy.rename(tmp_path / "mine.toml")
    ended = run("policy", "draft", desk.config, "nobody")
    assert (ended.code, ended.sentence.endswith("[template-unknown]")) == (2, True)
    assert run("policy", "draft", desk.config, "police").code == 0
    assert "plan_key_fingerprint" in policy.read_text()
    public = run("policy", "owner-key", key).out.strip()
    assert len(public) == 64
    ended = run("policy", "sign", desk.config, "--key", key)
    assert (ended.code, ended.sentence.endswith("[key-foreign]")) == (2, True)
    save_identity(tmp_path / "right.key", desk.city.policy_owners["police"])
    assert run("policy", "sign", desk.config, "--key", tmp_path / "right.key").code == 0
    policy.write_text(policy.read_text().replace('department = "police"', 'department = "health"'))
    with pytest.raises(ConfigError) as caught:
        sign_policy_file(desk.config, tmp_path / "right.key")
    assert caught.value.code == "policy-department"
