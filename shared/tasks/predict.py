"""Use a released model: score the texts of a file, wherever the model came from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from shared.errors import ContractError
from shared.parameters import Vector
from shared.plan import Plan


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """Rows with a header, and the text of each row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]


def read_table(file: Path, columns: Sequence[str]) -> TextFile:
    """Read a CSV file in UTF-8 with a header.

    Args:
        file: the file.
        columns: those that hold the text, joined by a space where they are not empty.

    Raises:
        ContractError: ``predict-unreadable``, ``column-missing``, ``column-ambiguous``.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            header, *rows = csv.reader(handle)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as cause:
        raise ContractError("predict-unreadable", f"{file} is not a readable UTF-8 CSV file with a header.") from cause
    uneven = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if uneven is not None:
        raise ContractError("predict-unreadable", f"{file}, record {uneven}, has not as many fields as the header.")
    for column in columns:
        if column not in header:
            raise ContractError("column-missing", f"{file} has no column {column}; name the text column with --column.")
        if header.count(column) > 1:
            raise ContractError("column-ambiguous", f"{file} has the column {column} more than once.")
    places = [header.index(column) for column in columns]
    texts = tuple(" ".join(row[place] for place in places if row[place]) for row in rows)
    return TextFile(header=tuple(header), rows=tuple(map(tuple, rows)), texts=texts)


def read_lines(file: Path) -> TextFile:
    """Read a UTF-8 file with one text per line.

    Raises:
        ContractError: ``predict-unreadable``.
    """
    try:
        texts = tuple(file.read_text("utf-8-sig").split("\n"))
    except (OSError, UnicodeDecodeError) as cause:
        raise ContractError("predict-unreadable", f"{file} is not a readable UTF-8 text file.") from cause
    texts = texts[:-1] if texts[-1] == "" else texts
    return TextFile(header=("text",), rows=tuple((text,) for text in texts), texts=texts)


def write_scores(file: TextFile, plan: Plan, parameters: Vector, *, weights_dir: Path | None, out: TextIO) -> None:
    """Write the rows with a ``score`` column.

    Args:
        file: what to score.
        plan: the model's plan.
        parameters: shape (layout.size,), float32.
        weights_dir: folder of the base weights; not needed for ``hashed-words``.
        out: where to; opened without translation of line ends.

    Raises:
        CityFedError: as :func:`shared.tasks.text.prepare` and :func:`shared.tasks.text.predict_scores`.
    """
    from shared.tasks.device import resolve_device  # noqa: PLC0415 - imports torch, as the next
    from shared.tasks.text import predict_scores, prepare  # noqa: PLC0415

    device = resolve_device("auto")
    prepared = prepare(plan.model, file.texts, None, weights_dir=weights_dir, device=device, cache=None)
    scores = predict_scores(plan.model, parameters, prepared, weights_dir=weights_dir)
    writer = csv.writer(out)
    writer.writerow([*file.header, "score"])
    writer.writerows([*row, f"{score:.6f}"] for row, score in zip(file.rows, scores, strict=True))
