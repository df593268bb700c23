"""UN/CEFACT unit codes, and how a binding's unit becomes the contract's.

Source: UNECE Recommendation 20; the codes that FIWARE data models name.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shared.errors import ContractError


class Unit(NamedTuple):
    """One code: what it measures, and ``base = value * scale + offset`` in that quantity's base unit."""

    quantity: str
    scale: float
    offset: float = 0.0


UNITS: Final[dict[str, Unit]] = {
    "C62": Unit("ratio", 1.0),  # one
    "P1": Unit("ratio", 0.01),  # per cent
    "KMH": Unit("speed", 1.0),  # kilometre per hour
    "HM": Unit("speed", 1.609344),  # statute mile per hour
    "MTS": Unit("speed", 3.6),  # metre per second
    "GQ": Unit("concentration", 1.0),  # microgram per cubic metre
    "GP": Unit("concentration", 1000.0),  # milligram per cubic metre
    "CEL": Unit("temperature", 1.0),  # degree Celsius
    "FAH": Unit("temperature", 5 / 9, -160 / 9),  # degree Fahrenheit
    "KEL": Unit("temperature", 1.0, -273.15),  # kelvin
    "2N": Unit("level", 1.0),  # decibel
}
"""Every code that a contract or a binding may name."""


def check_conversion(source: str, target: str) -> None:
    """Check that values in one unit can be told in another.

    Raises:
        ContractError: ``unit-unknown``, then ``unit-incompatible``.
    """
    for code in (source, target):
        if code not in UNITS:
            raise ContractError(
                "unit-unknown", f"`{code}` is no known unit code; known are {', '.join(sorted(UNITS))}."
            )
    if UNITS[source].quantity != UNITS[target].quantity:
        raise ContractError(
            "unit-incompatible",
            f"Unit {source} ({UNITS[source].quantity}) cannot become {target} ({UNITS[target].quantity}).",
        )


def convert(value: float, source: str, target: str) -> float:
    """Tell a value in another unit of the same quantity; the same unit leaves it bit for bit.

    Args:
        value: a finite number in unit ``source``.
        source: UN/CEFACT code, for example ``HM``.
        target: UN/CEFACT code, for example ``KMH``.

    Raises:
        ContractError: ``unit-unknown``, then ``unit-incompatible``.
    """
    check_conversion(source, target)
    if source == target:
        return value
    start, end = UNITS[source], UNITS[target]
    return (value * start.scale + start.offset - end.offset) / end.scale
