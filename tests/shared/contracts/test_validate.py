"""Validation: rule names and counts only, row by row, nothing coerced."""

from __future__ import annotations

import traceback
from typing import Literal

import msgspec
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandera.config import config_context

from shared.contracts.contract import Contract, Limits, Property, packaged_contract
from shared.contracts.validate import RuleFailure, compile_schema, usable_rows, validate
from shared.errors import ContractError

HEALTH = packaged_contract("health")
CANARY = "CANARY-4711"


def frame(*rows: dict[str, str]) -> pd.DataFrame:
    names = [item.name for item in HEALTH.properties]
    return pd.DataFrame([[row.get(name, "") for name in names] for row in rows], columns=names, dtype="str")


def row(**cells: str) -> dict[str, str]:
    return {"description": "please help", "request": "1", **cells}


def failures(data: pd.DataFrame) -> set[tuple[str, str, int]]:
    return {(item.rule, item.column, item.count) for item in validate(data, HEALTH).failures}


def sensors(unit: str = "KMH") -> Contract:
    def numeric(name: str, role: str, unit: str) -> dict[str, object]:
        kind = {"type": "number", "required": True, "classification": "internal", "unit": unit}
        return {"name": name, "role": role, **kind, "limits": Limits(minimum=0, maximum=200)}

    return Contract(
        id="speeds",
        name="Speeds",
        version="1.0.0",
        status="active",
        object="speed",
        properties=(
            msgspec.convert(numeric("speed", "feature", unit), Property, from_attributes=True),
            msgspec.convert(numeric("jam", "label", "C62"), Property, from_attributes=True),
        ),
    )


def test_good_rows_are_typed_and_kept() -> None:
    data = frame(row(requested_datetime="2026-01-01T01:00:00+01:00", service_code="death"), row(request="0"))
    typed = usable_rows(data, HEALTH)
    assert validate(data, HEALTH).failures == ()
    assert typed["request"].tolist() == [1, 0]
    assert typed["requested_datetime"][0] == pd.Timestamp("2026-01-01T00:00:00Z")
    assert [str(dtype) for dtype in typed.dtypes] == ["str", "str", "datetime64[us, UTC]", "str", "Int64"]


@pytest.mark.parametrize(
    ("cells", "rule", "column"),
    [
        ({"request": "2"}, "range", "request"),
        ({"request": "-1"}, "range", "request"),
        ({"request": "1.7"}, "type", "request"),
        ({"request": "1.0"}, "type", "request"),
        ({"request": "true"}, "type", "request"),
        ({"request": " 1"}, "type", "request"),
        ({"request": "\u0661"}, "type", "request"),
        ({"request": "9" * 30}, "type", "request"),
        ({"request": "nan"}, "type", "request"),
        ({"request": ""}, "required", "request"),
        ({"description": ""}, "required", "description"),
        ({"description": "x" * 5001}, "length", "description"),
        ({"description": "caf\ufffd"}, "encoding", "description"),
        ({"service_code": "Death"}, "enum", "service_code"),
        ({"service_request_id": "x" * 65}, "length", "service_request_id"),
        ({"requested_datetime": "yesterday"}, "type", "requested_datetime"),
        ({"requested_datetime": "2026-01-01T00:00:00"}, "type", "requested_datetime"),
        ({"requested_datetime": "0001-01-01T00:00:00+14:00"}, "type", "requested_datetime"),
    ],
)
def test_one_broken_rule_is_named_once_and_drops_its_row(cells: dict[str, str], rule: str, column: str) -> None:
    data = frame(row(), row(**cells), row())
    assert failures(data) == {(rule, column, 1)}
    assert len(usable_rows(data, HEALTH)) == 2


@pytest.mark.parametrize("text", ["NA", "None", "nan", "null", "no", "0", " ", "x" * 5000])
def test_words_that_look_like_missing_values_are_text(text: str) -> None:
    assert usable_rows(frame(row(description=text)), HEALTH)["description"].tolist() == [text]


@pytest.mark.parametrize(
    ("kind", "cells"), [("integer", ["2", "-1", "100"]), ("number", ["2", "0.5", "1.000000001", "1e300"])]
)
@pytest.mark.parametrize("limits", [Limits(), Limits(maximum=1)], ids=["none", "maximum"])
def test_p1_a_row_with_another_label_than_0_or_1_is_a_bad_row_whatever_the_contracts_limits_are(
    kind: Literal["integer", "number"], cells: list[str], limits: Limits
) -> None:
    label = msgspec.structs.replace(HEALTH.by_name["request"], type=kind, limits=limits)
    others = tuple(item for item in HEALTH.properties if item.name != "request")
    contract = msgspec.structs.replace(HEALTH, properties=(*others, label))
    data = frame(row(), row(request="0"), *(row(request=cell) for cell in cells))
    report = validate(data, contract)
    assert report.failures == (RuleFailure(rule="range", column="request", count=len(cells)),)
    assert report.usable == 2
    assert usable_rows(data, contract)["request"].tolist() == [1, 0]


def test_a_report_counts_rows_once_and_rules_each() -> None:
    report = validate(frame(row(), row(request="2", description=""), row(request="7")), HEALTH)
    assert (report.rows, report.usable) == (3, 1)
    assert report.failures == (
        RuleFailure(rule="range", column="request", count=2),
        RuleFailure(rule="required", column="description", count=1),
    )


def test_p1_the_report_and_every_error_hold_no_raw_value() -> None:
    cells = dict.fromkeys(("requested_datetime", "request", "service_code"), CANARY)
    data = frame(row(), row(**cells, service_request_id=CANARY * 9, description=CANARY + "\ufffd"))
    report = validate(data, HEALTH)
    assert len(report.failures) == 5
    assert CANARY not in repr(report)
    assert CANARY.encode() not in msgspec.json.encode(report)
    with pytest.raises(ContractError) as caught:
        validate(data.drop(columns="request"), HEALTH)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=False).format())
    assert CANARY not in shown + repr(caught.value)
    assert caught.value.__context__ is None


def test_a_missing_required_column_is_named() -> None:
    with pytest.raises(ContractError, match="`request`") as caught:
        validate(frame(row()).drop(columns="request"), HEALTH)
    assert caught.value.code == "column-missing"


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(ContractError) as caught:
        usable_rows(frame(row()).rename(columns={"service_code": "race"}), HEALTH)
    assert caught.value.code == "column-unknown"


def test_an_absent_optional_column_is_empty() -> None:
    typed = usable_rows(frame(row())[["description", "request"]], HEALTH)
    assert list(typed.columns) == [item.name for item in HEALTH.properties]
    assert typed["service_code"].isna().all()


def test_numbers_that_pandas_guessed_are_a_callers_mistake() -> None:
    with pytest.raises(ValueError, match="dtype str"):
        validate(pd.DataFrame({"description": ["a"], "request": [1.7]}), HEALTH)


def test_the_compiled_schema_is_strict_and_never_coerces() -> None:
    schema = compile_schema(HEALTH)
    assert schema.strict is True
    assert not schema.coerce
    assert not any(column.coerce for column in schema.columns.values())


def test_validation_cannot_be_switched_off_from_outside() -> None:
    with config_context(validation_enabled=False):
        assert failures(frame(row(request="2"))) == {("range", "request", 1)}


def test_no_rows_are_no_failure() -> None:
    assert validate(frame(), HEALTH).failures == ()
    assert len(usable_rows(frame(), HEALTH)) == 0


def test_a_row_index_of_the_callers_does_not_matter() -> None:
    data = frame(row(request="2"), row(), row(request="2"))
    data.index = pd.Index([7, 7, 7])
    assert failures(data) == {("range", "request", 2)}
    assert len(usable_rows(data, HEALTH)) == 1


def test_a_bindings_unit_is_converted_before_the_range_is_judged() -> None:
    data = pd.DataFrame({"speed": ["60", "130", "1e999", "1.7e308"], "jam": ["0", "1", "0", "0"]}, dtype="str")
    typed = usable_rows(data, sensors(), units={"speed": "HM"})
    report = validate(data, sensors(), units={"speed": "HM"})
    assert typed["speed"].tolist() == pytest.approx([96.56064])
    assert {(item.rule, item.count) for item in report.failures} == {("range", 1), ("type", 2)}


def test_an_impossible_unit_is_refused_even_without_rows() -> None:
    with pytest.raises(ContractError) as caught:
        usable_rows(pd.DataFrame({"speed": [], "jam": []}, dtype="str"), sensors(), units={"speed": "CEL"})
    assert caught.value.code == "unit-incompatible"


CELLS = st.fixed_dictionaries(
    {
        "description": st.text(max_size=20) | st.just("x" * 5001),
        "request": st.sampled_from(["0", "1", "2", "1.7", ""]) | st.text(max_size=5),
        "service_code": st.sampled_from(["death", "hospitals", "", "other"]),
        "requested_datetime": st.sampled_from(["", "2026-01-01T00:00:00Z"])
        | st.datetimes().map(str)
        | st.text(max_size=8),
        "service_request_id": st.sampled_from(["a", "", "same"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(CELLS, max_size=4), CELLS, st.integers(0, 4))
def test_p1_a_row_never_changes_the_fate_of_another(
    rows: list[dict[str, str]], other: dict[str, str], place: int
) -> None:
    alone = [len(usable_rows(frame(item), HEALTH)) == 1 for item in rows]
    together = [*rows[:place], other, *rows[place:]]
    kept = usable_rows(frame(*together), HEALTH)["description"].tolist()
    expected = [item["description"] for item, good in zip(rows, alone, strict=True) if good]
    if len(usable_rows(frame(other), HEALTH)) == 1:
        expected.insert(sum(alone[:place]), other["description"])
    assert kept == expected
