"""Use a released model: score the texts of a CSV file."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from shared.errors import ContractError
from shared.model_file import MODEL_FILE, read_model
from shared.tasks.device import resolve_device
from shared.tasks.text import predict_scores, prepare
from simulation.home import find_home
from simulation.run_folder import read_plan
from simulation.setup import ensure_setup


def predict_file(directory: Path, file: Path, *, column: str) -> None:
    """Write the rows of ``file`` with a ``score`` column to standard output.

    Args:
        directory: a run folder with model and plan.
        file: CSV in UTF-8 with a header.
        column: the column that holds the text.

    Raises:
        ConfigError: ``run-folder-plan``.
        ModelError: the model file is missing, corrupt or of another layout.
        ContractError: ``predict-unreadable``, ``column-missing``.
    """
    plan = read_plan(directory)
    parameters = read_model(directory / MODEL_FILE, plan.layout)
    header, rows = _read(file)
    if column not in header:
        raise ContractError("column-missing", f"{file} has no column {column}; name the text column with --column.")
    weights = ensure_setup(find_home(), _to_stderr).weights_dir if plan.model.architecture == "minilm" else None
    place = header.index(column)
    prepared = prepare(
        plan.model,
        [row[place] for row in rows],
        None,
        weights_dir=weights,
        device=resolve_device("auto"),
        cache=None,
    )
    scores = predict_scores(plan.model, parameters, prepared, weights_dir=weights)
    writer = csv.writer(sys.stdout)
    writer.writerow([*header, "score"])
    writer.writerows([*row, f"{score:.6f}"] for row, score in zip(rows, scores, strict=True))


def _read(file: Path) -> tuple[list[str], list[list[str]]]:
    """Read header and rows as text."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            header, *rows = csv.reader(handle)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as cause:
        raise ContractError("predict-unreadable", f"{file} is not a readable UTF-8 CSV file with a header.") from cause
    uneven = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if uneven is not None:
        raise ContractError("predict-unreadable", f"{file}, record {uneven}, has not as many fields as the header.")
    return header, rows


def _to_stderr(line: str) -> None:
    """Tell progress where results do not go."""
    sys.stderr.write(f"{line}\n")
