"""Plans at a department: what a person sees, and what is wrong with one is named."""

from __future__ import annotations

import datetime as dt
import shutil

import msgspec
import pytest

from clients.config import open_journal
from clients.plans import add_plan, approve_plan, inspect_plan, list_plans, plan_of_run, refuse_plan
from server.city import load_plan_key
from shared.codec import encode
from shared.errors import PolicyViolation
from shared.identity import IdentityKey, sign_record
from shared.parameters import ExtraSpec
from tests.clients.plan_desk import DPO, IT, STEWARD, Desk
from tests.command_line import Run
from tests.deployed_city import now
from tests.refusals import code_of

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


@pytest.mark.parametrize("name", ["0" * 64, "f" * 64])
def test_a_plan_that_nobody_can_read_any_more_keeps_no_other_one_from_its_run(desk: Desk, name: str) -> None:
    """As after an upgrade: what an earlier version approved may be none any more."""
    desk.file.with_stem(name).write_bytes(encode(desk.plan))
    assert plan_of_run(desk.config, desk.plan.run_id()) == desk.plan
    assert code_of(lambda: plan_of_run(desk.config, bytes(32))) == "message-malformed"
    desk.file.with_stem(name).unlink()
    assert code_of(lambda: plan_of_run(desk.config, bytes(32))) == "plan-unknown"


@pytest.mark.parametrize("name", ["0" * 64, "f" * 64])
def test_a_plan_file_that_cannot_be_read_keeps_no_other_one_from_its_run(desk: Desk, name: str) -> None:
    desk.file.with_stem(name).mkdir()
    assert plan_of_run(desk.config, desk.plan.run_id()) == desk.plan
    assert code_of(lambda: plan_of_run(desk.config, bytes(32))) == "file-missing"


def test_an_empty_folder_is_in_order(desk: Desk) -> None:
    shutil.rmtree(desk.file.parent)
    assert list_plans(desk.config, now=now()) == ()


def test_without_a_roster_nothing_is_judged(desk: Desk) -> None:
    for path in desk.config.parent.glob("journal.sqlite*"):
        path.unlink()
    assert code_of(lambda: inspect_plan(desk.config, desk.digest, now=now())) == "roster-unknown"


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
        assert code_of(lambda: desk.approve(STEWARD)) == code
    assert code_of(lambda: add_plan(desk.config, forged)) == "signature-invalid"


def test_another_plan_under_an_approved_ones_name_is_named(desk: Desk) -> None:
    key = load_plan_key(desk.city.authority)
    desk.file.write_bytes(encode(sign_record(key, "plan", msgspec.structs.replace(desk.plan, rounds=1))))
    assert desk.state() == "plan-changed"
    assert code_of(lambda: desk.approve(STEWARD)) == "plan-changed"


def test_an_expired_plan_is_named_and_one_for_later_is_refused_by_its_rule(desk: Desk) -> None:
    late = now() + dt.timedelta(days=31)
    assert desk.state(late) == "plan-expired"
    assert code_of(lambda: desk.approve(STEWARD, at=late)) == "plan-expired"
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
    assert code_of(lambda: desk.approve(STEWARD, digest=digest)) == code


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
        assert code_of(act) == "plan-unknown"
