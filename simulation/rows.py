"""Splits: each seed gives every department rows to train on and rows to be measured on.

The files keep the department's own columns, so binding, validation and loading run as in a deployment.
"""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from clients.binding import bound_contract, load_binding, named_contract, named_file
from clients.persons import owners_of
from shared.codec import canonical_json, sha256
from shared.contracts.contract import agreement_hash
from shared.errors import ConfigError
from shared.private_files import make_private_folder, write_private_file

TRAIN_BINDING = "binding.toml"
HOLDOUT_BINDING = "holdout.toml"
TRAIN_FILE = "train.csv"
HOLDOUT_FILE = "holdout.csv"

Unit = list[list[str]]
"""Rows that stay on one side: a single one, or those of one owner."""


@dataclass(frozen=True)
class Split:
    """One department's split in one seed: two bindings, two files, one folder."""

    folder: Path

    @property
    def train(self) -> Path:
        """Binding of the rows to train on."""
        return self.folder / TRAIN_BINDING

    @property
    def holdout(self) -> Path:
        """Binding of the rows to be measured on."""
        return self.folder / HOLDOUT_BINDING

    def digest(self) -> str:
        """Return SHA-256 over both files and what their columns mean, as 64 hex digits; no name or path counts.

        Whoever knows almost every row can guess the others with it, so it is for comparing runs and for no report.

        Raises:
            ContractError: as :func:`clients.binding.load_binding`.
        """
        binding = load_binding(self.train)
        meaning = (
            agreement_hash(bound_contract(binding)),
            binding.columns,
            binding.units,
            binding.owner,
            binding.several_owners,
        )
        files = [(self.folder / name).read_bytes() for name in (TRAIN_FILE, HOLDOUT_FILE)]
        return sha256(b"split", canonical_json(meaning), *files).hex()

    def forget_rows(self) -> None:
        """Delete the copied rows; bindings and declaration stay as evidence of what ran."""
        for name in (TRAIN_FILE, HOLDOUT_FILE):
            (self.folder / name).unlink(missing_ok=True)


def data_digest(binding: Path) -> str:
    """Return SHA-256 over a binding and the files that it names, rows and a contract of its own, as 64 hex digits.

    As with a split's, it is for comparing and for no report.

    Raises:
        ConfigError: ``binding-unreadable``, ``rows-unreadable``.
    """
    tree = _binding_tree(binding)
    rows, contract = Path(str(tree["source"]["path"])), Path(str(tree.get("contract", "")))
    try:
        files = [binding.read_bytes(), rows.read_bytes()]
        own = [contract.read_bytes()] if contract.is_absolute() and contract.is_file() else []
    except OSError as cause:
        raise ConfigError("rows-unreadable", f"{binding}, its rows or its contract cannot be read.") from cause
    return sha256(b"data", *files, *own).hex()


def split_rows(binding: Path, folder: Path, *, seed: int, limit: int, holdout: float) -> Split:
    """Split the rows behind a binding into two files with a binding each.

    Where the binding names an owner, owners are split and not rows: nobody is measured on whom the model was trained.

    Args:
        binding: the department's binding TOML.
        folder: where to write; made private.
        seed: draws the split; the same seed gives the same split on every machine.
        limit: use at most this many rows, 0 for all; which ones does not depend on the seed.
        holdout: share of the rows, or of their owners, to be measured on.

    Raises:
        ConfigError: ``binding-unreadable``, ``rows-unreadable``.
    """
    tree = _binding_tree(binding)
    header, rows = _read_csv(Path(str(tree["source"]["path"])))
    owner = _owner_column(tree, header, binding)
    chosen = _shuffled([[row] for row in rows], "limit")[: limit or None]
    mixed = _shuffled(chosen if owner is None else _by_owner(chosen, owner), f"seed {seed}")
    cut = round(len(mixed) * holdout)
    make_private_folder(folder)
    for file, part in ((HOLDOUT_FILE, mixed[:cut]), (TRAIN_FILE, mixed[cut:])):
        _write_csv(folder / file, header, _flat(part))
    split = Split(folder)
    for path, file in ((split.train, TRAIN_FILE), (split.holdout, HOLDOUT_FILE)):
        source = {**tree, "source": {**tree["source"], "path": file}}
        write_private_file(path, tomli_w.dumps(source).encode())
    return split


def _binding_tree(binding: Path) -> dict[str, dict[str, object]]:
    """Read a binding as plain TOML with absolute paths; its content is judged by ``data check`` later."""
    try:
        tree = tomllib.loads(binding.read_text())
        source, contract = tree.get("source"), tree.get("contract")
        if not isinstance(source, dict) or "path" not in source:
            raise ConfigError("binding-unreadable", f"{binding} names no `source.path`.")
        anchored = {**tree, "source": {**source, "path": str(named_file(binding, str(source["path"])))}}
        return anchored | ({"contract": named_contract(binding, contract)} if isinstance(contract, str) else {})
    except (OSError, ValueError, RecursionError) as cause:
        sentence = f"{binding} is missing, not valid TOML, or names a path that none can be."
        raise ConfigError("binding-unreadable", sentence) from cause


def _owner_column(tree: Mapping[str, object], header: list[str], binding: Path) -> int | None:
    """Return where the rows' owner stands, or None where each row is a unit of its own."""
    owner, columns = tree.get("owner"), tree.get("columns")
    if not owner:
        return None
    names = [name.removeprefix("\ufeff") for name in header]
    column = columns.get(owner) if isinstance(columns, dict) else None
    if column not in names:
        raise ConfigError("binding-unreadable", f"{binding} names an `owner`, but no column of its rows for it.")
    return names.index(column)


def _by_owner(units: Sequence[Unit], column: int) -> list[Unit]:
    """Put the rows of one owner together; a row that does not name exactly one stays alone, as no data set keeps it."""
    groups: dict[object, Unit] = {}
    for position, row in enumerate(_flat(units)):
        named = owners_of(row[column]) if column < len(row) else ()
        groups.setdefault(named if len(named) == 1 else position, []).append(row)
    return list(groups.values())


def _flat(units: Sequence[Unit]) -> list[list[str]]:
    """Return the rows of units, one after another."""
    return [row for unit in units for row in unit]


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Read header and rows as text."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as cause:
        raise ConfigError("rows-unreadable", f"{path} is not a readable UTF-8 CSV file with a header.") from cause
    return header, rows


def _write_csv(path: Path, header: list[str], rows: Sequence[list[str]]) -> None:
    """Write rows for this account only."""
    path.touch(mode=0o600)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _shuffled(units: Sequence[Unit], salt: str) -> list[Unit]:
    """Order units by a keyed hash of position and first row: no generator state, no dependence on the platform."""

    def key(item: tuple[int, Unit]) -> bytes:
        position, unit = item
        return hashlib.sha256("\x1f".join((salt, str(position), *unit[0])).encode()).digest()

    return [unit for _, unit in sorted(enumerate(units), key=key)]
