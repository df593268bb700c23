"""A released model scores a CSV file, or says in one sentence why it does not."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from shared.errors import CityFedError
from simulation.predict import predict_file
from tests.city import MESSAGES
from tests.simulation.small_study import Study


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ["id", "description"],
                ["1", "we need water at the harbour, please send somebody"],
                ["2", 'the council, as "always", discussed the harbour'],
                ["3", ""],
            ]
        )
    return path


@pytest.fixture
def damaged(study: Study, tmp_path: Path) -> Path:
    """A copy of a run folder that a test may damage."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model.safetensors", "plan.json"):
        shutil.copy(study.folder / name, folder)
    return folder


def refusal(folder: Path, file: Path, column: str = "description") -> CityFedError:
    with pytest.raises(CityFedError) as caught:
        predict_file(folder, file, column=column)
    assert "\n" not in caught.value.diagnostics()
    return caught.value


def test_every_row_comes_back_with_a_score(study: Study, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict_file(study.folder, texts, column="description")
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["id", "description", "score"]
    with texts.open(newline="") as file:
        assert [row[:2] for row in rows] == list(csv.reader(file))[1:]
    assert all(0 <= float(row[2]) <= 1 for row in rows)


def test_requests_for_help_score_higher_on_average_than_the_rest(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_file(study.folder, MESSAGES / "transport.csv", column="message")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    by_label = {label: [float(row["score"]) for row in rows if row["asks_for_help"] == label] for label in "01"}
    means = {label: sum(scores) / len(scores) for label, scores in by_label.items()}
    assert means["1"] > means["0"]


def test_a_file_with_a_header_and_no_rows_comes_back_as_it_is(
    study: Study, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts.write_text("id,description\n")
    predict_file(study.folder, texts, column="description")
    assert capsys.readouterr().out.splitlines() == ["id,description,score"]


def test_another_column_is_named_on_the_command_line(study: Study, texts: Path) -> None:
    error = refusal(study.folder, texts, column="text")
    assert (error.code, error.exit_code) == ("column-missing", 4)
    assert "--column" in error.message


def test_a_column_that_stands_twice_is_not_guessed_at(study: Study, texts: Path) -> None:
    texts.write_text("description,description\nfire,\n")
    assert refusal(study.folder, texts, column="description").code == "column-ambiguous"


@pytest.mark.parametrize("content", [b"", b"id,description\n\xff,x\n", b"id,description\n1\n"])
def test_what_is_no_table_is_refused(study: Study, texts: Path, content: bytes) -> None:
    texts.write_bytes(content)
    error = refusal(study.folder, texts)
    assert (error.code, error.exit_code) == ("predict-unreadable", 4)


def test_a_missing_file_is_refused(study: Study, tmp_path: Path) -> None:
    assert refusal(study.folder, tmp_path / "nowhere.csv").code == "predict-unreadable"


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda _: b"", lambda data: b"\xff" * len(data)])
def test_a_corrupt_model_file_is_exit_code_10(damaged: Path, texts: Path, damage: object) -> None:
    model = damaged / "model.safetensors"
    model.write_bytes(damage(model.read_bytes()))  # type: ignore[operator]  # one of the three functions above
    error = refusal(damaged, texts)
    assert (error.code, error.exit_code) == ("model-corrupt", 10)


def test_a_missing_model_or_plan_names_the_folder(damaged: Path, texts: Path) -> None:
    (damaged / "model.safetensors").unlink()
    assert refusal(damaged, texts).code == "model-missing"
    (damaged / "plan.json").write_bytes(b"\xff")
    assert refusal(damaged, texts).code == "run-folder-plan"
    (damaged / "plan.json").unlink()
    assert refusal(damaged, texts).code == "run-folder-plan"
