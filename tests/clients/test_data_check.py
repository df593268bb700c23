"""Binding a data set: contents are judged once, in full, and what is found stays in the department."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from clients.binding import declaration_path, load_declaration
from clients.config import load_department, open_journal
from clients.data_check import bind_data, check_data
from policies.evaluate import Decision
from policies.facts import Phase
from shared.codec import decode
from shared.errors import CityFedError, ContractError, PolicyViolation
from shared.journal import EntryKind
from tests.clients.small_department import Edit, Office, found_office, same

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
SECRET = "somebody lives at 5 Harbour Road"


def decisions(office: Office) -> list[Decision]:
    with open_journal(office.config) as journal:
        return [decode(entry.body, Decision) for entry in journal.entries(EntryKind.DECISION)]


def refusal(office: Office) -> CityFedError:
    with pytest.raises(CityFedError) as caught:
        bind_data(office.config, now=NOW)
    assert "\n" not in caught.value.diagnostics()
    return caught.value


def first_labels(count: int, value: str) -> Edit:
    """Put a value where the first labels are."""

    def edit(text: str) -> str:
        head, *rows = text.splitlines()
        broken = [",".join([*row.rsplit(",", 2)[:1], value, "never-read"]) for row in rows[:count]]
        return "\n".join([head, *broken, *rows[count:]]) + "\n"

    return edit


def test_a_data_set_in_order_is_declared_and_every_finding_is_kept(tmp_path: Path) -> None:
    office = found_office(tmp_path)
    declaration = bind_data(office.config, now=NOW, binding=office.binding)
    assert declaration == load_declaration(office.binding)
    assert (declaration.rows_checked, declaration.units, declaration.public_size) == (96, 96, 90)
    assert len(declaration.judged_by) == 64
    (decision,) = decisions(office)
    assert decision.phase == Phase.BIND
    assert decision.accepted
    assert {"R01", "R06", "R07", "R09"} <= {item.rule for item in decision.findings}


def test_a_check_without_a_policy_judges_the_contract_alone(tmp_path: Path) -> None:
    office = found_office(tmp_path)
    assert check_data(office.binding, now=NOW).judged_by == ""
    assert load_declaration(office.binding).judged_by == ""
    assert not office.journal.exists()


@pytest.mark.parametrize(
    ("rows", "binding", "code", "counted"),
    [
        (first_labels(5, "7"), same, "too-many-bad-rows", "range of request: 5"),
        (first_labels(5, "maybe"), same, "too-many-bad-rows", "type of request: 5"),
        (lambda text: text.replace("narrative", "story", 1), same, "column-missing", "`narrative`"),
        (lambda text: "\n".join(text.splitlines()[:41]) + "\n", same, "too-few-rows", "40 usable rows; at least 50"),
        (same, lambda text: text.replace('request = "is_call"\n', ""), "binding-property-missing", "`request`"),
        (same, lambda text: text.replace("police.csv", "gone.csv"), "binding-source-missing", "gone.csv"),
        (lambda _: "", same, "source-empty", "header"),
    ],
    ids=["range", "type", "column", "few", "unmapped", "source", "empty"],
)
def test_p1_data_against_its_contract_is_refused_with_rule_names_and_counts(
    tmp_path: Path, rows: Edit, binding: Edit, code: str, counted: str
) -> None:
    error = refusal(found_office(tmp_path, rows=rows, binding=binding))
    assert isinstance(error, ContractError)
    assert error.code == code
    assert counted in error.message
    assert not declaration_path(tmp_path / "police.toml").exists()


def test_p1_no_refusal_repeats_a_value(tmp_path: Path) -> None:
    error = refusal(found_office(tmp_path, rows=first_labels(50, SECRET)))
    assert "Harbour" not in error.diagnostics()


def test_a_few_bad_rows_are_counted_and_allowed(tmp_path: Path) -> None:
    office = found_office(
        tmp_path,
        rows=first_labels(2, "7"),
        binding=lambda text: text.replace("\n[source]", "max_bad_share = 0.05\n\n[source]", 1),
    )
    declaration = bind_data(office.config, now=NOW)
    assert (declaration.rows_checked, declaration.units) == (96, 94)
    assert [(item.rule, item.column, item.count) for item in declaration.failures] == [("range", "request", 2)]


def other_contract(text: str) -> str:
    head, _, rest = text.partition("\n")
    assert head.startswith("contract_hash")
    return f'contract_hash = "{"ab" * 32}"\n{rest}'


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (lambda text: text.replace("valid_until = 2035-12-31", "valid_until = 2025-12-31"), "R01"),
        (other_contract, "R06"),
        (lambda text: text.replace('identifiers = ["service_request_id"]', "identifiers = []"), "R07"),
        (lambda text: text.replace('dataset = "police-fixture"', 'dataset = "police-2"'), "R06"),
    ],
    ids=["expired", "contract", "columns", "data-set"],
)
def test_p4_a_policy_that_says_no_refuses_to_bind_and_writes_every_finding(
    tmp_path: Path, policy: Edit, rule: str
) -> None:
    office = found_office(tmp_path, policy=policy)
    error = refusal(office)
    assert isinstance(error, PolicyViolation)
    assert rule in error.message
    assert not declaration_path(office.binding).exists()
    (decision,) = decisions(office)
    assert [item.rule for item in decision.failed] == [rule]
    assert len(decision.findings) >= 4


def test_p3_a_data_set_gets_no_new_budget_by_a_new_name_in_its_unsigned_binding(tmp_path: Path) -> None:
    office = found_office(
        tmp_path, binding=lambda text: text.replace('dataset = "police-fixture"', 'dataset = "police-2"')
    )
    error = refusal(office)
    assert isinstance(error, PolicyViolation)
    assert "R06 (found data set: police-2; allowed data set: police-fixture" in error.message
    assert not declaration_path(office.binding).exists()


def test_p3_a_binding_that_was_another_when_the_node_read_it_is_used_for_no_plan(tmp_path: Path) -> None:
    """Its rows, which nobody validated, would be charged to the data set that was checked."""
    office = found_office(tmp_path)
    bind_data(office.config, now=NOW)
    checked = office.binding.read_text()
    assert load_department(office.config).binding_unchanged()
    (tmp_path / "others.csv").write_bytes(office.rows.read_bytes())
    office.binding.write_text(checked.replace("police.csv", "others.csv"))
    department = load_department(office.config)
    office.binding.write_text(checked)
    assert not department.binding_unchanged()


def test_a_binding_whose_links_go_round_is_one_sentence(tmp_path: Path) -> None:
    office = found_office(tmp_path)
    (tmp_path / "round.toml").symlink_to("round.toml")
    with pytest.raises(CityFedError) as caught:
        bind_data(office.config, now=NOW, binding=tmp_path / "round.toml")
    assert caught.value.code == "binding-foreign"


def test_a_binding_that_is_not_the_configured_one_is_refused(tmp_path: Path) -> None:
    office = found_office(tmp_path / "one")
    other = found_office(tmp_path / "other")
    with pytest.raises(CityFedError) as caught:
        bind_data(office.config, now=NOW, binding=other.binding)
    assert caught.value.code == "binding-foreign"


def test_the_kill_switch_stops_binding_too(tmp_path: Path) -> None:
    office = found_office(tmp_path)
    (office.folder / "stopped").touch()
    assert "R23" in refusal(office).message


def test_a_journal_that_is_in_use_stops_binding_before_anything_is_declared(tmp_path: Path) -> None:
    office = found_office(tmp_path)
    with open_journal(office.config):
        assert refusal(office).code == "journal-locked"
    assert not declaration_path(office.binding).exists()
