"""Nothing runs that two people did not approve; what they decide beside a node at work counts there, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from clients.config import load_department, open_journal
from clients.memory import Memory
from clients.outbox import leave_decision
from clients.participant import Participant
from clients.plans import inspect_plan
from clients.records import RosterSeen
from clients.training.noise import UnsafeSeededSource
from server.city import load_roster_key
from shared.identity import sign_record
from shared.journal import EntryKind
from shared.messages import Refusal, decode_reply
from tests.clients.plan_desk import DPO, IT, STEWARD, Desk
from tests.deployed_city import now
from tests.refusals import code_of

# --- deciding ----------------------------------------------------------------------------------------------


def test_only_people_whom_the_policy_names_decide(desk: Desk) -> None:
    assert code_of(lambda: desk.approve("somebody")) == "person-unknown"
    assert code_of(lambda: desk.refuse("somebody")) == "person-unknown"


def test_whoever_wrote_the_plan_is_not_enough(desk: Desk) -> None:
    assert desk.approve(STEWARD, author=True) is False
    assert desk.approve(IT, author=True) is False
    found = inspect_plan(desk.config, desk.digest, now=now())
    assert {item.rule for item in found.decision.failed} == {"R10"}


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
    with node_at_work(desk) as node:
        known = node.memory.roster
        assert known is not None
        for serial, taken in ((known.serial, False), (known.serial + 1, True), (known.serial, False)):
            roster = msgspec.structs.replace(known, serial=serial)
            signed = sign_record(load_roster_key(desk.city.authority), "roster", roster)
            leave_decision(desk.config.parent / "outbox", EntryKind.ROSTER, RosterSeen(roster=signed))
            assert node.memory.take_over(desk.config.parent / "outbox") is taken
        assert node.memory.roster == msgspec.structs.replace(known, serial=known.serial + 1)


def test_only_what_people_decide_is_left(desk: Desk) -> None:
    with pytest.raises(ValueError, match="command line"):
        leave_decision(desk.config.parent / "outbox", EntryKind.BURNED, desk.plan)
