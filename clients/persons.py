"""Which person a record belongs to, and which of a person's records take part (privacy 2).

Every rule here looks at one record, or at the records of one person, so that no person's part depends on another's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.codec import sha256

SEVERAL = re.compile(r"[;,|]")
"""What parts the owners of a record that belongs to several persons."""


def owners_of(cell: str) -> tuple[str, ...]:
    """Return the persons that a cell names, each once.

    Spellings that differ in case, the number of spaces, invisible characters or Unicode form are one person: two
    persons taken for one are protected together, one taken for two would be protected less.
    """
    parts = (" ".join(part.split()) for part in SEVERAL.split(_plain(cell)))
    return tuple(sorted({part for part in parts if part}))


def chosen_records(
    persons: Sequence[str], records: Sequence[tuple[str, ...]], *, at_most: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which records take part and whose they are, the records of a person side by side.

    Args:
        persons: the cell of each record; a record that does not name exactly one person is dropped.
        records: what is learned from each record, as texts.
        at_most: most records of a person; those with the smallest SHA-256 stay, whatever their order in the file.
            None keeps all.

    Returns:
        Positions of the records, and the number of each one's person, counted from 0; both of one shape, int64.
    """
    groups: dict[str, list[int]] = {}
    for position, cell in enumerate(persons):
        named = owners_of(cell)
        if len(named) == 1:
            groups.setdefault(named[0], []).append(position)
    kept = [sorted(group, key=lambda position: _place(records[position]))[:at_most] for group in groups.values()]
    positions = [position for group in kept for position in group]
    numbers = [number for number, group in enumerate(kept) for _ in group]
    return np.array(positions, dtype=np.int64), np.array(numbers, dtype=np.int64)


def _plain(cell: str) -> str:
    """Return a cell in one form; a wide comma parts names as any other does."""
    if cell.isascii():
        return cell.lower()
    visible = "".join(sign for sign in unicodedata.normalize("NFKC", cell) if unicodedata.category(sign) != "Cf")
    return unicodedata.normalize("NFKC", visible.casefold())  # again, because folding takes letters apart


def _place(record: tuple[str, ...]) -> bytes:
    """Return a record's place in the order of its person's records; equal records are interchangeable."""
    return sha256(*(part.encode() for part in record))
