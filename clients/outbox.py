"""Decisions that people take while a node holds the journal: one file each, which the node takes over (R10).

The node appends them to its journal before it answers the next request, in the order in which they were left, and
removes each file then. The folder lies in the department's home and is as private as the journal; a file that is no
decision refuses everything.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clients.records import Approved, KeyApproved, PlanRefused, RosterSeen
from policies.evaluate import Decision
from shared.codec import Record, decode, encode
from shared.errors import JournalError
from shared.journal import EntryKind
from shared.private_files import make_private_folder, replace_private_file

_RECORDS: dict[EntryKind, type[Record]] = {
    EntryKind.ROSTER: RosterSeen,
    EntryKind.KEY: KeyApproved,
    EntryKind.DECISION: Decision,
    EntryKind.APPROVAL: Approved,
    EntryKind.PLAN_REFUSED: PlanRefused,
}


class _Left(Record, frozen=True, kw_only=True):
    """What a file holds."""

    kind: str
    body: bytes


@dataclass(frozen=True)
class Waiting:
    """One decision that waits, and the file that it is."""

    path: Path
    content: bytes
    kind: EntryKind
    body: Record


def leave_decision(folder: Path, kind: EntryKind, body: Record) -> None:
    """Leave one decision, durably and after those that wait.

    Raises:
        ValueError: a kind that people do not decide.
        SetupError: ``home-not-writable``.
        OSError: the folder cannot be written.
    """
    if kind not in _RECORDS:
        raise ValueError(f"{kind} is not decided at the command line")
    make_private_folder(folder)
    number = 1 + max((int(path.name[:6]) for path in _files(folder)), default=0)
    replace_private_file(
        folder / f"{number:06d}-{secrets.token_hex(8)}.decision", encode(_Left(kind=kind.value, body=encode(body)))
    )


def read_decisions(folder: Path) -> Iterator[Waiting]:
    """Yield the decisions that wait, in order; one that the node takes over meanwhile waits no more.

    Raises:
        JournalError: ``decision-malformed``.
    """
    for path in _files(folder):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        left = decode(content, _Left, error=JournalError)
        kind = next((item for item in _RECORDS if item.value == left.kind), None)
        if kind is None:
            raise JournalError("decision-malformed", f"{path} is no decision that a person can take.")
        yield Waiting(path, content, kind, decode(left.body, _RECORDS[kind], error=JournalError))


def decisions_beside(folder: Path, look: Callable[[], None]) -> tuple[Waiting, ...]:
    """Look at the journal beside the node that holds it, and return the decisions that it does not have yet.

    Args:
        folder: where decisions wait.
        look: takes in what the journal has now. It is called again when the node has taken a decision over meanwhile,
            which may be too late for what was seen.

    Returns:
        What waits, in order. The first may be the journal's last entry already, if it was just being taken over.

    Raises:
        JournalError: ``decision-malformed``.
    """
    while True:
        waiting = tuple(read_decisions(folder))
        look()
        if all(item.path.exists() for item in waiting):
            return waiting


def _files(folder: Path) -> list[Path]:
    """The files that wait, in order; one that is still being written has another ending."""
    return sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9][0-9]-*.decision"))
