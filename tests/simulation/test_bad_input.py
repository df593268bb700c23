"""Bad input ends with one sentence, a reason code and a documented exit code, and with everything in order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.journal import verify_journal
from simulation.network import Fault
from simulation.scenario import PrivacyAsk
from simulation.summary import read_summary
from tests.city import FOUR
from tests.command_line import Ended, Run
from tests.simulation.small_study import Edit, Study, with_police_rows, write_study

ROOT = Path(__file__).parents[2]


def assert_refused(ended: Ended, code: int, reason: str, *words: str) -> None:
    """One sentence, one exit code, no result."""
    assert ended.sentence.endswith(f"[{reason}]"), ended.sentence
    assert ended.code == code
    assert ended.out == ""
    for word in words:
        assert word in ended.sentence


def refused_run(run: Run, study: Path, *arguments: str) -> Ended:
    return run("run", study, "--out", study.parent / "out", "--json", *arguments)


# --- what a scenario says ------------------------------------------------------------------------------------


def test_an_unknown_scenario_key_is_named(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    study.write_text("colour = 'red'\n" + study.read_text())
    assert_refused(refused_run(run, study), 2, "toml-content", "`colour`")
    assert not (tmp_path / "out").exists()


def test_a_scenario_that_is_not_there_names_the_packaged_ones(run: Run) -> None:
    assert_refused(run("run", "nowhere.toml"), 2, "scenario-missing", "emergency-triage")


@pytest.mark.parametrize(
    "setting",
    [
        "model.trainable=lora",
        "model.last_n=2",
        "model.max_tokens=4",
        "privacy.max_grad_norm=1e-7",
        "privacy.max_grad_norm=1e7",
        "optimizer.federated={kind='adamw', learning_rate=0.1, momentum=0.9}",
        "optimizer.local.iterate=mean-of-last-half",
        "performance.physical_batch_size=0",
    ],
)
def test_a_setting_that_could_never_train_is_one_sentence(run: Run, tmp_path: Path, setting: str) -> None:
    assert_refused(refused_run(run, write_study(tmp_path), "--set", setting), 2, "toml-content")
    assert not (tmp_path / "out").exists()


def test_a_policy_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    ended = refused_run(run, study, "--set", "departments.police.policy=nowhere.toml")
    assert_refused(ended, 2, "policy-missing", "nowhere.toml")


def test_epsilon_that_no_noise_reaches_is_one_sentence(run: Run, tmp_path: Path) -> None:
    ask = PrivacyAsk(epsilon=1e-6, delta=1e-9, sample_rate=1.0, steps=1000, max_grad_norm=1.0)
    assert_refused(refused_run(run, write_study(tmp_path, privacy=ask)), 2, "noise-unreachable")


# --- what the rows say ---------------------------------------------------------------------------------------


def labels_out_of_range(text: str) -> str:
    head, *rows = text.splitlines()
    return "\n".join([head, *(row.replace(",0,never-read", ",7,never-read") for row in rows)]) + "\n"


@pytest.mark.parametrize(
    ("edit", "reason", "word"),
    [
        (lambda text: text.replace("narrative", "story", 1), "column-missing", "`narrative`"),
        (labels_out_of_range, "too-many-bad-rows", "range of request"),
        (lambda text: "\n".join(text.splitlines()[:45]) + "\n", "too-few-rows", "at least 50"),
        (lambda text: text.replace(",1,never-read", ",0,never-read"), "holdout-one-sided", "police"),
    ],
    ids=["missing column", "out of range", "too few rows", "nothing to measure"],
)
def test_rows_against_their_contract(run: Run, tmp_path: Path, edit: Edit, reason: str, word: str) -> None:
    study = write_study(tmp_path, departments=with_police_rows(tmp_path / "own", edit))
    assert_refused(refused_run(run, study), 4, reason, word)
    assert not read_summary(tmp_path / "out").complete
    assert not list((tmp_path / "out").rglob("train.csv"))


# --- what a department refuses -------------------------------------------------------------------------------


def test_a_purpose_that_no_policy_lists_is_told_with_the_departments_own_reason(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path, purpose="marketing")
    assert_refused(
        refused_run(run, study),
        5,
        "policy-refused",
        "Department environment refused in step advert",
        "R02",
        "marketing",
    )


def test_training_beyond_a_policy_is_told_with_the_departments_own_reason(run: Run, tmp_path: Path) -> None:
    ended = refused_run(run, write_study(tmp_path), "--set", "optimizer.federated.learning_rate=101.0")
    assert_refused(ended, 5, "policy-refused", "R11", "learning rate: 101.0", "at most 100.0")


def test_an_epsilon_cap_too_small_for_the_plan_is_exit_code_6(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path)
    for name in FOUR:
        policy = tmp_path / f"{name}-policy.toml"
        policy.write_text(policy.read_text().replace("epsilon_per_run = 3.0", "epsilon_per_run = 1.5"))
    ended = refused_run(run, study)
    assert_refused(
        ended, 6, "budget-run", "Department environment", "The epsilon of the run would be 2, the limit is 1.5."
    )


def test_one_department_that_refuses_does_not_keep_the_other_three_from_training(run: Run, tmp_path: Path) -> None:
    departments = with_police_rows(
        tmp_path / "own",
        lambda text: text,
        lambda text: text.replace('purposes = ["emergency-triage"]', 'purposes = ["parks"]'),
    )
    study = write_study(tmp_path, departments=departments, seeds=1, rounds=1)
    ended = run("run", study, "--out", tmp_path / "out")
    assert ended.code == 0
    assert "no advert from police (refused)" in ended.err
    assert "only 3 departments were in the sum" in (tmp_path / "out" / "report.md").read_text()


def test_three_departments_with_one_dropped_abort_and_say_so(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path, FOUR[:3], faults=(Fault(department="health"),))
    ended = refused_run(run, study)
    assert_refused(ended, 8, "below-threshold", "2 departments take part, the plan needs 3")
    for name in ("authority", *FOUR[:3]):
        journal = tmp_path / "out" / "worlds" / "0001-1" / "federated" / name / "journal.sqlite"
        assert verify_journal(journal, owner=name).entries > 0
    summary = read_summary(tmp_path / "out")
    assert (summary.complete, summary.seeds, summary.arms) == (False, 0, {})
    assert (tmp_path / "out" / "report.html").is_file()


# --- files ---------------------------------------------------------------------------------------------------


def test_a_corrupt_model_file_is_exit_code_10(run: Run, study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(study.folder / "plan.json", folder)
    (folder / "model.safetensors").write_bytes((study.folder / "model.safetensors").read_bytes()[:-7])
    (tmp_path / "texts.csv").write_text("description\nwe need help\n")
    assert_refused(run("predict", folder, tmp_path / "texts.csv"), 10, "model-corrupt", "model.safetensors")


@pytest.mark.parametrize("command", ["report", "predict"])
def test_a_folder_that_is_no_run_is_one_sentence(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "texts.csv").write_text("description\nx\n")
    arguments = [tmp_path, tmp_path / "texts.csv"] if command == "predict" else [tmp_path]
    ended = run(command, *arguments)
    assert ended.code == 2
    assert ended.sentence.endswith(("[run-folder-summary]", "[run-folder-plan]"))


def test_an_out_folder_in_use_by_something_else_is_one_sentence(run: Run, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert_refused(run("run", study, "--out", tmp_path / "used", "--json"), 2, "run-folder-used")
    assert_refused(run("run", study, "--out", tmp_path / "used" / "file", "--json"), 3, "home-not-writable")


def test_a_file_that_cannot_be_replaced_is_one_sentence(run: Run, study: Study, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(study.folder, tmp_path / "copy"))
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    assert_refused(run("report", folder), 3, "storage-failed", "cannot be used")


FULL_DISK = """
import resource
from simulation.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
main()
"""


def test_a_full_disk_under_the_journal_is_exit_code_9_and_the_journals_verify(tmp_path: Path) -> None:
    arguments = ["run", str(write_study(tmp_path, seeds=1)), "--out", str(tmp_path / "out"), "--json"]
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "CITYFED_HOME": str(tmp_path / "no-home"), "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    ended = Ended(result.returncode, result.stdout, result.stderr)
    assert_refused(ended, 9, "journal-unwritable", "cannot be written")
    journals = list((tmp_path / "out").rglob("journal.sqlite"))
    assert journals
    for path in journals:
        verify_journal(path, owner=path.parent.name)
