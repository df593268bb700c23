"""Use a simulation's model: score the texts of a CSV file."""

from __future__ import annotations

import sys
from pathlib import Path

from shared.model_file import MODEL_FILE, read_model
from shared.tasks.predict import read_table, write_scores
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
    table = read_table(file, (column,))
    weights = ensure_setup(find_home(), _to_stderr).weights_dir if plan.model.architecture == "minilm" else None
    write_scores(table, plan, parameters, weights_dir=weights, out=sys.stdout)


def _to_stderr(line: str) -> None:
    """Tell progress where results do not go."""
    sys.stderr.write(f"{line}\n")
