"""Read a department's rows: only the columns that the binding maps, as text, under the contract's names.

A column that is not mapped never enters the process' data, and nothing is guessed: no type, no missing value.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from shared.errors import ContractError

if TYPE_CHECKING:
    import pandas as pd

    from clients.binding import Binding


def read_rows(binding: Binding) -> pd.DataFrame:
    """Read the mapped columns of the bound source.

    A line whose number of fields is not the header's, or that is no CSV, becomes a row without values: it is
    counted and dropped by the contract's rules like any other bad row, and never stops the reading. Bytes that
    are not UTF-8 become U+FFFD, which the rule ``encoding`` finds.

    Returns:
        One row per record in the file's order, one column (dtype ``str``) per mapped contract property.

    Raises:
        ContractError: ``source-unreadable``, ``source-empty``, ``column-missing``, ``column-ambiguous``.

    Guarantees:
        No column outside the binding's list is kept. What the records hold never raises.
    """
    import pandas as pd  # noqa: PLC0415 - commands that read no data must not load it

    path = Path(binding.source.path)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            records = _records(file)
            header = next(records, None)
            if not header:
                raise ContractError("source-empty", f"{path} has no header line.")
            places = [_place(header, column, path) for column in binding.columns.values()]
            rows = [_cells(record, places, len(header)) for record in records]
    except OSError as cause:
        raise ContractError("source-unreadable", f"{path} cannot be read: {cause.strerror}.") from cause
    return pd.DataFrame(rows, columns=list(binding.columns), dtype="str")


def _records(file: TextIO) -> Iterator[list[str]]:
    """Yield records; a broken one is empty, as no header and no line of the right length is."""
    reader = csv.reader(file)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield []
            continue
        if record:  # a blank line between records is none
            yield record


def _place(header: list[str], column: str, path: Path) -> int:
    """Return where a mapped column stands."""
    if column not in header:
        raise ContractError("column-missing", f"{path} has no column `{column}`, which the binding names.")
    if header.count(column) > 1:
        raise ContractError("column-ambiguous", f"{path} has the column `{column}` more than once.")
    return header.index(column)


def _cells(record: list[str], places: list[int], width: int) -> list[str]:
    """Pick the mapped cells of one record."""
    if len(record) != width:
        return [""] * len(places)
    return [record[place] for place in places]
