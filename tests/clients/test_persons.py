"""Persons in a department's data: who owns a record, which of a person's records take part, what is declared."""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.binding import Binding, Source, check_binding
from clients.data_check import bind_data
from clients.dataset import load_dataset
from clients.persons import chosen_records, owners_of
from shared.contracts.contract import packaged_contract
from shared.contracts.validate import RuleFailure
from shared.errors import ContractError
from tests.clients.small_department import found_office

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
HEALTH = packaged_contract("health")
BINDING = """
dataset = "reports-2026"
contract = "health"
unit = "person"
owner = "service_request_id"
public_size = 3
[source]
kind = "csv"
path = "reports.csv"
[columns]
service_request_id = "who"
description = "text"
request = "help"
"""

Row = tuple[str, str, int]
ROWS: list[Row] = [
    ("anna", "first of anna", 1),
    ("ben", "first of ben", 0),
    ("anna", "second of anna", 0),
    ("cleo", "first of cleo", 1),
    (" ANNA ", "third of anna", 1),
]


def write(folder: Path, rows: Sequence[Row], text: str = BINDING) -> Path:
    with (folder / "reports.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("who", "text", "help"), *rows])
    (folder / "reports.toml").write_text(text)
    return folder / "reports.toml"


def load(folder: Path, rows: Sequence[Row], at_most: int | None = None) -> dict[int, list[str]]:
    """Return the texts of each person that training would see."""
    write(folder, rows)
    columns = {"service_request_id": "who", "description": "text", "request": "help"}
    binding = Binding(
        dataset="rows",
        contract="health",
        source=Source(path=str(folder / "reports.csv")),
        columns=columns,
        unit="person",
        owner="service_request_id",
    )
    data = load_dataset(binding, HEALTH, features=("description",), label="request", max_records=at_most)
    found: dict[int, list[str]] = {}
    assert data.owners is not None
    for text, owner in zip(data.texts, data.owners.tolist(), strict=True):
        found.setdefault(owner, []).append(text)
    assert data.units == len(found)
    return found


@pytest.mark.parametrize(
    ("cell", "owners"),
    [
        ("anna", ("anna",)),
        (" Anna ", ("anna",)),
        ("\uff41nna", ("anna",)),
        ("", ()),
        (" ; ", ()),
        ("anna;ben", ("anna", "ben")),
        ("ben, anna", ("anna", "ben")),
        ("anna|ANNA", ("anna",)),
        ("anna  maria\tlee", ("anna maria lee",)),
        ("an\u00adna\u200b", ("anna",)),
        ("anna\uff1bben", ("anna", "ben")),
        ("anna\u037eben\uff0canna", ("anna", "ben")),
        ("\u03aa\u0301", ("\u0390",)),
    ],
)
def test_a_cell_names_its_owners(cell: str, owners: tuple[str, ...]) -> None:
    assert owners_of(cell) == owners


def test_a_declaration_counts_persons(tmp_path: Path) -> None:
    found = check_binding(write(tmp_path, ROWS), now=NOW, minimum_rows=5, minimum_units=3)
    assert (found.unit, found.rows_checked, found.rows_usable, found.units) == ("person", 5, 5, 3)
    text = BINDING.replace("public_size = 3\n", "")
    many = [(f"p{number // 3}", f"text {number}", 0) for number in range(66)]
    assert check_binding(write(tmp_path, many, text), now=NOW).public_size == 20  # of 22 persons


def test_too_few_persons_are_refused_however_many_rows(tmp_path: Path) -> None:
    with pytest.raises(ContractError) as caught:
        check_binding(write(tmp_path, ROWS), now=NOW, minimum_rows=0, minimum_units=4)
    assert caught.value.code == "too-few-units"


def test_records_of_several_persons_are_refused_unless_dropping_them_is_asked_for(tmp_path: Path) -> None:
    rows = [*ROWS, ("anna;ben", "of both", 1)]
    with pytest.raises(ContractError) as caught:
        check_binding(write(tmp_path, rows), now=NOW)
    assert caught.value.code == "several-owners"
    assert "anna" not in caught.value.message
    text = BINDING.replace("[source]", 'several_owners = "drop"\nmax_bad_share = 0.5\n[source]')
    found = check_binding(write(tmp_path, rows, text), now=NOW)
    assert (found.rows_usable, found.units) == (5, 3)
    assert found.failures == (RuleFailure(rule="person", column="service_request_id", count=1),)
    assert not any("of both" in texts for texts in load(tmp_path, rows).values())


def test_a_record_without_a_person_is_a_bad_row(tmp_path: Path) -> None:
    rows = [*ROWS, ("", "of nobody", 1), (" ", "of nobody", 1)]
    with pytest.raises(ContractError) as caught:
        check_binding(write(tmp_path, rows), now=NOW)
    assert (caught.value.code, "person of service_request_id: 2" in caught.value.message) == ("too-many-bad-rows", True)
    assert not any("of nobody" in texts for texts in load(tmp_path, rows).values())


def test_a_persons_records_lie_side_by_side(tmp_path: Path) -> None:
    found = load(tmp_path, ROWS)
    assert [sorted(texts) for texts in found.values()] == [
        ["first of anna", "second of anna", "third of anna"],
        ["first of ben"],
        ["first of cleo"],
    ]


def test_at_most_so_many_records_of_a_person_take_part(tmp_path: Path) -> None:
    assert [len(texts) for texts in load(tmp_path, ROWS, at_most=2).values()] == [2, 1, 1]
    assert load(tmp_path, ROWS, at_most=2)[0] == load(tmp_path, ROWS[::-1], at_most=2)[0]  # whatever their order


NAMES = st.sampled_from(["anna", "ben", "cleo", "ANNA", "", "anna;ben"])


@given(rows=st.lists(st.tuples(NAMES, st.text(max_size=3)), max_size=12), at_most=st.integers(1, 3))
def test_which_records_of_a_person_stay_depends_on_that_person_alone(rows: list[tuple[str, str]], at_most: int) -> None:
    def kept(rows: list[tuple[str, str]]) -> dict[str, list[str]]:
        cells, texts = [cell for cell, _ in rows], [(text,) for _, text in rows]
        positions, numbers = chosen_records(cells, texts, at_most=at_most)
        assert numbers.tolist() == sorted(numbers.tolist())
        found: dict[str, list[str]] = {}
        for position in positions.tolist():
            found.setdefault(cells[position].casefold(), []).append(texts[position][0])
        return found

    everybody = kept(rows)
    without = kept([row for row in rows if row[0].casefold() != "anna"])
    assert without == {name: texts for name, texts in everybody.items() if name != "anna"}
    assert all(len(texts) <= at_most for texts in everybody.values())


def test_a_binding_has_the_privacy_unit_of_its_policy(tmp_path: Path) -> None:
    person = 'unit = "person"\nowner = "service_request_id"\n\n[source]'
    office = found_office(tmp_path / "a", binding=lambda text: text.replace("[source]", person, 1))
    with pytest.raises(ContractError) as caught:
        bind_data(office.config, now=NOW)
    assert caught.value.code == "unit-foreign"
    office = found_office(
        tmp_path / "b",
        binding=lambda text: text.replace("[source]", person, 1),
        policy=lambda text: text.replace('unit = "record"', 'unit = "person"', 1).replace(
            "[aggregation]", '[privacy.population]\nname = "callers"\nepsilon = 12.0\n\n[aggregation]', 1
        ),
    )
    declaration = bind_data(office.config, now=NOW)
    assert (declaration.unit, declaration.units, declaration.rows_usable) == ("person", 96, 96)
