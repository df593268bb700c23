"""Bindings and declarations: contents are judged once, by the department; afterwards only files are compared."""

from __future__ import annotations

import csv
import datetime as dt
import os
import stat
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shared.contracts.contract
from clients.binding import (
    Declaration,
    binding_digest,
    bound_contract,
    check_binding,
    declaration_path,
    load_binding,
    load_declaration,
    rounded_size,
    verify_declaration,
    write_declaration,
)
from shared.contracts.contract import agreement_hash, packaged_contract
from shared.contracts.validate import RuleFailure
from shared.errors import ContractError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "messages"
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
CANARY = "CANARY-4711"
BINDING = """
dataset = "reports-2026"
contract = "transport"
[source]
kind = "csv"
path = "reports.csv"
[columns]
description = "text"
request = "help"
"""


def write_rows(folder: Path, rows: Sequence[tuple[str, object]]) -> None:
    with (folder / "reports.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "help"), *rows])


def bind(folder: Path, text: str = BINDING, *, rows: int = 100, bad: int = 0) -> Path:
    good = [(f"message {number}", number % 2) for number in range(rows - bad)]
    write_rows(folder, [*good, *((CANARY, CANARY) for _ in range(bad))])
    (folder / "reports.toml").write_text(text, encoding="utf-8")
    return folder / "reports.toml"


def refusal(path: Path, **minimum: int) -> ContractError:
    with pytest.raises(ContractError) as caught:
        check_binding(path, now=NOW, **minimum)
    return caught.value


def test_paths_are_relative_to_the_bindings_folder(tmp_path: Path) -> None:
    binding = load_binding(bind(tmp_path))
    assert Path(binding.source.path) == (tmp_path / "reports.csv").resolve()
    assert bound_contract(binding) == packaged_contract("transport")


def test_a_binding_may_name_a_contract_file(tmp_path: Path) -> None:
    path = bind(tmp_path, BINDING.replace('"transport"', '"own.odcs.yaml"'))
    assert "own.odcs.yaml" in refusal(path).message
    packaged = Path(shared.contracts.contract.__file__).parent / "health" / "report-1.0.0.odcs.yaml"
    (tmp_path / "own.odcs.yaml").write_text(packaged.read_text("utf-8"), encoding="utf-8")
    assert check_binding(path, now=NOW).contract_hash == agreement_hash(packaged_contract("health"))


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("[source]", "colour = 1\n[source]", "toml-content", "unknown field `colour`"),
        ("dataset", "= dataset", "toml-syntax", "not valid TOML"),
        ('"reports-2026"', '"Reports 2026"', "toml-content", "`dataset`"),
        ('"csv"', '"sql"', "toml-content", "sql"),
        ('"transport"', '"parks"', "contract-unknown", "`parks`"),
        ('"transport"', '"own.yaml"', "binding-contract-missing", "own.yaml"),
        ('request = "help"', 'request = "help"\nrace = "help2"', "binding-property-unknown", "`columns.race`"),
        ('request = "help"', "", "binding-property-missing", "`request`"),
        ('request = "help"', 'request = "text"', "toml-content", "one local column twice"),
        ("reports.csv", "gone.csv", "binding-source-missing", "gone.csv"),
        ('"help"', '"helps"', "column-missing", "`helps`"),
        ("[source]", "public_size = 0\n[source]", "toml-content", "`public_size`"),
        ("[source]", "public_size = 9007199254740992\n[source]", "toml-content", "`public_size`"),
        ("[source]", "max_bad_share = 1.5\n[source]", "toml-content", "`max_bad_share`"),
        ("[source]", 'unit = "person"\n[source]', "toml-content", "`owner`"),
        ("[source]", 'owner = "service_request_id"\n[source]', "toml-content", "`owner`"),
        ("[source]", 'unit = "person"\nowner = "service_request_id"\n[source]', "binding-owner", "mapped"),
        ("[source]", 'unit = "person"\nowner = "description"\n[source]', "binding-owner", "identifier"),
        ("[source]", 'units = { request = "P1" }\n[source]', "binding-unit", "`units.request`"),
    ],
)
def test_a_wrong_binding_is_one_sentence(tmp_path: Path, old: str, new: str, code: str, words: str) -> None:
    assert old in BINDING
    error = refusal(bind(tmp_path, BINDING.replace(old, new, 1)))
    assert (error.code, words in error.message) == (code, True)
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("old", "name", "code"),
    [
        ("reports.csv", "round.csv", "binding-source-missing"),
        ("reports.csv", "x" * 300, "binding-source-missing"),
        ('"transport"', '"round.yaml"', "binding-contract-missing"),
    ],
)
def test_a_file_that_cannot_be_looked_at_is_one_sentence(tmp_path: Path, old: str, name: str, code: str) -> None:
    for link in ("round.csv", "round.yaml"):
        (tmp_path / link).symlink_to(link)
    assert refusal(bind(tmp_path, BINDING.replace(old, name, 1))).code == code


def test_a_folder_whose_name_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xfcro")
    folder.mkdir()
    error = refusal(bind(folder))
    assert (error.code, error.message.isascii()) == ("binding-unreadable", True)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_binding_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "reports.toml"
    if content is not None:
        path.write_bytes(content)
    assert refusal(path).code == "binding-unreadable"


def test_a_declaration_says_what_was_found(tmp_path: Path) -> None:
    path = bind(tmp_path, rows=209, bad=2)
    found = check_binding(path, now=NOW, minimum_rows=200, minimum_units=207)
    assert found == Declaration(
        dataset="reports-2026",
        contract_hash=agreement_hash(packaged_contract("transport")),
        binding_digest=binding_digest(load_binding(path)),
        public_size=200,
        rows_checked=209,
        rows_usable=207,
        unit="record",
        units=207,
        failures=(RuleFailure(rule="type", column="request", count=2),),
        checked_at=NOW,
    )


@pytest.mark.parametrize("department", ["transport", "environment", "police", "health"])
def test_the_fixture_of_a_department_keeps_its_contract(department: str) -> None:
    found = check_binding(FIXTURE / f"{department}.toml", now=NOW, minimum_rows=80)
    assert found.failures == ()
    assert found.public_size == found.rows_checked // 10 * 10


def test_the_bindings_own_public_size_is_taken(tmp_path: Path) -> None:
    path = bind(tmp_path, "public_size = 77\n" + BINDING, rows=5)
    assert check_binding(path, now=NOW).public_size == 77


@given(st.integers(0, 10**9))
def test_a_public_size_is_rounded_down_to_a_multiple_of_ten(units: int) -> None:
    assert rounded_size(units) % 10 == 0
    assert 0 <= units - rounded_size(units) < 10


@pytest.mark.parametrize(("rows", "minimum"), [(199, {"minimum_rows": 200}), (199, {"minimum_units": 200}), (9, {})])
def test_too_few_rows_are_refused_at_binding(tmp_path: Path, rows: int, minimum: dict[str, int]) -> None:
    error = refusal(bind(tmp_path, rows=rows), **minimum)
    assert error.code == "too-few-rows"
    assert str(rows) in error.message


def test_bad_rows_do_not_count_towards_the_minimum(tmp_path: Path) -> None:
    assert refusal(bind(tmp_path, rows=200, bad=1), minimum_rows=200).code == "too-few-rows"


def test_too_many_bad_rows_are_refused_at_binding(tmp_path: Path) -> None:
    assert check_binding(bind(tmp_path, rows=100, bad=1), now=NOW).units == 99
    error = refusal(bind(tmp_path, rows=100, bad=2))
    assert error.code == "too-many-bad-rows"
    assert "type of request: 2" in error.message


def test_p1_no_declaration_and_no_refusal_holds_a_raw_value(tmp_path: Path) -> None:
    path = bind(tmp_path, "max_bad_share = 0.5\n" + BINDING, rows=100, bad=10)
    found = check_binding(path, now=NOW)
    assert CANARY not in repr(found) + write_declaration(path, found).read_text("utf-8")
    error = refusal(bind(tmp_path, rows=100, bad=10))
    assert CANARY not in "".join(traceback.format_exception(error)) + error.diagnostics()


def test_the_time_of_a_check_has_an_offset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offset"):
        check_binding(bind(tmp_path), now=dt.datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake under test


# --- the declaration file --------------------------------------------------------------------------------


def test_a_declaration_is_written_whole_for_its_owner_only(tmp_path: Path) -> None:
    path = bind(tmp_path)
    found = check_binding(path, now=NOW)
    written = write_declaration(path, found)
    assert written == tmp_path / "reports.declaration.json" == declaration_path(path)
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert load_declaration(path) == found
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "reports.csv",
        "reports.declaration.json",
        "reports.toml",
    ]


def test_a_declaration_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    path = bind(tmp_path)
    declaration_path(path).mkdir()
    with pytest.raises(ContractError) as caught:
        write_declaration(path, check_binding(path, now=NOW))
    assert caught.value.code == "declaration-unwritable"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("content", "code"),
    [(None, "declaration-missing"), ("{}", "declaration-malformed"), ("[", "declaration-malformed")],
)
def test_a_missing_or_broken_declaration_is_refused(tmp_path: Path, content: str | None, code: str) -> None:
    path = bind(tmp_path)
    if content is not None:
        declaration_path(path).write_text(content)
    with pytest.raises(ContractError) as caught:
        load_declaration(path)
    assert caught.value.code == code


@pytest.mark.parametrize("size", [0, 1 << 53])
def test_a_declaration_with_a_size_that_no_data_set_has_is_refused(tmp_path: Path, size: int) -> None:
    path = bind(tmp_path)
    tree = msgspec.to_builtins(check_binding(path, now=NOW)) | {"public_size": size}
    declaration_path(path).write_bytes(msgspec.json.encode(tree))
    with pytest.raises(ContractError, match="`public_size`"):
        load_declaration(path)


def test_a_declaration_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = bind(tmp_path)
    tree = msgspec.to_builtins(check_binding(path, now=NOW)) | {"extra": 1}
    declaration_path(path).write_bytes(msgspec.json.encode(tree))
    with pytest.raises(ContractError, match="extra"):
        load_declaration(path)


def test_a_changed_binding_is_found(tmp_path: Path) -> None:
    path = bind(tmp_path)
    found = check_binding(path, now=NOW)
    verify_declaration(path, found, packaged_contract("transport"))
    path.write_text("public_size = 5000\n" + BINDING, encoding="utf-8")
    with pytest.raises(ContractError) as caught:
        verify_declaration(path, found, packaged_contract("transport"))
    assert caught.value.code == "binding-changed"


def test_a_changed_contract_is_found(tmp_path: Path) -> None:
    path = bind(tmp_path)
    with pytest.raises(ContractError) as caught:
        verify_declaration(path, check_binding(path, now=NOW), packaged_contract("health"))
    assert caught.value.code == "contract-changed"


def test_p1_changed_rows_never_cause_a_refusal_in_a_round(tmp_path: Path) -> None:
    path = bind(tmp_path, rows=200)
    found = check_binding(path, now=NOW, minimum_rows=200)
    for rows, code in (
        ([("one", 1)], "too-few-rows"),
        ([], "too-few-rows"),
        ([(CANARY, CANARY)] * 300, "too-many-bad-rows"),
    ):
        write_rows(tmp_path, rows)
        assert refusal(path, minimum_rows=200).code == code  # at binding, by people
        verify_declaration(path, found, packaged_contract("transport"))
