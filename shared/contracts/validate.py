"""Judge rows by their contract: text becomes typed values or a rule name and a count, never a raw value.

A contract is compiled to a strict pandera schema. Parsing is explicit: nothing is coerced, so 1.7 is not the
integer 1. Every rule looks at one row alone, so a row's fate never depends on another row (privacy 2).
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from shared.codec import Record
from shared.contracts.contract import Contract, LogicalType, Property
from shared.contracts.units import convert
from shared.errors import ContractError

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

Problems = dict[tuple[str, str], set[int]]
"""Row positions by (rule, column); stays inside this module."""

NO_UNITS: Final[Mapping[str, str]] = {}
"""Every number is already in the contract's unit."""

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,4})?")
_DTYPES: Final[dict[LogicalType, str]] = {
    "string": "str",
    "integer": "Int64",
    "number": "float64",
    "timestamp": "datetime64[us, UTC]",
}


class RuleFailure(Record, frozen=True, kw_only=True):
    """How many rows broke one rule; ``rule`` is required, type, length, encoding, enum or range."""

    rule: str
    column: str
    count: int


class ValidationReport(Record, frozen=True, kw_only=True):
    """What validation found: names and counts only.

    Guarantees:
        No value of any row is in it, nor in an error that validation raises.
    """

    rows: int
    usable: int
    failures: tuple[RuleFailure, ...]


def compile_schema(contract: Contract) -> pa.DataFrameSchema:
    """Compile a contract to a strict pandera schema over typed columns; nothing in it coerces."""
    import pandera.pandas as pa  # noqa: PLC0415 - commands that read no data must not load it

    columns = {
        item.name: pa.Column(_DTYPES[item.type], _checks(item), nullable=not item.required, coerce=False)
        for item in contract.properties
    }
    return pa.DataFrameSchema(columns, strict=True, coerce=False)


def validate(frame: pd.DataFrame, contract: Contract, *, units: Mapping[str, str] = NO_UNITS) -> ValidationReport:
    """Check every row by every rule.

    Args:
        frame: text columns (dtype ``str``) under contract names; an empty text means no value, and an optional
            property may be absent.
        contract: what the rows should be.
        units: UN/CEFACT code of a number column that is not in the contract's unit.

    Raises:
        ValueError: for a column that is not text.
        ContractError: ``column-unknown``, ``column-missing``, ``unit-unknown``, ``unit-incompatible``.
    """
    _, problems = _judge(frame, contract, units)
    failures = [
        RuleFailure(rule=rule, column=column, count=len(rows)) for (rule, column), rows in sorted(problems.items())
    ]
    usable = len(frame) - len(_bad_rows(problems))
    return ValidationReport(rows=len(frame), usable=usable, failures=tuple(failures))


def usable_rows(frame: pd.DataFrame, contract: Contract, *, units: Mapping[str, str] = NO_UNITS) -> pd.DataFrame:
    """Return the rows that keep every rule, typed; the others are dropped without a word.

    Args:
        frame: as for :func:`validate`.
        contract: what the rows should be.
        units: as for :func:`validate`.

    Returns:
        One column per contract property in the contract's order, a fresh row index; an optional property that
        ``frame`` lacks is empty.

    Raises:
        ValueError: for a column that is not text.
        ContractError: ``column-unknown``, ``column-missing``, ``unit-unknown``, ``unit-incompatible``.

    Guarantees:
        Whether a row is kept depends on that row and the contract only; contents never raise.

    Source: privacy 2, "Content is judged once, at binding".
    """
    typed, problems = _judge(frame, contract, units)
    bad = _bad_rows(problems)
    kept = [position for position in range(len(typed)) if position not in bad]
    return typed.iloc[kept].reset_index(drop=True)


def _judge(frame: pd.DataFrame, contract: Contract, units: Mapping[str, str]) -> tuple[pd.DataFrame, Problems]:
    """Parse all columns, run the compiled schema, and collect who failed what."""
    import pandas as pd  # noqa: PLC0415 - commands that read no data must not load it

    _check_columns(frame, contract)
    problems: Problems = {}
    columns: dict[str, pd.Series[Any]] = {}
    for item in contract.properties:
        cells = frame[item.name].fillna("").tolist() if item.name in frame.columns else [""] * len(frame)
        parse = _parser(item, units)
        values = [parse(cell) if cell else None for cell in cells]
        unread = {row for row, cell in enumerate(cells) if cell and values[row] is None}
        if unread:
            problems["type", item.name] = unread
        columns[item.name] = pd.Series(values, dtype=_DTYPES[item.type])
    typed = pd.DataFrame(columns)
    for key, rows in _schema_problems(typed, contract).items():
        # A cell that could not be read counts once, as `type`, and not as `required` again.
        rest = rows - problems.get(("type", key[1]), set())
        if rest:
            problems[key] = rest
    return typed, problems


def _schema_problems(typed: pd.DataFrame, contract: Contract) -> Problems:
    """Run pandera lazily; keep rule, column and row position of each failure and let its raw values go."""
    import pandera.pandas as pa  # noqa: PLC0415 - commands that read no data must not load it
    from pandera.config import ValidationDepth, config_context  # noqa: PLC0415

    # The environment may switch pandera off (PANDERA_VALIDATION_ENABLED); that must not let a row through.
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
        try:
            compile_schema(contract).validate(typed, lazy=True)
        except pa.errors.SchemaErrors as errors:
            cases = errors.failure_cases[["check", "column", "index"]].copy()
        else:
            return {}
    problems: Problems = {}
    for check, column, position in cases.itertuples(index=False, name=None):
        # Columns and types are the schema's own (see `_judge`), so every failure is a row's; `int` refuses any other.
        rule = "required" if check == "not_nullable" else str(check)
        problems.setdefault((rule, str(column)), set()).add(int(position))
    return problems


def _check_columns(frame: pd.DataFrame, contract: Contract) -> None:
    """Refuse a frame that was not read for this contract."""
    import pandas as pd  # noqa: PLC0415 - commands that read no data must not load it

    for name in frame.columns:
        if name not in contract.by_name:
            raise ContractError("column-unknown", f"The contract {contract.name} has no property `{name}`.")
    for name in contract.required:
        if name not in frame.columns:
            raise ContractError("column-missing", f"The required property `{name}` of {contract.name} is missing.")
    if not all(isinstance(dtype, pd.StringDtype) for dtype in frame.dtypes):
        raise ValueError("every column is text (dtype str) before validation")


def _bad_rows(problems: Problems) -> set[int]:
    """Return the rows with any failure."""
    return set().union(*problems.values())


def _checks(item: Property) -> list[pa.Check]:
    """Return the row rules of one property; `error` is the name that a failure carries."""
    import pandera.pandas as pa  # noqa: PLC0415 - commands that read no data must not load it

    limits = item.limits
    checks = []
    if item.type == "string":
        # U+FFFD stands where bytes were not UTF-8; half a text is not learned from.
        checks.append(pa.Check(lambda cells: ~cells.str.contains("\ufffd", regex=False), error="encoding"))
    if limits.of_text:
        checks.append(pa.Check.str_length(limits.min_length, limits.max_length, error="length"))
    if limits.minimum is not None:
        checks.append(pa.Check.ge(limits.minimum, error="range"))
    if limits.maximum is not None:
        checks.append(pa.Check.le(limits.maximum, error="range"))
    if item.role == "label" and item.type in {"integer", "number"}:
        # Whatever the contract's limits are: tasks learn two classes, and a third one must not stop a round.
        checks.append(pa.Check.isin([0, 1], error="range"))
    if item.enum:
        checks.append(pa.Check.isin(list(item.enum), error="enum"))
    return checks


def _parser(item: Property, units: Mapping[str, str]) -> Callable[[str], object]:
    """Return the function from a non-empty text to a value, or None where it is no such value."""
    source = units.get(item.name, item.unit)
    if item.type == "number" and source != item.unit:
        convert(0.0, source, item.unit)  # refuses an impossible unit even when there are no rows
        return lambda cell: _converted(_number(cell), source, item.unit)
    return _PARSERS[item.type]


def _integer(cell: str) -> int | None:
    """Read a plain decimal integer; 1.0 and +1 are none."""
    return int(cell) if _INTEGER.fullmatch(cell) else None


def _number(cell: str) -> float | None:
    """Read a JSON number that is finite as a float64."""
    value = float(cell) if _NUMBER.fullmatch(cell) else math.inf
    return value if math.isfinite(value) else None


def _converted(value: float | None, source: str, target: str) -> float | None:
    """Tell a number in the contract's unit; what overflows there is no number."""
    result = math.inf if value is None else convert(value, source, target)
    return result if math.isfinite(result) else None


def _timestamp(cell: str) -> dt.datetime | None:
    """Read an ISO 8601 time that says its UTC offset, as UTC."""
    try:
        moment = dt.datetime.fromisoformat(cell)
        return moment.astimezone(dt.UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


_PARSERS: Final[dict[LogicalType, Callable[[str], object]]] = {
    "string": lambda cell: cell,
    "integer": _integer,
    "number": _number,
    "timestamp": _timestamp,
}
