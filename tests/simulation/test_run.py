"""A whole study over the synthetic fixture: the run folder, its numbers, and going on."""

from __future__ import annotations

import json
import re
import shutil
import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.training.noise import UnsafeSeededSource
from shared.errors import ConfigError
from shared.journal import EntryKind, Journal, verify_journal
from shared.model_file import file_digest, read_model
from shared.plan import LocalOptimizer, ServerOptimizerSpec
from shared.privacy.accountant import epsilon, event_of
from simulation.home import Home
from simulation.progress import Silent
from simulation.run import run_study
from simulation.run_folder import can_use, finished_seeds, read_plan, require_same_data
from simulation.scenario import ArmOptimizers, PrivacyAsk, Scenario
from simulation.summarise import summarise
from simulation.summary import RunSummary, read_metrics, read_summary
from tests.city import FOUR, MESSAGES, small_scenario
from tests.simulation.small_study import Notes, Study, with_police_rows

ARMS = {"local", "federated", "pooled"}
FILES = {
    "scenario.json",
    "data.json",
    "summary.json",
    "metrics.jsonl",
    "report.html",
    "report.md",
    "model.safetensors",
    "MODEL_CARD.md",
    "plan.json",
    "seeds",
    "worlds",
}


def run(scenario: Scenario, folder: Path, *, notes: Silent | None = None) -> RunSummary:
    return run_study(
        scenario,
        scenario_folder=folder,
        out=folder / "run",
        home=Home(folder / "home"),
        progress=notes or Silent(),
        source=lambda name: UnsafeSeededSource(sum(name.encode())),
    )


# --- what is in the folder -----------------------------------------------------------------------------------


def test_the_run_folder_holds_everything_and_is_private(study: Study) -> None:
    assert {path.name for path in study.folder.iterdir()} == FILES
    assert stat.S_IMODE(study.folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in (study.folder / "seeds").iterdir()) == ["0001.json", "0002.json"]
    assert sorted(path.name for path in (study.folder / "worlds").iterdir()) == ["0001-1", "0002-1"]


def test_the_summary_has_exactly_the_promised_keys(study: Study) -> None:
    tree = json.loads((study.folder / "summary.json").read_text())
    promised = {"task", "scenario", "metric", "arms", "gain", "privacy", "left", "seconds"}
    assert promised <= tree.keys()
    assert tree.keys() - promised == {
        "format",
        "data",
        "tuning",
        "complete",
        "noise",
        "seeds",
        "seeds_planned",
        "rounds",
        "spare_attempts",
        "city_worst_case",
        "extras",
        "started",
        "finished",
        "versions",
        "notes",
    }
    assert tree["arms"].keys() == ARMS
    for arm in tree["arms"].values():
        assert arm.keys() == {"mean", "interval", "departments"}
        assert tuple(arm["departments"]) == FOUR
        assert len(arm["interval"]) == 2
    assert {"mean", "interval"} <= tree["gain"].keys()
    for name in FOUR:
        assert {"epsilon", "delta", "cap", "unit"} <= tree["privacy"][name].keys()
        assert {"bytes", "tensors"} <= tree["left"][name].keys()
    assert all(value >= 0 for value in tree["seconds"].values())


def test_what_run_study_returns_is_what_it_wrote(study: Study) -> None:
    assert read_summary(study.folder) == study.summary
    assert study.summary.complete
    assert (study.summary.seeds, study.summary.seeds_planned) == (2, 2)
    assert study.summary.noise == "unsafe"


def test_every_arm_is_measured_in_every_department_after_every_round(study: Study) -> None:
    rows = read_metrics(study.folder)
    found = {(row.arm, row.seed, row.round, row.department) for row in rows}
    expected = {(arm, seed, number, name) for arm in ARMS for seed in (1, 2) for number in (1, 2) for name in FOUR}
    assert found == expected
    assert len(rows) == len(expected)
    assert all(0 < row.value <= 1 for row in rows)


def test_the_summary_is_the_mean_of_the_last_round(study: Study) -> None:
    rows = [row for row in read_metrics(study.folder) if row.round == 2]
    for arm, figures in study.summary.arms.items():
        for name, mean in figures.departments.items():
            values = [row.value for row in rows if (row.arm, row.department) == (arm, name)]
            assert mean == pytest.approx(np.mean(values))


def test_p3_epsilon_is_that_of_all_attempts_and_within_the_cap(study: Study) -> None:
    plan = read_plan(study.folder)
    whole = epsilon([event_of(plan.privacy, plan.attempts)], plan.privacy.budget.delta)
    ran = epsilon([event_of(plan.privacy, plan.rounds)], plan.privacy.budget.delta)
    for figures in study.summary.privacy.values():
        assert figures.epsilon == pytest.approx(whole)
        assert figures.spent_epsilon == pytest.approx(ran)
        assert figures.spent_epsilon < figures.epsilon <= study.scenario.privacy.epsilon <= figures.cap
        assert figures.unit == "record"
    worst = study.summary.city_worst_case
    assert worst is not None
    assert worst.epsilon > whole


def test_what_left_is_one_masked_vector_a_round_and_small_change(study: Study) -> None:
    plan = read_plan(study.folder)
    for figures in study.summary.left.values():
        assert figures.messages == 2 + 3 * plan.rounds  # advert, seals; then update, reveal, close
        assert plan.rounds * 4 * plan.layout.total_size < figures.bytes < plan.rounds * 20_000
        assert figures.tensors == {"head.weight": (1, 256), "head.bias": (1,)}


def test_the_model_is_the_plans_and_its_card_says_how_it_was_made(study: Study) -> None:
    plan = read_plan(study.folder)
    model = read_model(study.folder / "model.safetensors", plan.layout)
    assert np.linalg.norm(model) > 0
    card = (study.folder / "MODEL_CARD.md").read_text()
    assert file_digest((study.folder / "model.safetensors").read_bytes()) in card
    assert plan.digest().hex() in card
    for word in ("epsilon", "delta", "record", "Poisson", "add-remove", plan.privacy.accountant):
        assert word in card


def test_the_report_is_self_contained_and_names_every_department(study: Study) -> None:
    page, text = (study.folder / "report.html").read_text(), (study.folder / "report.md").read_text()
    for name in FOUR:
        assert name in page
        assert name in text
    assert not re.search(r"""(src|href)=["']https?://""", page)


def test_a_person_sees_every_round_and_arm(study: Study) -> None:
    assert study.notes.rounds == [(seed, number) for seed in (1, 2) for number in (1, 2)]
    locals_ = [f"local {name}" for name in FOUR]
    assert study.notes.arms == [(seed, arm) for seed in (1, 2) for arm in (*locals_, "pooled")]


# --- worlds --------------------------------------------------------------------------------------------------


def test_p5_every_journal_of_every_world_verifies(study: Study) -> None:
    journals = sorted(study.folder.glob("worlds/*/*/*/journal.sqlite"))
    assert len(journals) == 2 * (len(FOUR) + 1 + len(FOUR) + 1)
    for path in journals:
        arm, name = path.parent.parent.name, path.parent.name
        owner = name if arm == "federated" else f"{arm}-{name}"
        assert verify_journal(path, owner=owner).entries > 0


def test_p3_every_arm_charges_a_ledger_of_its_own_and_settles(study: Study) -> None:
    for path in study.folder.glob("worlds/*/*/*/journal.sqlite"):
        arm, name = path.parent.parent.name, path.parent.name
        if name == "authority":
            continue
        with Journal.open(path, owner=name if arm == "federated" else f"{arm}-{name}") as journal:
            kinds = [entry.kind for entry in journal.entries()]
        assert kinds.count(EntryKind.RESERVED) == kinds.count(EntryKind.SETTLED) == 1
        assert kinds.count(EntryKind.BURNED) == 2


def test_p1_no_copy_of_a_row_outlives_its_seed(study: Study) -> None:
    left = sorted({path.name for path in study.folder.glob("worlds/*/rows/*/*")})
    assert left == ["binding.declaration.json", "binding.toml", "holdout.toml"]


def test_p1_the_digest_of_a_split_stays_with_its_seed_and_is_in_nothing_that_is_shown(study: Study) -> None:
    results = finished_seeds(study.scenario, study.folder)
    digests = {digest for result in results for digest in result.splits.values()}
    assert len(digests) == 2 * len(FOUR)
    for path in (path for path in study.folder.iterdir() if path.is_file()):
        assert not [digest for digest in digests if digest.encode() in path.read_bytes()]


def test_each_seed_has_keys_of_its_own_under_one_plan(study: Study) -> None:
    digests = {result.plan_digest for result in finished_seeds(study.scenario, study.folder)}
    assert digests == {read_plan(study.folder).digest().hex()}
    keys = {path.read_bytes() for path in study.folder.glob("worlds/*/federated/*/identity.key")}
    assert len(keys) == 2 * len(FOUR)


# --- going on ------------------------------------------------------------------------------------------------


def test_going_on_runs_the_missing_seed_alone_and_gives_the_same_numbers(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.folder, tmp_path / "run")
    (tmp_path / "run" / "seeds" / "0002.json").unlink()
    assert can_use(study.scenario, tmp_path / "run")
    notes = Notes()
    summary = run(study.scenario, tmp_path, notes=notes)
    assert {seed for seed, _ in notes.rounds} == {2}
    assert summary.complete
    assert (summary.arms, summary.gain) == (study.summary.arms, study.summary.gain)
    assert sorted(path.name for path in (tmp_path / "run" / "worlds").iterdir()) == ["0001-1", "0002-1", "0002-2"]


class Changing(Silent):
    """Changes a file while seed 1 is under way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def round_done(self, seed: int, round_number: int) -> None:
        self.path.write_text(self.path.read_text().replace("Oak Hill", "Elm Hill", 1))


def test_no_seed_is_added_over_other_rows_than_the_finished_ones(tmp_path: Path) -> None:
    departments = with_police_rows(tmp_path / "own", lambda text: text)
    scenario, rows = small_scenario(tmp_path, seeds=2, rounds=1, departments=departments), tmp_path / "own/police.csv"
    before = rows.read_text()
    for progress in (Changing(rows), Notes()):  # a change between two seeds of a run, and before one that goes on
        with pytest.raises(ConfigError) as caught:
            run(scenario, tmp_path, notes=progress)
        assert caught.value.code == "run-folder-data"
        assert [result.seed for result in finished_seeds(scenario, tmp_path / "run")] == [1]
    rows.write_text(before)
    (tmp_path / "own/police.toml").write_text((tmp_path / "own/police.toml").read_text() + "# only a comment\n")
    with pytest.raises(ConfigError):
        run(scenario, tmp_path)
    shutil.copy(MESSAGES / "police.toml", tmp_path / "own")
    assert run(scenario, tmp_path).complete


def test_before_the_first_seed_is_finished_files_may_change(study: Study, tmp_path: Path) -> None:
    scenario, out = study.scenario, tmp_path / "run"
    (out / "seeds").mkdir(parents=True)
    for digest in ("old", "new"):
        require_same_data(scenario, out, {"police": digest})
    (out / "seeds" / "0002.json").touch()
    require_same_data(scenario, out, {"police": "new"})
    (out / "data.json").unlink()
    with pytest.raises(ConfigError, match="choose another folder"):  # a folder of an earlier version
        require_same_data(scenario, out, {"police": "new"})


def test_a_finished_folder_is_reported_again_without_running_anything(study: Study, tmp_path: Path) -> None:
    shutil.copytree(study.folder, tmp_path / "run")
    assert not can_use(study.scenario, tmp_path / "run")
    notes = Notes()
    assert run(study.scenario, tmp_path, notes=notes).arms == study.summary.arms
    assert notes.rounds == []


def test_a_folder_takes_no_other_scenario_and_keeps_its_mode(study: Study, tmp_path: Path) -> None:
    used = Path(shutil.copytree(study.folder, tmp_path / "run"))
    used.chmod(0o755)
    other = msgspec.structs.replace(study.scenario, rounds=3)
    assert not can_use(other, used)
    with pytest.raises(ConfigError) as caught:
        run(other, tmp_path)
    assert caught.value.code == "run-folder-used"
    assert stat.S_IMODE(used.stat().st_mode) == 0o755


def test_a_folder_with_other_things_in_it_is_left_alone(study: Study, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        run(study.scenario, tmp_path)
    assert caught.value.code == "run-folder-used"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"seed": "one"}'])
def test_a_damaged_seed_is_named(study: Study, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(study.folder, tmp_path / "run")
    (tmp_path / "run" / "seeds" / "0001.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        run(study.scenario, tmp_path)
    assert caught.value.code == "run-folder-malformed"
    assert "0001.json" in caught.value.message


# --- faults --------------------------------------------------------------------------------------------------


def test_a_study_with_a_department_that_drops_says_so(tmp_path: Path) -> None:
    from simulation.network import Fault

    never = Fault(department="police", round=9)
    scenario = small_scenario(tmp_path, seeds=1, faults=(Fault(department="health", round=1, until=1), never))
    notes = Notes()
    summary = run(scenario, tmp_path, notes=notes)
    assert summary.notes == (
        "Faults were switched on: 2.",
        "Faults that hit no message in any seed: 1.",
        "In at least one round only 3 departments were in the sum.",
    )
    assert "Round 1: no update from health (no-answer)" in notes.lines
    assert "only 3 departments" in (tmp_path / "run" / "report.md").read_text()
    assert summary.arms["federated"].interval is None


def test_a_server_that_remembers_is_told_beside_the_comparison(study: Study, tmp_path: Path) -> None:
    def notes(scenario: Scenario) -> tuple[str, ...]:
        moment = study.summary.started
        return summarise(scenario, [], started=moment, unsafe=True, seconds={}, out=tmp_path).notes

    plain = small_scenario(tmp_path)
    assert notes(plain) == ()
    (note,) = notes(msgspec.structs.replace(plain, server_optimizer=ServerOptimizerSpec(kind="fedyogi")))
    assert "fedyogi, remembers earlier rounds" in note


# --- the norm bound ------------------------------------------------------------------------------------------


def test_a_bound_that_cuts_updates_down_is_said_with_its_count(study: Study, tmp_path: Path) -> None:
    assert study.summary.notes == ()
    summary = run(small_scenario(tmp_path, seeds=1, bound=1e-6), tmp_path)
    (note,) = summary.notes
    assert note.startswith("8 of 8 noised updates of the federated arm were longer than `bound` = 1e-06 and were pro")
    assert "8 of 8 noised updates" in (tmp_path / "run" / "report.md").read_text()


def test_with_shared_noise_public_numbers_alone_say_that_sums_may_be_cut_down(tmp_path: Path) -> None:
    ask = PrivacyAsk(mechanism="shared-noise", epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=1, max_grad_norm=1.0)
    plain = LocalOptimizer(learning_rate=1.0)
    arms = ArmOptimizers(federated=plain, local=plain, pooled=plain)
    scenario = small_scenario(tmp_path, seeds=1, rounds=1, privacy=ask, optimizer=arms, bound=1.0)
    summary = run(scenario, tmp_path)
    reach = 0.2 * max(each.public_size for each in summary.privacy.values())
    (note,) = summary.notes
    assert note.startswith(
        f"The clipped sum of a batch of expected size can be {reach:.3g} long, and `bound` = 1 is less"
    )
    (seed,) = finished_seeds(scenario, tmp_path / "run")
    assert (seed.updates, seed.projected) == (len(FOUR), 0)
    wide = msgspec.structs.replace(scenario, bound=64.0)
    said = summarise(wide, [seed], started=summary.started, unsafe=True, seconds={}, out=tmp_path / "run")
    assert said.notes == ()
