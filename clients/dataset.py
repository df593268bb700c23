"""The rows that training sees: texts and labels of usable rows, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.binding import Binding
from clients.persons import chosen_records
from clients.sources import read_rows
from shared.contracts.contract import Contract, LogicalType, Role
from shared.contracts.validate import usable_rows
from shared.errors import ContractError


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """One department's usable rows.

    Attributes:
        texts: the features of each row, joined by a space.
        labels: shape (len(texts),), dtype float32, read-only.
        owners: where the privacy unit is a person, the number of each row's person, from 0 and side by side; else None.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.float32]
    owners: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.texts),) or self.labels.dtype != np.float32:
            raise ValueError("`labels` holds one float32 per text")

    @property
    def units(self) -> int:
        """Number of privacy units."""
        return len(self.texts) if self.owners is None else len(np.unique(self.owners))

    def __repr__(self) -> str:
        """Show neither values nor how many there are: the number of rows is private too."""
        return "Dataset(...)"


def load_dataset(
    binding: Binding, contract: Contract, *, features: tuple[str, ...], label: str, max_records: int | None = None
) -> Dataset:
    """Read, judge row by row and keep what a task needs (step 4 of a round).

    Args:
        binding: where the rows are.
        contract: what they should be.
        features: contract properties of role ``feature`` and type ``string``, at least one.
        label: contract property of role ``label`` that is a number; rows are usable where it is 0 or 1.
        max_records: most rows of a person, where the binding tells persons apart; None keeps all.

    Raises:
        ValueError: when ``features`` is empty.
        ContractError: those of :func:`require_columns`, :func:`clients.sources.read_rows` and
            :func:`shared.contracts.validate.usable_rows`.

    Guarantees:
        Contents never raise: a bad row is dropped by a rule on that row alone, and no number of rows is too few.
        Which rows of a person stay depends on that person's rows alone.
    """
    require_columns(binding, contract, features=features, label=label)
    rows = usable_rows(read_rows(binding), contract, units=binding.units)
    columns = [rows[name].fillna("").tolist() for name in features]
    labels = rows[label].to_numpy(dtype=np.float32)
    labels.setflags(write=False)
    texts = tuple(" ".join(cell for cell in cells if cell) for cells in zip(*columns, strict=True))
    if binding.unit == "record":
        return Dataset(texts=texts, labels=labels)
    learned = list(zip(texts, map(str, labels.tolist()), strict=True))
    kept, owners = chosen_records(rows[binding.owner].fillna("").tolist(), learned, at_most=max_records)
    labels = labels[kept]
    labels.setflags(write=False)
    return Dataset(texts=tuple(texts[position] for position in kept), labels=labels, owners=owners)


def require_columns(binding: Binding, contract: Contract, *, features: tuple[str, ...], label: str) -> None:
    """Refuse a task that the contract does not allow or that a department mapped no column for; no row is read.

    Arguments are those of :func:`load_dataset`.

    Raises:
        ValueError: when ``features`` is empty.
        ContractError: ``feature-not-allowed``, ``label-not-allowed``, ``property-not-bound``.
    """
    if not features:
        raise ValueError("a task reads at least one feature")
    for name in features:
        _check_use(binding, contract, name, "feature", ("string",))
    _check_use(binding, contract, label, "label", ("integer", "number"))


def _check_use(binding: Binding, contract: Contract, name: str, role: Role, types: tuple[LogicalType, ...]) -> None:
    """Check that the contract lets a property play this role, and that the department bound it."""
    item = contract.by_name.get(name)
    if item is None or item.role != role or item.type not in types:
        raise ContractError(
            f"{role}-not-allowed", f"The contract {contract.name} has no {role} `{name}` of type {' or '.join(types)}."
        )
    if name not in binding.columns:
        raise ContractError("property-not-bound", f"The binding of {binding.dataset} maps no column to `{name}`.")
