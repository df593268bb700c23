"""Released models as this department keeps them: installed once they are verified, verified again at every use.

They lie under ``models/RUN`` in the department's home: the model, what the authority signed about it, its card.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from clients.binding import load_binding
from clients.config import load_config, load_trust, read_file
from clients.desk import open_memory
from clients.memory import Memory
from clients.plans import plan_of_run
from clients.records import RoundFinished
from clients.release_gate import require_release
from shared.codec import decode, load_json
from shared.errors import ConfigError, JournalError, ModelError
from shared.identity import Signed, open_signed
from shared.journal import EntryKind
from shared.messages import ClosedRound
from shared.model_file import MODEL_FILE
from shared.parameters import Vector
from shared.plan import Plan
from shared.private_files import make_private_folder, replace_private_file
from shared.release import (
    CARD_FILE,
    RECORD_FILE,
    RELEASE_LABEL,
    ModelRelease,
    open_release,
    released_vector,
    require_card,
)
from shared.tasks.predict import read_lines, read_table, write_scores

MODELS = "models"
"""Folder of released models in a department's home."""


class _Verified(NamedTuple):
    """A model, and the bytes of its three files by name: whoever can change the folder cannot change them any more."""

    release: ModelRelease
    plan: Plan
    vector: Vector
    files: Mapping[str, bytes]


class Installed(NamedTuple):
    """A model that was verified.

    ``countersigned`` says whether this department countersigned the account of the last round with this very model;
    otherwise the model has the authority's signature alone.
    """

    path: Path
    release: ModelRelease
    countersigned: bool


def fetch_model(config_path: Path, run: str, *, source: Path, now: dt.datetime) -> Installed:
    """Verify a model that the authority handed over and install it.

    Args:
        config_path: this department's ``client.toml``.
        run: the run's id in hex, or its first digits.
        source: the folder with the three files.
        now: the present time, UTC.

    Raises:
        ConfigError: ``file-missing``, ``json-too-large``, ``json-content``, ``run-unknown``, ``plan-unknown``; the
            configuration is not in order.
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``release-foreign``.
        PolicyViolation: ``policy-refused``; the findings stand in the journal.
        ModelError: ``card-changed``, ``model-changed``, ``model-corrupt``, or not of the plan's layout.
        JournalError: the journal does not verify.
        SetupError: ``home-not-writable``.

    Guarantees:
        Nothing is installed that the plan key did not sign, that a rule of the release refuses (policies: E), or that
        differs from the model in the account of the last round, if this department countersigned that: the account
        says so itself, or it is one of as many as the plan has rounds.
    """
    found = _verified(config_path, source)
    release, name = found.release, found.release.run.hex()
    if not run or not name.startswith(run):
        raise ConfigError("run-unknown", f"{source} holds the model of run {name}.")
    with open_memory(config_path, lambda: now) as memory:
        require_release(config_path, memory, release, found.plan, now=now)
        countersigned = _is_countersigned(memory, release, found.plan)
    folder = config_path.parent / MODELS / name
    make_private_folder(folder)
    for file, content in found.files.items():
        replace_private_file(folder / file, content)
    return Installed(folder, release, countersigned)


def predict(config_path: Path, file: Path, *, run: str, columns: Sequence[str], out: TextIO, now: dt.datetime) -> None:
    """Write the rows of a file with a ``score`` column.

    Args:
        config_path: this department's ``client.toml``.
        file: a CSV file with a header, if its name ends so; otherwise one text per line.
        run: the run's id in hex, or its first digits; empty for the only model.
        columns: those of the CSV file that hold the text; none for those that the binding maps to the features.
        out: where to.
        now: the present time, UTC.

    Raises:
        ConfigError: ``model-unknown``, ``model-ambiguous``, ``feature-unmapped``, ``weights-missing``; the
            configuration is not in order.
        ContractError: ``predict-unreadable``, ``column-missing``, ``column-ambiguous``; the binding is not in order.
        ProtocolError: what was installed is not what the authority signed.
        ModelError: ``card-changed``, ``model-changed``, also from the last account that was countersigned;
            ``model-corrupt``; the base weights are not those of the plan.
        JournalError: the journal does not verify.
    """
    config, found = load_config(config_path), _verified(config_path, _installed(config_path, run))
    with open_memory(config_path, lambda: now) as memory:
        _is_countersigned(memory, found.release, found.plan)
    plan = found.plan
    table = file.suffix.lower() == ".csv"
    texts = read_table(file, columns or _bound_columns(config_path, plan)) if table else read_lines(file)
    weights = config_path.parent / config.weights if config.weights else None
    write_scores(texts, plan, found.vector, weights_dir=weights, out=out)


def _verified(config_path: Path, folder: Path) -> _Verified:
    """Open a folder with a model by the authority's key, and the plan that lies here; each file is read once."""
    key = load_trust(load_config(config_path)).authority_key
    files = {name: read_file(folder / name) for name in (MODEL_FILE, RECORD_FILE, CARD_FILE)}
    signed = load_json(files[RECORD_FILE], Signed, where=str(folder / RECORD_FILE))
    plan = plan_of_run(config_path, open_signed(key, RELEASE_LABEL, signed, ModelRelease).run)
    release = open_release(signed, key=key, plan=plan)
    require_card(files[CARD_FILE], release, where=str(folder / CARD_FILE))
    vector = released_vector(files[MODEL_FILE], release, plan, where=str(folder / MODEL_FILE))
    return _Verified(release, plan, vector, files)


def _is_countersigned(memory: Memory, release: ModelRelease, plan: Plan) -> bool:
    """Compare a model with the account of the run's last round, if this department countersigned it."""
    finished = [
        decode(entry.body, RoundFinished, error=JournalError) for entry in memory.journal.entries(EntryKind.ROUND)
    ]
    accounts = [
        decode(item.closed.body, ClosedRound, error=JournalError) for item in finished if item.run == release.run
    ]
    # Whoever was in all rounds knows the last one without being told.
    if not accounts or not (accounts[-1].final or len(accounts) >= plan.rounds):
        return False
    if accounts[-1].model_hash != release.model_hash:
        raise ModelError("model-changed", "The model is not that of the last round which was countersigned.")
    return True


def _installed(config_path: Path, run: str) -> Path:
    """Return the folder of one installed model."""
    folder = config_path.parent / MODELS
    found = sorted(path for path in folder.glob(f"{run}*") if path.is_dir()) if run.isalnum() or not run else []
    if not found:
        raise ConfigError("model-unknown", f"No model of such a run lies in {folder}: fetch it first.")
    if len(found) > 1:
        raise ConfigError("model-ambiguous", f"{len(found)} models in {folder} could be meant: name the run.")
    return found[0]


def _bound_columns(config_path: Path, plan: Plan) -> list[str]:
    """Return what this department calls the plan's features."""
    columns = load_binding(config_path.parent / load_config(config_path).binding).columns
    missing = [name for name in plan.task.features if name not in columns]
    if missing:
        raise ConfigError("feature-unmapped", f"The binding maps no column to `{missing[0]}`: use --column.")
    return [columns[name] for name in plan.task.features]
