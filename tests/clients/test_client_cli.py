"""``cityfed-client`` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.binding import declaration_path
from clients.config import open_journal
from tests.clients.small_department import Office, found_office
from tests.clients.test_data_check import first_labels, other_contract
from tests.command_line import Run
from tests.durable_names import names_durably


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return found_office(tmp_path / "police")


def test_data_check_prints_rule_names_and_counts(run: Run, office: Office) -> None:
    office.binding.write_text(office.binding.read_text().replace("\n[source]", "max_bad_share = 0.1\n\n[source]", 1))
    office.rows.write_text(first_labels(3, "7")(office.rows.read_text()))
    ended = run("data", "check", office.binding)
    assert ended.code == 0
    assert "96 rows checked, 93 usable" in ended.out
    assert "Public size, told to everybody from now on: 90." in ended.out
    assert "range of request: 3" in ended.out
    assert "No policy was asked" in ended.out


def test_data_check_with_a_policy_says_so_and_prints_json(run: Run, office: Office) -> None:
    plain = run("data", "check", office.binding, "--config", office.config)
    assert "The policy's rules on contents are satisfied." in plain.out
    again = json.loads(run("data", "check", office.binding, "--config", office.config, "--json").out)
    assert again["public_size"] == 90
    assert again["judged_by"]


def test_the_budget_of_a_department_that_never_ran_is_untouched(run: Run, office: Office) -> None:
    run("data", "check", office.binding, "--config", office.config)
    ended = run("budget", office.config)
    assert ended.code == 0
    assert "epsilon 0.0000 of 12" in ended.out
    assert "nothing ran yet" in ended.out
    assert json.loads(run("budget", office.config, "--json").out)["runs"] == 0
    assert run("export", office.config).out == ""


def test_the_audit_log_is_shown_and_verified(run: Run, office: Office) -> None:
    run("data", "check", office.binding, "--config", office.config)
    (line,) = run("audit", "show", office.config).out.splitlines()
    assert json.loads(line)["kind"] == "decision"
    assert run("audit", "verify", office.config).out.startswith("1 entries, head ")
    assert run("audit", "receipts", office.config).out == ""


def test_the_effective_configuration_holds_no_private_key(run: Run, office: Office) -> None:
    shown = run("config", "show", office.config).out
    assert json.loads(shown)["department"] == "police"
    assert (office.folder / "identity.key").read_bytes().hex() not in shown


def test_the_kill_switch_survives_a_power_cut(run: Run, office: Office) -> None:
    assert names_durably(lambda: run("stop", office.config))


def test_stop_and_resume_set_and_lift_the_kill_switch(run: Run, office: Office) -> None:
    assert run("stop", office.config).code == 0
    assert (office.folder / "stopped").exists()
    assert "R23" in run("data", "check", office.binding, "--config", office.config).sentence
    assert run("resume", office.config).code == 0
    assert run("resume", office.config).code == 0
    assert run("data", "check", office.binding, "--config", office.config).code == 0


def test_a_contract_mismatch_is_one_sentence_and_exit_code_5(run: Run, tmp_path: Path) -> None:
    office = found_office(tmp_path, policy=other_contract)
    ended = run("data", "check", office.binding, "--config", office.config)
    assert ended.code == 5
    assert "R06" in ended.sentence
    assert ended.sentence.endswith("[policy-refused]")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["data", "check", "nowhere.toml"], 4, "[binding-unreadable]"),
        (["budget", "nowhere.toml"], 2, "[file-missing]"),
        (["audit", "verify", "nowhere.toml"], 2, "[file-missing]"),
        (["stop", "nowhere.toml"], 2, "[file-missing]"),
        (["export", "/"], 2, "[file-missing]"),
    ],
)
def test_a_file_that_is_not_there_is_one_sentence(run: Run, arguments: list[str], code: int, reason: str) -> None:
    ended = run(*arguments)
    assert (ended.code, ended.out) == (code, "")
    assert ended.sentence.endswith(reason)


def test_a_department_that_never_bound_data_is_told_to(run: Run, office: Office) -> None:
    ended = run("budget", office.config)
    assert ended.code == 4
    assert ended.sentence.endswith("[declaration-missing]")


def test_a_journal_in_use_is_one_sentence_and_exit_code_9(run: Run, office: Office) -> None:
    run("data", "check", office.binding, "--config", office.config)
    with open_journal(office.config):
        assert run("budget", office.config).code == 0
        for command in (("export",), ("audit", "show"), ("audit", "verify"), ("audit", "receipts")):
            assert run(*command, office.config).code == 0
        ended = run("data", "check", office.binding, "--config", office.config)
    assert ended.code == 9
    assert ended.sentence.endswith("[journal-locked]")


@pytest.mark.parametrize("place", ["/proc/journal.sqlite", "no-such-folder/journal.sqlite"])
def test_a_disk_that_takes_no_journal_is_one_sentence_and_exit_code_9(run: Run, office: Office, place: str) -> None:
    office.edit_config(journal=place)
    ended = run("data", "check", office.binding, "--config", office.config)
    assert ended.code == 9
    assert "cannot be written" in ended.sentence
    assert ended.sentence.endswith("[journal-unwritable]")
    assert not declaration_path(office.binding).exists()


def test_a_journal_that_was_never_written_is_one_sentence(run: Run, office: Office) -> None:
    ended = run("audit", "verify", office.config)
    assert ended.code == 9
    assert ended.sentence.endswith("[journal-missing]")


@pytest.mark.parametrize(
    "content", ["not json", '{"owner": "police"}', '{"owner": "police", "sequence": 1, "digest": "zz"}']
)
def test_receipts_that_are_none_are_refused(run: Run, office: Office, content: str) -> None:
    run("data", "check", office.binding, "--config", office.config)
    (office.folder / "receipts.jsonl").write_text(content + "\n")
    ended = run("audit", "verify", office.config, "--receipts", office.folder / "receipts.jsonl")
    assert ended.code == 2
    assert ended.sentence.endswith("[receipts-unreadable]")


def test_a_wrong_option_is_exit_code_2_without_a_traceback(run: Run) -> None:
    ended = run("budget", "--colour", "red")
    assert ended.code == 2
    assert "No such option" in ended.err
    assert "Traceback" not in ended.err
