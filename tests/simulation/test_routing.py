"""Routing, de-duplication and caps of the emergency messages."""

from __future__ import annotations

import csv
import stat
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import SetupError
from simulation import routing
from simulation.home import find_home
from simulation.setup import is_set_up

LABELS = tuple(label for department in routing.DEPARTMENTS.values() for label in department.labels)


def message(number: int, text: str, *labels: str, request: int = 0) -> dict[str, object]:
    return {"id": number, "message": text, "request": request, **{label: int(label in labels) for label in LABELS}}


def ids(rows: pd.DataFrame) -> list[int]:
    return [int(number) for number in rows["service_request_id"]]


def test_the_first_department_that_matches_takes_a_message() -> None:
    rows = [
        message(1, "a", "weather_related", "death", "transport", "security"),
        message(2, "b", "weather_related", "death", "transport"),
        message(3, "c", "weather_related", "death"),
        message(4, "d", "weather_related"),
        message(5, "e"),
    ]
    routed = routing.route_messages(pd.DataFrame(rows))
    names = ["police", "transport", "health", "environment", "public"]
    assert {name: ids(routed[name]) for name in names} == dict(zip(names, [[1], [2], [3], [4], [5]], strict=True))


def test_the_first_label_of_a_department_is_the_service_code() -> None:
    rows = [message(1, "a", "hospitals", "medical_products"), message(2, "b")]
    routed = routing.route_messages(pd.DataFrame(rows))
    assert list(routed["health"]["service_code"]) == ["medical_products"]
    assert list(routed["public"]["service_code"]) == ["unrouted"]


def test_a_repeated_text_stays_only_where_it_stood_first() -> None:
    rows = [message(1, "same", "death"), message(2, "same", "security"), message(3, "other", "security")]
    routed = routing.route_messages(pd.DataFrame(rows))
    assert ids(routed["health"]) == [1]
    assert ids(routed["police"]) == [3]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from(LABELS))), max_size=20))
def test_no_text_is_in_two_data_sets_and_none_is_lost(drawn: list[tuple[str, set[str]]]) -> None:
    columns = ["id", "message", "request", *LABELS]
    rows = [message(number, text, *labels) for number, (text, labels) in enumerate(drawn)]
    routed = routing.route_messages(pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(LABELS, "int8")))
    texts = [text for part in routed.values() for text in part["description"]]
    assert sorted(texts) == sorted({text for text, _ in drawn})


def test_a_cap_keeps_the_same_rows_whatever_their_order() -> None:
    rows = pd.DataFrame({"service_request_id": range(100), "description": "x"})
    kept = routing.keep_at_most(rows, 40, seed=7)
    assert ids(kept) == sorted(ids(kept))
    assert len(kept) == 40
    shuffled = routing.keep_at_most(rows.iloc[::-1], 40, seed=7)
    assert set(ids(shuffled)) == set(ids(kept))
    assert set(ids(routing.keep_at_most(rows, 40, seed=8))) != set(ids(kept))


def test_a_department_gets_its_own_column_names_and_a_binding_for_this_account_only(tmp_path: Path) -> None:
    texts = ["two\nlines", 'quoted "word", comma', "None", "água"]
    rows = [message(number, text, "transport", request=number % 2) for number, text in enumerate(texts)]
    routed = routing.route_messages(pd.DataFrame(rows))
    folder = tmp_path / "transport"
    routing.write_department(folder, "transport", routed["transport"])

    binding = tomllib.loads((folder / "binding.toml").read_text())
    assert binding["contract"] == "transport"
    assert binding["source"] == {"kind": "csv", "path": "reports.csv"}
    with (folder / "reports.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = binding["columns"]
    assert [row[columns["description"]] for row in table] == texts
    assert [row[columns["request"]] for row in table] == ["0", "1", "0", "1"]
    assert set(columns) == {"description", "request"}  # what the task needs, and nothing else is read
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_local_column_names_differ_between_departments() -> None:
    names = [name for department in routing.DEPARTMENTS.values() for name in department.columns]
    assert len(set(names)) == len(names)


def test_words_that_look_missing_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    pd.DataFrame([message(1, "NA"), message(2, "None")]).to_csv(path, index=False, encoding="utf-8-sig")
    assert list(routing.read_messages(path)["message"]) == ["NA", "None"]


@pytest.mark.parametrize("content", ["id,message\n1,x\n", "id,message,request\nx,y,z\n", ""])
def test_a_malformed_message_file_is_refused_without_its_values(tmp_path: Path, content: str) -> None:
    path = tmp_path / "messages.csv"
    path.write_text(content)
    with pytest.raises(SetupError) as caught:
        routing.read_messages(path)
    assert caught.value.code == "messages-malformed"


def test_the_real_messages_give_the_documented_sizes_and_shares() -> None:
    home = find_home()
    if not is_set_up(home):
        pytest.skip("`cityfed-sim setup` has not run here")
    expected = {"transport": (2_048, 20), "environment": (2_600, 14), "police": (1_958, 22), "health": (2_310, 30)}
    found = {}
    for name, department in routing.DEPARTMENTS.items():
        rows = pd.read_csv(home.department(name) / routing.REPORTS_FILE, keep_default_na=False)
        found[name] = (len(rows), round(100 * rows[department.columns[3]].mean()))
    assert found == expected
