"""A department's node: what it answers, what it refuses, what it writes down, and what it never lets out."""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.config import load_department, open_journal
from clients.participant import Participant
from clients.records import Approved, HeadsSeen, Refused
from clients.training.noise import OsRandomSource
from server.coordinator import Coordinator
from server.plans import sign_plan
from shared.codec import decode, encode
from shared.errors import CityFedError, InsufficientBudgetError, PolicyViolation, RoundAbortedError
from shared.identity import DepartmentId, IdentityKey, Roster, open_signed, sign_record
from shared.journal import EntryKind, verify_journal
from shared.messages import (
    CloseRound,
    ConfirmRequest,
    KeyAdvert,
    OpenEpoch,
    Refusal,
    RevealRequest,
    SealRequest,
    UpdateRequest,
    decode_reply,
)
from shared.parameters import ExtraSpec, vector_from_bytes, vector_to_bytes
from shared.plan import HOLDERS, Plan, ReleaseTerms
from shared.privacy.accountant import MechanismEvent, epsilon
from shared.privacy.ledger import AttemptBurned, ExtraCharge
from simulation.network import InMemoryTransport
from simulation.world import CONFIG_FILE, World, now
from tests.city import FOUR, MESSAGES, City, open_city, small_scenario
from tests.eavesdropper import Eavesdropper

POLICE = DepartmentId("police")
REFUSED, UNAVAILABLE = encode(Refusal(status="refused")), encode(Refusal(status="unavailable"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[City, Eavesdropper]]:
    """A city after a clean run, journals still open, with everything that was said."""
    with open_city(tmp_path_factory.mktemp("finished")) as city:
        ear = Eavesdropper()
        city.coordinator(InMemoryTransport(ear.listen(city.peers))).run(city.basis.initial)
        yield city, ear


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    with open_city(tmp_path) as opened:
        yield opened


def reasons(participant: Participant) -> list[str]:
    return [decode(entry.body, Refused).code for entry in participant.memory.journal.entries(EntryKind.REFUSAL)]


def kinds(participant: Participant) -> list[str]:
    return [entry.kind for entry in participant.memory.journal.entries()]


def first_round(city: City) -> tuple[Coordinator, Eavesdropper]:
    """Run the first of two rounds and stop there."""
    ear = Eavesdropper()
    coordinator = city.coordinator(InMemoryTransport(ear.listen(city.peers)))
    coordinator.run_round(1, city.basis.initial, final=False)
    return coordinator, ear


@contextmanager
def restarted(world: World) -> Iterator[dict[DepartmentId, Participant]]:
    """Every department's process ends and begins again from what is on its disk."""
    with ExitStack() as stack:
        again: dict[DepartmentId, Participant] = {}
        for name, participant in world.participants.items():
            participant.memory.journal.close()
            config = world.folder / name / CONFIG_FILE
            journal = stack.enter_context(open_journal(config))
            again[name] = Participant(load_department(config), journal=journal, source=OsRandomSource(), clock=now)
        yield again


# --- an update is never masked twice -------------------------------------------------------------------------


def test_the_byte_identical_request_gets_the_byte_identical_reply_and_costs_nothing(city: City) -> None:
    _, ear = first_round(city)
    police = city.world.participants[POLICE]
    before = kinds(police)
    for kind in (OpenEpoch, SealRequest, UpdateRequest, RevealRequest, CloseRound):
        heard = ear.first(kind)
        assert police.handle(heard.request) == heard.reply
    assert kinds(police) == before
    assert before.count(EntryKind.BURNED) == 1


def test_p3_another_request_for_the_same_round_is_refused_and_trains_nothing(city: City) -> None:
    _, ear = first_round(city)
    police = city.world.participants[POLICE]
    asked = ear.first(UpdateRequest).asked
    assert isinstance(asked, UpdateRequest)
    other_model = vector_to_bytes(vector_from_bytes(asked.model, city.world.plan.layout) + np.float32(0.5))
    for other in (
        msgspec.structs.replace(asked, model=other_model),
        msgspec.structs.replace(asked, participants=asked.participants[:3]),
        msgspec.structs.replace(asked, seals={}),
    ):
        assert police.handle(encode(other)) == REFUSED
    assert reasons(police) == ["step-already-answered"] * 3
    assert kinds(police).count(EntryKind.BURNED) == 1


def test_p3_after_a_restart_an_answered_round_stays_closed_even_in_a_new_epoch(city: City) -> None:
    _, ear = first_round(city)
    with restarted(city.world) as again:
        assert again[POLICE].handle(ear.first(UpdateRequest).request) == REFUSED
        assert again[POLICE].handle(ear.first(OpenEpoch).request) == REFUSED
        assert reasons(again[POLICE]) == ["epoch-unknown", "epoch-not-new"]
        peers = {name: participant.handle for name, participant in again.items()}
        coordinator = replace(city.coordinator(InMemoryTransport(peers)), _epoch_number=1)
        with pytest.raises(RoundAbortedError):
            coordinator.run_round(1, city.basis.initial, final=False)
        assert {(step, status) for _, step, _, status in city.watcher.gone} == {("update", "refused")}
        for name, participant in again.items():
            assert reasons(participant)[-1] == "step-already-answered", name
            assert kinds(participant).count(EntryKind.BURNED) == 1


def test_after_a_restart_the_run_goes_on_with_the_next_round_on_the_same_reservation(city: City) -> None:
    coordinator, _ = first_round(city)
    model = city.watcher.results[0].model
    with restarted(city.world) as again:
        peers = {name: participant.handle for name, participant in again.items()}
        goes_on = replace(coordinator, transport=InMemoryTransport(peers), _epoch_number=1, _epoch=None)
        result = goes_on.run_round(2, model, final=True)
        assert result.survivors == FOUR
        for participant in again.values():
            assert kinds(participant).count(EntryKind.RESERVED) == 1
            assert kinds(participant).count(EntryKind.BURNED) == 2
            assert kinds(participant)[-1] == EntryKind.SETTLED


def test_p3_a_crash_before_the_end_leaves_the_full_charge(city: City) -> None:
    first_round(city)
    with restarted(city.world) as again:
        for participant in again.values():
            (event,) = participant.ledger.history(participant.department.declaration.dataset)
            assert event.steps == city.world.plan.attempts * city.world.plan.privacy.steps


def test_p3_a_clean_end_leaves_the_rounds_that_ran(finished: tuple[City, Eavesdropper]) -> None:
    city, _ = finished
    plan = city.world.plan
    assert plan.attempts == plan.rounds + 1
    for participant in city.world.participants.values():
        (event,) = participant.ledger.history(participant.department.declaration.dataset)
        assert event.steps == plan.rounds * plan.privacy.steps


def test_p3_the_charge_is_on_disk_before_a_row_is_read(city: City) -> None:
    """A department whose rows have gone cannot train, and has paid all the same."""
    Path(city.world.departments[POLICE].binding.source.path).write_text("another,header\n1,2\n")
    first_round(city)
    police = city.world.participants[POLICE]
    assert city.watcher.gone == [(1, "update", "police", "unavailable")]
    assert reasons(police) == ["column-missing"]
    (burned,) = police.memory.journal.entries(EntryKind.BURNED)
    assert decode(burned.body, AttemptBurned).round == 1
    assert not list(police.memory.journal.entries(EntryKind.ANSWERED))


def test_p3_after_a_failed_training_the_round_is_over_for_this_department(city: City) -> None:
    Path(city.world.departments[POLICE].binding.source.path).write_text("another,header\n1,2\n")
    _, ear = first_round(city)
    police = city.world.participants[POLICE]
    assert ear.first(UpdateRequest).reply == UNAVAILABLE
    assert police.handle(ear.first(UpdateRequest).request) == REFUSED
    assert reasons(police)[0] == "column-missing"
    assert kinds(police).count(EntryKind.BURNED) == 1


# --- offers that are refused ---------------------------------------------------------------------------------

Offer = Callable[[City], OpenEpoch]


def offer(city: City, **changes: object) -> OpenEpoch:
    world = city.world
    fields: dict[str, object] = {
        "run": world.plan.run_id(),
        "epoch": 1,
        "cohort": world.plan.cohort,
        "plan": world.signed_plan,
        "roster": world.signed_roster,
    }
    return OpenEpoch(**{**fields, **changes})  # type: ignore[arg-type]  # a test's own fields


def approved_plan(city: City, **changes: object) -> OpenEpoch:
    """Another plan, signed by the real authority and approved in every department."""
    plan: Plan = msgspec.structs.replace(city.world.plan, **changes)
    for participant in city.world.participants.values():
        for person, role in participant.department.policy.policy.approval.people.items():
            approval = Approved(digest=plan.digest(), person=person, role=role, author=False)
            participant.memory.write(EntryKind.APPROVAL, approval)
    return offer(city, run=plan.run_id(), plan=sign_plan(plan, city.world.authority))


def with_contract(city: City, digest: str) -> OpenEpoch:
    plan = city.world.plan
    terms = msgspec.structs.replace(plan.datasets["police"], contract_hash=digest)
    return approved_plan(city, datasets={**plan.datasets, "police": terms})


def with_roster(city: City, roster: Roster, key: IdentityKey) -> OpenEpoch:
    return offer(city, roster=sign_record(key, "roster", roster))


def over_the_cap(city: City) -> OpenEpoch:
    """A plan that says the same epsilon and would cost more."""
    return approved_plan(city, rounds=30, spare_attempts=0)


OFFERS: Mapping[str, tuple[Offer, str]] = {
    "plan signed by somebody else": (
        lambda city: offer(city, plan=sign_plan(city.world.plan, IdentityKey.generate())),
        "signature-invalid",
    ),
    "roster signed by somebody else": (
        lambda city: with_roster(city, city.world.roster, IdentityKey.generate()),
        "signature-invalid",
    ),
    "run of another name": (lambda city: offer(city, run=bytes(32)), "run-foreign"),
    "epoch zero": (lambda city: offer(city, epoch=0), "epoch-not-new"),
    "cohort with a stranger": (
        lambda city: offer(city, cohort=(*city.world.plan.cohort, "zoo")),
        "cohort-foreign",
    ),
    "another version of this package": (
        lambda city: approved_plan(city, package_digest="0" * 64),
        "package-foreign",
    ),
    "roster that has grown": (lambda city: approved_plan(city, roster_size=5), "roster-size"),
    "plan that nobody approved": (
        lambda city: offer(
            city,
            run=(other := msgspec.structs.replace(city.world.plan, approval=2)).run_id(),
            plan=sign_plan(other, city.world.authority),
        ),
        "policy-refused",
    ),
    "plan with another contract": (lambda city: with_contract(city, "0" * 64), "policy-refused"),
    "plan for another purpose": (lambda city: approved_plan(city, purpose="marketing"), "policy-refused"),
    "plan whose model goes to somebody else": (
        lambda city: approved_plan(city, release=ReleaseTerms(recipients=(*HOLDERS, "parks"))),
        "policy-refused",
    ),
    "plan with more rounds than allowed": (
        lambda city: approved_plan(city, rounds=10_000, spare_attempts=0),
        "policy-refused",
    ),
    "plan over the budget": (over_the_cap, "budget-run"),
}


@pytest.mark.parametrize("name", OFFERS)
def test_p4_an_offer_is_refused_in_one_word_and_the_reason_stays_here(city: City, name: str) -> None:
    make, code = OFFERS[name]
    request = make(city)
    police = city.world.participants[POLICE]
    assert police.handle(encode(request)) == REFUSED
    assert reasons(police) == [code]
    assert police.last_refusal is not None
    assert police.last_refusal.code == code
    assert EntryKind.EPOCH not in kinds(police)
    assert EntryKind.RESERVED not in kinds(police)


def test_p4_a_contract_mismatch_names_its_rule_in_the_journal(city: City) -> None:
    police = city.world.participants[POLICE]
    police.handle(encode(with_contract(city, "0" * 64)))
    assert isinstance(police.last_refusal, PolicyViolation)
    assert "R06 (found contract in the plan: 000000" in police.last_refusal.message


def test_p3_a_plan_is_not_charged_to_a_name_that_the_policy_owner_did_not_sign(city: City) -> None:
    police = city.world.participants[POLICE]
    renamed = msgspec.structs.replace(police.department.declaration, dataset="police-2")
    police.department = replace(police.department, declaration=renamed)
    police.handle(encode(approved_plan(city)))
    assert isinstance(police.last_refusal, PolicyViolation)
    assert "R06 (found data set: police-2; allowed data set: police-fixture" in police.last_refusal.message
    assert EntryKind.RESERVED not in kinds(police)


def test_p4_a_recipient_that_the_policy_does_not_list_is_named_in_the_journal(city: City) -> None:
    police = city.world.participants[POLICE]
    police.handle(encode(approved_plan(city, release=ReleaseTerms(recipients=(*HOLDERS, "parks")))))
    (refused,) = (decode(item.body, Refused) for item in police.memory.journal.entries(EntryKind.REFUSAL))
    assert refused.code == "policy-refused"
    assert "R21 (found recipients: parks; allowed recipients: only cohort, central-authority)" in refused.message


def test_a_plan_over_the_budget_is_told_as_a_budget_and_not_as_a_rule(city: City) -> None:
    police = city.world.participants[POLICE]
    police.handle(encode(over_the_cap(city)))
    assert isinstance(police.last_refusal, InsufficientBudgetError)
    assert re.fullmatch(r"The epsilon of the run would be \d\.\d+, the limit is 3\.", police.last_refusal.message)


def test_p4_the_kill_switch_refuses_offers_and_rounds_until_it_is_lifted(city: City) -> None:
    police = city.world.participants[POLICE]
    police.department.stop_file.touch()
    assert police.handle(encode(offer(city))) == REFUSED
    police.department.stop_file.unlink()
    coordinator, _ = first_round(city)
    police.department.stop_file.touch()
    result = coordinator.run_round(2, city.watcher.results[0].model, final=True)
    assert result.dropouts == ("police",)
    assert reasons(police) == ["policy-refused"] * 2


@pytest.mark.parametrize("request_bytes", [b"", b"\xc1", b"hello", encode(Refusal(status="refused")), bytes(10_000)])
def test_what_is_no_request_is_refused_and_written_down(city: City, request_bytes: bytes) -> None:
    police = city.world.participants[POLICE]
    assert police.handle(request_bytes) == REFUSED
    assert reasons(police) == ["message-malformed"]


def test_requests_out_of_order_are_refused(finished: tuple[City, Eavesdropper], tmp_path: Path) -> None:
    _, ear = finished
    with open_city(tmp_path) as fresh:
        police = fresh.world.participants[POLICE]
        for kind in (SealRequest, UpdateRequest, RevealRequest):
            assert police.handle(ear.first(kind).request) == REFUSED
        confirm = ConfirmRequest(run=bytes(32), round=1, sid=bytes(32), survivors=FOUR)
        assert police.handle(encode(confirm)) == REFUSED
        assert police.handle(ear.first(CloseRound).request) == REFUSED
        assert reasons(police) == [
            "epoch-unknown",
            "epoch-unknown",
            "round-unknown",
            "round-unknown",
            "signature-invalid",  # the other city has another authority
        ]


# --- extra coordinates (protocol 4) --------------------------------------------------------------------------


EXTRA = ExtraSpec(
    name="train-loss-sum", unit_bound=2.0, sample_rate=1.0, noise_multiplier=500.0, max_abs=1000.0, scale=2.0**-6
)


def with_extra(city: City, **changes: object) -> OpenEpoch:
    extra = msgspec.structs.replace(EXTRA, **changes)
    return approved_plan(city, layout=msgspec.structs.replace(city.world.plan.layout, extras=(extra,)))


EXTRAS: Mapping[str, tuple[dict[str, object], str, str]] = {
    "of a kind that nobody computes": ({"name": "income-sum"}, "extra-unknown", "income-sum"),
    "without noise": ({"noise_multiplier": 0.0}, "extra-not-noised", "train-loss-sum"),
    "that the policy does not list": ({"name": "unit-count"}, "policy-refused", "R17 (found metrics: unit-count"),
    "with less noise than the policy's floor": (
        {"noise_multiplier": 0.4},
        "policy-refused",
        "R17 (found noise multiplier of train-loss-sum: 0.4; allowed noise multiplier of train-loss-sum: at least 0.5)",
    ),
    "that does not fit the budget": ({"noise_multiplier": 1.0}, "budget-run", "epsilon of the run"),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_p3_an_extra_coordinate_is_refused_by_name(city: City, name: str) -> None:
    changes, code, words = EXTRAS[name]
    police = city.world.participants[POLICE]
    assert police.handle(encode(with_extra(city, **changes))) == REFUSED
    assert reasons(police) == [code]
    assert police.last_refusal is not None
    assert words in police.last_refusal.message
    assert EntryKind.EPOCH not in kinds(police)


def test_an_extra_that_is_permitted_noised_and_affordable_is_accepted(city: City) -> None:
    police = city.world.participants[POLICE]
    assert not isinstance(decode_reply(police.handle(encode(with_extra(city)))), Refusal)


def test_p3_an_extra_has_a_charge_of_its_own_in_the_ledger(tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path, extras=("train-loss-sum",))
    with open_city(tmp_path, scenario) as city:
        city.run()
        plan = city.world.plan
        (extra,) = plan.layout.extras
        for participant in city.world.participants.values():
            ledger, dataset = participant.ledger, participant.department.declaration.dataset
            training, released = ledger.history(dataset)
            assert released == MechanismEvent(
                noise_multiplier=extra.noise_multiplier, sample_rate=1.0, steps=plan.rounds
            )
            (exported,) = ledger.export()
            assert exported.extras == (ExtraCharge(name="train-loss-sum", event=released),)
            status = ledger.status(dataset, participant.department.budgets())
            delta = plan.privacy.budget.delta
            assert status.spent_epsilon == epsilon([training, released], delta) > epsilon([training], delta)


# --- nothing of a record gets out ----------------------------------------------------------------------------


def private_words() -> set[bytes]:
    """Every id, name, local column name and run of three words in any department's file, and every local name."""
    words: set[str] = set()
    for name in FOUR:
        with (MESSAGES / f"{name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        words |= set(header)
        for row in rows:
            for cell in row:
                parts = cell.split()
                words |= {" ".join(parts[at : at + 3]) for at in range(len(parts) - 2)}
                words |= {cell} if len(parts) < 3 and re.search(r"[A-Z]-\d|never", cell) else set()
    return {word.encode() for word in words if len(word) > 4}


def test_p1_no_message_that_leaves_a_department_holds_a_word_of_a_record(
    finished: tuple[City, Eavesdropper],
) -> None:
    _, ear = finished
    words = private_words()
    assert len(words) > 500
    assert b"never-read" in words
    assert b"narrative" in words
    said = b"\n".join(item.reply for item in ear.heard)
    assert [word for word in words if word in said] == []


def test_p1_no_column_name_of_a_contract_leaves_either(finished: tuple[City, Eavesdropper]) -> None:
    city, ear = finished
    said = b"\n".join(item.reply for item in ear.heard)
    for department in city.world.departments.values():
        for name in department.binding.columns:
            assert name.encode() not in said


def test_p1_no_journal_holds_a_text(finished: tuple[City, Eavesdropper]) -> None:
    city, _ = finished
    words = private_words()
    journals = [city.world.authority_journal, *(item.memory.journal for item in city.world.participants.values())]
    for journal in journals:
        rows = sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True)
        content = b"\n".join(body for (body,) in rows.execute("SELECT body FROM entry"))
        rows.close()
        assert len(content) > 1000
        assert [word for word in words if word in content] == []


def test_p1_a_refusal_says_one_of_two_words_and_nothing_else(city: City) -> None:
    Path(city.world.departments[POLICE].binding.source.path).write_text("another,header\n1,2\n")
    ear = Eavesdropper()
    city.coordinator(InMemoryTransport(ear.listen(city.peers))).run(city.basis.initial)
    refusals = {item.reply for item in ear.heard if isinstance(item.answered, Refusal)}
    assert refusals == {UNAVAILABLE}
    assert isinstance(decode_reply(UNAVAILABLE), Refusal)


# --- journals of both sides ----------------------------------------------------------------------------------


def test_p5_both_sides_journals_verify_against_the_other_sides_receipts(
    finished: tuple[City, Eavesdropper],
) -> None:
    city, _ = finished
    journal = city.world.authority_journal
    assert verify_journal(journal.path, owner="authority").head == journal.head
    for name, participant in city.world.participants.items():
        own = participant.memory.journal
        assert verify_journal(own.path, owner=name).entries == own.head.sequence


def test_p5_each_peer_keeps_the_others_adverts_once_an_epoch(finished: tuple[City, Eavesdropper]) -> None:
    city, _ = finished
    entries = city.world.participants[POLICE].memory.journal.entries(EntryKind.HEADS)
    first, second = [decode(entry.body, HeadsSeen) for entry in entries]
    assert set(first.adverts) == set(first.heads) == set(FOUR) - {POLICE}
    for name, signed in first.adverts.items():
        advert = open_signed(city.world.roster.members[DepartmentId(name)], "key-advert", signed, KeyAdvert)
        assert (advert.department, advert.run) == (name, city.world.plan.run_id())
    assert second.adverts == {}


def test_an_unwritable_journal_makes_a_department_unavailable(tmp_path: Path) -> None:
    """Nothing can be promised that cannot be written down."""
    with open_city(tmp_path) as city:
        police = city.world.participants[POLICE]
        sqlite3.connect(police.memory.journal.path).execute("DROP TABLE entry").connection.close()
        assert police.handle(encode(offer(city))) == UNAVAILABLE
        assert isinstance(police.last_refusal, CityFedError)
        assert police.last_refusal.code.startswith("journal-")
