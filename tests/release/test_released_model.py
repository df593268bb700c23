"""From a completed run to scores: the authority signs the model, a department installs and uses it."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Collection
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.commands.model import predict as predict_command
from clients.models import predict
from clients.plans import add_plan, refuse_plan
from clients.shelf import fetch_released
from server.audit import OWNER
from server.city import load_city, load_plan_key
from server.office import open_office
from server.plans import sign_plan
from server.records import ModelReleased, RoundDone, RoundFailed, RunEnded
from server.release import write_model
from server.released import put_on_shelf
from shared.codec import Record, decode, load_json
from shared.errors import CityFedError
from shared.identity import Signed
from shared.journal import EntryKind, Journal
from shared.model_file import MODEL_FILE, file_digest
from shared.parameters import model_hash
from shared.plan import HOLDERS
from shared.release import CARD_FILE, RECORD_FILE, open_release
from tests.city import FOUR
from tests.deployed_city import now
from tests.refusals import code_of
from tests.release.released_city import Finished, not_released, release
from tests.shelf_city import open_shelf_of

TEXTS = ["we need water and food, please send help", "the council met and discussed the budget"]


def predicted(finished: Finished, file: Path) -> list[dict[str, str]]:
    """The rows that the police department's command writes for a file."""
    out = io.StringIO(newline="")
    predict(finished.config, file, run="", columns=(), out=out, now=now())
    return list(csv.DictReader(io.StringIO(out.getvalue())))


def test_p4_the_signed_record_says_what_the_model_is_and_what_it_cost(original: Finished) -> None:
    signed = load_json((original.out / RECORD_FILE).read_bytes(), Signed, where="record")
    record = open_release(signed, key=load_city(original.city.authority).plan_key, plan=original.plan)
    assert record.contributors == (4, 4)
    assert record.file_sha256 == file_digest((original.out / MODEL_FILE).read_bytes())
    assert 0 < record.privacy.epsilon <= 2
    assert record.privacy.epsilon < record.privacy.city_worst_case.epsilon
    card = (original.out / CARD_FILE).read_text()
    for word in (
        record.file_sha256,
        record.plan_digest.hex(),
        *FOUR,
        record.terms.in_words(),
        "record, not per person",
        "City-wide worst",
    ):
        assert word in card


def test_a_run_that_did_not_complete_has_no_model(finished: Finished) -> None:
    finished.run.write(msgspec.structs.replace(finished.run.status(), state="failed"))
    with pytest.raises(CityFedError, match="has not been completed") as caught:
        release(finished, finished.audit())
    assert caught.value.code == "run-not-completed"


def journal_of(finished: Finished, *changes: tuple[EntryKind, Record], without: Collection[EntryKind] = ()) -> None:
    """Let the authority's journal lack some entries, and say something else at its end."""
    path = finished.city.authority.journal
    with Journal.read(path, owner=OWNER) as journal:
        known = [(kind, decode(entry.body, RECORDS[kind])) for kind in RECORDS for entry in journal.entries(kind)]
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    with Journal.open(path, owner=OWNER) as journal:
        for kind, record in (*(item for item in known if item[0] not in without), *changes):
            journal.append(kind, record, now=now())


RECORDS: dict[EntryKind, type[Record]] = {EntryKind.ROUND: RoundDone, EntryKind.ENDED: RunEnded}


def ended(finished: Finished, **changes: object) -> tuple[EntryKind, Record]:
    end = RunEnded(run=finished.plan.run_id(), status="completed", rounds=2)
    return EntryKind.ENDED, msgspec.structs.replace(end, **changes)


def failed(finished: Finished, **changes: object) -> tuple[EntryKind, Record]:
    failure = RoundFailed(run=finished.plan.run_id(), round=2, code="quorum-missed", message="Too few answered.")
    return EntryKind.FAILED, msgspec.structs.replace(failure, **changes)


@pytest.mark.parametrize("case", ["no end", "another run's end", "a failed end", "a failed round", "no rounds"])
def test_p4_no_model_is_signed_whose_run_the_authoritys_journal_does_not_know_as_completed(
    finished: Finished, case: str
) -> None:
    changes, without = {
        "no end": ((), {EntryKind.ENDED}),
        "another run's end": ((ended(finished, run=bytes(32)),), {EntryKind.ENDED}),
        "a failed end": ((ended(finished, status="failed"),), {EntryKind.ENDED}),
        "a failed round": ((failed(finished),), set[EntryKind]()),
        "no rounds": ((), {EntryKind.ROUND}),
    }[case]
    journal_of(finished, *changes, without=without)
    assert not_released(finished, finished.audit()) == "run-unfinished"


def test_another_runs_failures_and_end_say_nothing_about_a_completed_one(finished: Finished) -> None:
    before = finished.record().contributors
    journal_of(finished, failed(finished, run=bytes(32)), ended(finished, run=bytes(32), status="failed"))
    assert release(finished, finished.audit()).contributors == before


def test_p4_a_model_that_is_not_the_last_rounds_is_not_signed(finished: Finished) -> None:
    write_model(finished.run.path / MODEL_FILE, np.zeros(finished.plan.layout.size, dtype=np.float32), finished.plan)
    assert code_of(lambda: release(finished, finished.audit())) == "model-changed"


def test_a_fetched_model_scores_a_table_by_the_bound_columns_and_lines_of_text(
    finished: Finished, tmp_path: Path
) -> None:
    finished.fetch()
    table, lines = tmp_path / "new.csv", tmp_path / "new.txt"
    table.write_text("id,narrative\n" + "".join(f'{at},"{text}"\n' for at, text in enumerate(TEXTS)))
    lines.write_text("\n".join(TEXTS) + "\n")
    found = {file: predicted(finished, file) for file in (table, lines)}
    assert [row["id"] for row in found[table]] == ["0", "1"]
    scores = [row["score"] for row in found[table]]
    assert scores == [row["score"] for row in found[lines]]
    assert all(0 <= float(score) <= 1 for score in scores)
    assert len(set(scores)) == 2


def test_scored_rows_are_a_file_that_nobody_else_can_read(finished: Finished, tmp_path: Path) -> None:
    """It holds the rows, whatever mode an earlier file of its name had."""
    finished.fetch()
    table, out = tmp_path / "new.csv", tmp_path / "scores.csv"
    table.write_text("id,narrative\n" + "".join(f'{at},"{text}"\n' for at, text in enumerate(TEXTS)))
    out.touch(mode=0o644)
    predict_command(finished.config, table, out=out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert list(csv.DictReader(io.StringIO(out.read_bytes().decode()))) == predicted(finished, table)
    assert [path.name for path in tmp_path.glob(".scores*")] == []


def test_which_model_scores_is_never_guessed(finished: Finished, tmp_path: Path) -> None:
    lines, models, run = tmp_path / "new.txt", finished.config.parent / "models", finished.run.path.name

    def scores(run: str = "") -> int:
        out = io.StringIO(newline="")
        predict(finished.config, lines, run=run, columns=(), out=out, now=now())
        return len(out.getvalue().splitlines()) - 1

    lines.write_text("\n".join(TEXTS) + "\n")
    assert code_of(scores) == "model-unknown"
    finished.fetch()
    assert scores() == scores(run[:4]) == scores(run) == len(TEXTS)
    for other in ("0" * 64 if run[0] != "0" else "1" * 64, "../models", "*"):
        assert code_of(lambda other=other: scores(other)) == "model-unknown"
    (models / f"{run}.tar").touch()  # a file is no model
    assert scores(run) == len(TEXTS)
    shutil.copytree(models / run, models / (run[:8] + "f" * 56))
    assert code_of(scores) == code_of(lambda: scores(run[:8])) == "model-ambiguous"
    assert scores(run) == len(TEXTS)


def test_a_model_on_base_weights_is_used_with_the_folder_that_the_configuration_names_or_not_at_all(
    finished: Finished, tmp_path: Path
) -> None:
    spec = msgspec.structs.replace(finished.plan.model, architecture="minilm")
    plan = msgspec.structs.replace(finished.plan, model=spec)
    add_plan(finished.config, sign_plan(plan, load_plan_key(finished.city.authority)))
    finished.sign_again(run=plan.run_id(), plan_digest=plan.digest())
    shutil.copytree(finished.out, finished.config.parent / "models" / plan.run_id().hex())
    lines = tmp_path / "new.txt"
    lines.write_text("\n".join(TEXTS) + "\n")
    assert code_of(lambda: predicted(finished, lines)) == "weights-missing"
    finished.city.edit_config("police", weights="weights")
    assert code_of(lambda: predicted(finished, lines)) == "base-weights-missing"


def test_a_table_whose_text_no_binding_names_is_scored_by_the_columns_that_are_given(
    finished: Finished, tmp_path: Path
) -> None:
    finished.fetch()
    table, binding, contract = tmp_path / "new.csv", finished.config.parent / "binding.toml", tmp_path / "contract.yaml"
    table.write_text("narrative\nplease help\n")
    packaged = (resources.files("shared.contracts") / "police" / "report-1.0.0.odcs.yaml").read_text("utf-8")
    contract.write_text(packaged.replace("required: true", "required: false", 1))  # or it has to be bound
    lines = binding.read_text().replace('contract = "police"', f'contract = "{contract}"').splitlines()
    binding.write_text("\n".join(line for line in lines if line != 'description = "narrative"') + "\n")
    with pytest.raises(CityFedError, match="maps no column to `description`: use --column") as caught:
        predicted(finished, table)
    assert caught.value.code == "feature-unmapped"
    out = io.StringIO(newline="")
    predict(finished.config, table, run="", columns=("narrative",), out=out, now=now())
    assert len(out.getvalue().splitlines()) == 2


def test_what_was_changed_after_it_was_installed_is_not_used(finished: Finished, tmp_path: Path) -> None:
    finished.fetch()
    model = finished.config.parent / "models" / finished.run.path.name / MODEL_FILE
    *before, last = model.read_bytes()
    model.write_bytes(bytes([*before, last ^ 1]))
    assert code_of(lambda: predicted(finished, tmp_path / "none.txt")) == "model-changed"


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
    assert code_of(lambda: predicted(finished, tmp_path / "none.txt")) == "model-changed"


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


def test_p5_a_release_is_in_the_offices_journal_with_whom_it_is_for(finished: Finished) -> None:
    signed = release(finished, finished.audit("police"), approved_by="head of office")
    assert (len(signed.audits), signed.approved_by) == (1, "head of office")
    with open_office(finished.city.authority) as office:
        note = decode(list(office.journal.entries(EntryKind.MODEL_RELEASED))[-1].body, ModelReleased)
    assert (note.run, note.file_sha256) == (signed.run, signed.file_sha256)
    assert (note.recipients, note.audited_by, note.approved_by) == (HOLDERS, ("police",), "head of office")
