"""The release gate: no model without the audits and the person that plan or policy demand (R26, R27)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clients.config import load_config, load_department, open_journal
from clients.desk import open_memory
from clients.participant import Participant
from clients.training.noise import UnsafeSeededSource
from server.audit import OWNER
from server.city import load_roster_key
from server.plan_files import load_published
from server.roster import load_members
from shared.attack_audit import ATTACK_AUDIT_LABEL, AuditedClaim, open_attack_audits
from shared.codec import decode, encode, load_json
from shared.identity import IdentityKey, Roster, Signed, sign_record
from shared.journal import Journal
from shared.keystore import load_identity
from shared.messages import OpenEpoch
from shared.plan import ReleaseTerms
from shared.release import CARD_FILE
from shared.roster import ROSTER_LABEL, endorse_key
from tests.deployed_city import SMALL_ASK, approve_everywhere, deploy_city, hand_out, now, publish_plan
from tests.finished_city import attack_audit, file_run, run_published
from tests.refusals import code_of
from tests.release.released_city import (
    Finished,
    broken_rules,
    not_installed,
    not_released,
    release,
    sign_policy_anew,
    with_policy,
)

# --- audits ------------------------------------------------------------------------------------------------


def test_p4_without_the_audit_that_the_plan_demands_nothing_is_signed(finished: Finished) -> None:
    assert finished.plan.release.attack_audit
    assert not_released(finished) == "audit-missing"


REFUTED = tuple(AuditedClaim(name=name, epsilon=2.0, lower_bound=2.1, ceiling=6.0) for name in ("reference", "plan"))  # type: ignore[arg-type]  # both are claims
ELSEWHERE = tuple(AuditedClaim(name=name, epsilon=2.5, lower_bound=0.1, ceiling=6.0) for name in ("reference", "plan"))  # type: ignore[arg-type]  # both are claims
AUDITS: dict[str, tuple[dict[str, object], str]] = {
    "of another plan": ({"plan_digest": bytes(32)}, "audit-foreign"),
    "of another package": ({"package_digest": "0" * 64}, "audit-foreign"),
    "in another's name": ({"department": "police"}, "signature-invalid"),
    "of a stranger": ({"department": "zoo"}, "audit-foreign"),
    "that failed": ({"failures": ("claim-exceeded",)}, "audit-failed"),
    "that refutes a claim and does not say so": ({"claims": REFUTED}, "audit-failed"),
    "of another epsilon than the plan's": ({"claims": ELSEWHERE}, "audit-failed"),
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
    assert not_installed(finished) == code


def test_p4_a_member_outside_the_plans_cohort_audits_nothing(original: Finished, tmp_path: Path) -> None:
    datasets = {name: terms for name, terms in original.plan.datasets.items() if name != "health"}
    plan = msgspec.structs.replace(original.plan, datasets=datasets)
    keys = load_members(original.city.authority).roster.members
    by_health, by_police = (
        load_json(attack_audit(original.city, name, plan, tmp_path).read_bytes(), Signed, where=name)
        for name in ("health", "police")
    )
    assert [audit.department for audit in open_attack_audits([by_police], plan=plan, keys=keys)] == ["police"]
    assert code_of(lambda: open_attack_audits([by_health], plan=plan, keys=keys)) == "audit-foreign"


def test_p4_one_department_is_one_audit(finished: Finished) -> None:
    path = finished.audit()
    assert not_released(finished, path, path) == "audit-repeated"
    assert len(release(finished, path, finished.audit("police")).audits) == 2
    finished.fetch()


def test_p4_a_model_without_the_audit_is_not_installed_whoever_signed_it(finished: Finished) -> None:
    finished.sign_again(audits=())
    assert not_installed(finished) == "policy-refused"
    assert broken_rules(finished) == {"R27"}


# --- whose audit counts ------------------------------------------------------------------------------------


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
    assert not_installed(finished) == "audit-foreign"


def test_p4_an_audit_by_a_key_that_was_exchanged_counts_no_more_and_one_by_the_new_key_does(finished: Finished) -> None:
    new = IdentityKey.generate()
    with open_memory(finished.config, now) as memory:
        memory.see_roster(signed := next_roster(finished, new, endorsed=True), decode(signed.body, Roster))
    assert not_installed(finished) == "signature-invalid"
    audited_with(finished, new)
    finished.fetch()


def test_p4_an_audit_by_a_department_that_was_removed_counts_no_more(finished: Finished) -> None:
    with open_memory(finished.config, now) as memory:
        memory.see_roster(signed := next_roster(finished, None), decode(signed.body, Roster))
    assert not_installed(finished) == "audit-foreign"


# --- a person's approval ----------------------------------------------------------------------------------


def test_p4_a_department_that_wants_a_persons_approval_sees_one_or_installs_nothing(finished: Finished) -> None:
    with_policy(finished, "human_approval = false", "human_approval = true")
    assert not_installed(finished) == "policy-refused"
    assert broken_rules(finished) == {"R26"}
    release(finished, finished.audit(), approved_by="head of office")
    finished.fetch()
    assert "head of office" in (finished.out / CARD_FILE).read_text()


def test_p4_a_plan_that_demands_a_person_and_no_audit_is_released_by_a_person_without_one(tmp_path: Path) -> None:
    city = deploy_city(tmp_path / "city")
    for name in city.names:
        sign_policy_anew(city, name, "attack_audit = true", "attack_audit = false")
    terms = ReleaseTerms(attack_audit=False, human_approval=True)
    digest = publish_plan(city, msgspec.structs.replace(SMALL_ASK, release=terms))
    hand_out(city, digest)
    approve_everywhere(city, digest)
    plan = load_published(city.authority, digest)[1]
    run = file_run(city, digest, run_published(city, digest))
    (tmp_path / "out").mkdir()
    flagged = Finished(city, plan, run, tmp_path / "out")
    assert not_released(flagged) == not_released(flagged, approved_by=" ") == "approver-missing"
    assert release(flagged, approved_by="head of office").approved_by == "head of office"


def test_a_name_that_no_department_would_read_is_refused_before_anything_is_signed(finished: Finished) -> None:
    with Journal.read(finished.city.authority.office_journal, owner=OWNER) as before:
        head = before.head
    assert not_released(finished, finished.audit(), approved_by="x" * 201) == "approver-name"
    with Journal.read(finished.city.authority.office_journal, owner=OWNER) as after:
        assert after.head == head
    release(finished, finished.audit(), approved_by="x" * 200)
    finished.fetch()
