"""From a completed run to scores: the authority signs the model, a department installs and uses it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.commands.model import predict as predict_command
from clients.models import predict
from clients.plans import refuse_plan
from clients.shelf import fetch_released
from server.city import load_city
from server.office import open_office
from server.records import ModelReleased
from server.release import write_model
from server.released import put_on_shelf
from shared.codec import decode, load_json
from shared.errors import CityFedError
from shared.identity import Signed
from shared.journal import EntryKind
from shared.model_file import MODEL_FILE, file_digest
from shared.parameters import model_hash
from shared.plan import HOLDERS
from shared.release import CARD_FILE, RECORD_FILE, open_release
from tests.city import FOUR
from tests.deployed_city import now
from tests.refusals import code_of
from tests.release.released_city import Finished, release
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
    with open_office(finished.city.authority) as office:
        note = decode(list(office.journal.entries(EntryKind.MODEL_RELEASED))[-1].body, ModelReleased)
    assert (note.run, note.file_sha256) == (signed.run, signed.file_sha256)
    assert (note.recipients, note.audited_by, note.approved_by) == (HOLDERS, ("police",), "head of office")
