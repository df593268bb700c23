"""A department installs the model that it countersigned, of a plan that its people want, and no other (promise P4)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.config import load_config, open_journal
from clients.models import fetch_model
from clients.plans import refuse_plan
from clients.records import RoundFinished
from server.coordinator import Coordinator
from server.plan_files import load_published
from server.release import write_model
from server.results import RoundResult
from shared.codec import decode, dump_json, encode, load_json
from shared.identity import IdentityKey, Signed
from shared.journal import EntryKind
from shared.messages import ClosedRound
from shared.model_file import MODEL_FILE
from shared.parameters import Vector, model_hash
from shared.plan import HOLDERS, ReleaseTerms
from shared.release import CARD_FILE, RECORD_FILE, RELEASE_LABEL
from tests.deployed_city import deploy_with_plan, now
from tests.finished_city import file_run, run_published
from tests.refusals import code_of
from tests.release.released_city import Finished, broken_rules, not_installed, release, with_policy


def test_p4_what_another_key_signed_is_not_installed(finished: Finished) -> None:
    signed = load_json((finished.out / RECORD_FILE).read_bytes(), Signed, where="record")
    forged = IdentityKey.generate().sign(RELEASE_LABEL, signed.body)
    (finished.out / RECORD_FILE).write_bytes(dump_json(Signed(body=signed.body, signature=forged)))
    assert not_installed(finished) == "signature-invalid"


@pytest.mark.parametrize("field", ["plan_digest", "layout_digest", "initial_model_sha256", "base_weights_sha256"])
def test_p4_a_record_about_another_plan_is_not_installed(finished: Finished, field: str) -> None:
    finished.sign_again(**{field: "0" * 64 if field.endswith("sha256") else bytes(32)})
    assert not_installed(finished) == "release-foreign"


def test_p4_another_model_than_the_countersigned_one_is_not_installed_whoever_signed_it(finished: Finished) -> None:
    other = np.zeros(finished.plan.layout.size, dtype=np.float32)
    digest = write_model(finished.out / MODEL_FILE, other, finished.plan)
    assert not_installed(finished) == "model-changed"
    finished.sign_again(file_sha256=digest)
    assert not_installed(finished) == "model-changed"
    finished.sign_again(file_sha256=digest, model_hash=model_hash(other))
    assert not_installed(finished) == "model-changed"


def test_p4_a_file_that_was_not_signed_is_not_installed_though_it_holds_the_model(finished: Finished) -> None:
    finished.sign_again(file_sha256="0" * 64)
    assert not_installed(finished) == "model-changed"


def test_what_was_countersigned_of_another_run_says_nothing_about_a_model(finished: Finished) -> None:
    with open_journal(finished.config) as journal:
        own = decode(list(journal.entries(EntryKind.ROUND))[-1].body, RoundFinished)
        account = decode(own.closed.body, ClosedRound)
        changed = Signed(body=encode(msgspec.structs.replace(account, model_hash=bytes(32))), signature=bytes(64))
        other = msgspec.structs.replace(own, run=bytes(32), closed=changed)
        journal.append(EntryKind.ROUND, other, now=now())
    assert finished.fetch().countersigned


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
        assert not_installed(lied) == "model-changed"


@pytest.mark.parametrize("absent", [1, 2])
def test_p4_a_model_is_held_against_the_account_of_the_last_round_and_of_no_earlier_one(
    tmp_path: Path, absent: int
) -> None:
    """Of two rounds the department misses one."""
    city, digest = deploy_with_plan(tmp_path / "city")
    stopped = city.home("police") / load_config(city.config("police")).stop_file

    class Once(Coordinator):
        def _phase(self, number: int, phase: str) -> None:
            if (number, phase) == (absent, "update"):
                stopped.touch()
            elif phase == "confirm":
                stopped.unlink(missing_ok=True)
            super()._phase(number, phase)

    result = run_published(city, digest, coordinator=Once)
    plan, run = load_published(city.authority, digest)[1], file_run(city, digest, result)
    missed = Finished(city, plan, run, tmp_path / "out")
    assert release(missed, missed.audit()).contributors == ((3, 4) if absent == 1 else (4, 3))
    assert missed.fetch().countersigned is (absent == 1)


def test_p4_a_card_that_nobody_signed_is_not_installed(finished: Finished) -> None:
    with (finished.out / CARD_FILE).open("a") as card:
        card.write("Safe for decisions about persons.\n")
    assert not_installed(finished) == "card-changed"


def test_p4_a_model_of_a_plan_that_people_refused_is_not_installed(finished: Finished) -> None:
    refuse_plan(finished.config, finished.plan.digest().hex(), person="police-it", reason="", now=now())
    assert not_installed(finished) == "policy-refused"
    assert broken_rules(finished) == {"R10"}
    assert not_installed(finished, "ff") == "run-unknown"
    assert code_of(lambda: fetch_model(finished.config, "", source=finished.out, now=now())) == "run-unknown"


def test_p4_a_model_whose_recipients_the_policy_does_not_list_any_more_is_not_installed(finished: Finished) -> None:
    with_policy(finished, 'recipients = ["cohort", "central-authority"]', 'recipients = ["cohort"]')
    assert not_installed(finished) == "policy-refused"
    assert broken_rules(finished) == {"R21"}


def test_p4_a_record_that_names_other_recipients_than_the_plan_is_not_installed(finished: Finished) -> None:
    finished.sign_again(terms=ReleaseTerms(recipients=(*HOLDERS, "parks")))
    assert not_installed(finished) == "release-foreign"


@pytest.mark.parametrize(
    "change", [{"epsilon": 0.1}, {"lone_share_epsilon": 0.01}, {"delta": 1e-9}, {"unit": "person"}]
)
def test_p4_a_model_that_is_said_to_have_cost_less_is_not_installed(
    finished: Finished, change: dict[str, float | str]
) -> None:
    finished.sign_again(privacy=msgspec.structs.replace(finished.record().privacy, **change))
    assert not_installed(finished) == "policy-refused"
    assert broken_rules(finished) == {"R27"}


def test_p4_a_model_of_which_a_sum_had_a_single_contributor_is_not_installed(finished: Finished) -> None:
    finished.sign_again(contributors=(1,) * finished.plan.rounds)
    assert not_installed(finished) == "policy-refused"
    assert broken_rules(finished) == {"R27"}
