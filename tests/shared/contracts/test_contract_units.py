"""Units: known codes only, exact where the unit is the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.units import UNITS, check_conversion, convert
from shared.errors import ContractError

PAIRS = [(a, b) for a, b in itertools.product(UNITS, UNITS) if UNITS[a].quantity == UNITS[b].quantity]


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (60.0, "HM", "KMH", 96.56064),
        (10.0, "MTS", "KMH", 36.0),
        (0.05, "GP", "GQ", 50.0),
        (73.0, "P1", "C62", 0.73),
        (212.0, "FAH", "CEL", 100.0),
        (273.15, "KEL", "CEL", 0.0),
    ],
)
def test_a_known_conversion_gives_the_known_value(value: float, source: str, target: str, expected: float) -> None:
    assert convert(value, source, target) == pytest.approx(expected, abs=1e-9)


@given(st.floats(-1e6, 1e6), st.sampled_from(PAIRS))
def test_there_and_back_is_the_same_value(value: float, pair: tuple[str, str]) -> None:
    assert convert(convert(value, *pair), *reversed(pair)) == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(st.floats(allow_nan=False), st.sampled_from(sorted(UNITS)))
def test_the_same_unit_leaves_a_value_bit_for_bit(value: float, unit: str) -> None:
    assert convert(value, unit, unit) == value


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [("MPH", "KMH", "unit-unknown"), ("KMH", "", "unit-unknown"), ("KMH", "CEL", "unit-incompatible")],
)
def test_an_impossible_conversion_is_refused(source: str, target: str, code: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_conversion(source, target)
    assert caught.value.code == code
