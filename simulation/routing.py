"""Emergency messages become four departments' data sets, by their human labels.

These are messages from several disasters and not one city's: say so wherever a figure is shown. The rows are
de-duplicated, routed (the first department that matches takes a message) and capped; each department then gets its
own columns under its own local names, and a binding that maps them to the contract. What is routed to no
department becomes the public stand-in: it is tuned on, under no budget.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import SetupError
from shared.private_files import PRIVATE_FOLDER, write_private_file

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 2_600
"""Largest data set of a department; the public stand-in is not capped."""

CAP_SEED = 0
"""Chooses which rows stay when a data set is over ``MAX_ROWS``."""

PUBLIC = "public"
REPORTS_FILE = "reports.csv"
BINDING_FILE = "binding.toml"

BOUND = ("description", "request")
"""What a binding maps: only what the task needs; the other columns are never read."""

PROPERTIES = ("service_request_id", "service_code", "description", "request")
"""Contract properties (Open311 GeoReport names, and the label), in the order of the columns below."""


@dataclass(frozen=True)
class Department:
    """How messages come to one department, and what it calls its columns.

    Args:
        labels: human labels that route a message here; the first one set is its service code.
        columns: local column names, one for each of ``PROPERTIES``.
    """

    labels: tuple[str, ...]
    columns: tuple[str, str, str, str]


# In routing order: the first match wins.
DEPARTMENTS: dict[str, Department] = {
    "police": Department(
        labels=("security", "military", "search_and_rescue", "missing_people"),
        columns=("incident_no", "incident_type", "narrative", "assistance_requested"),
    ),
    "transport": Department(
        labels=("transport", "infrastructure_related", "other_infrastructure"),
        columns=("ref", "type", "text", "needs_help"),
    ),
    "health": Department(
        labels=("medical_help", "medical_products", "hospitals", "death"),
        columns=("case_id", "concern", "note", "help_wanted"),
    ),
    "environment": Department(
        labels=("weather_related",),
        columns=("report_id", "phenomenon", "observation", "is_request"),
    ),
}

_LABELS = tuple(label for department in DEPARTMENTS.values() for label in department.labels)


def read_messages(path: Path) -> pd.DataFrame:
    """Read the message file (UTF-8 with a byte-order mark) with the columns that routing needs.

    Raises:
        SetupError: ``messages-malformed``.
    """
    import pandas as pd  # noqa: PLC0415 - heavy; `--help` must not import it

    types = {"id": "int64", "message": "str", "request": "int8", **dict.fromkeys(_LABELS, "int8")}
    try:
        # "None" and "NA" are words that people write: no text is read as missing.
        return pd.read_csv(path, encoding="utf-8-sig", usecols=list(types), dtype=types, keep_default_na=False)
    except (ValueError, OverflowError) as cause:  # pandas' parser errors are ValueErrors
        raise SetupError("messages-malformed", "The message file lacks a column or holds a wrong type.") from cause


def route_messages(messages: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Route messages to the departments and, where none matches, to the public stand-in.

    A message whose text stood further up in the file is dropped first, so that no text is in two data sets.

    Args:
        messages: columns ``id``, ``message``, ``request`` and every routing label (0 or 1).

    Returns:
        One frame for each department and for ``public``: columns ``PROPERTIES``, in file order; a
        department has at most ``MAX_ROWS``.
    """
    rest = messages.drop_duplicates("message", keep="first")
    routed = {}
    for name, department in DEPARTMENTS.items():
        labels = rest[list(department.labels)].eq(1)
        matches = labels.any(axis=1)
        routed[name] = _reports(rest[matches], labels[matches].idxmax(axis=1).astype("str"))
        rest = rest[~matches]
    routed[PUBLIC] = _reports(rest, "unrouted")
    return {
        name: rows if name == PUBLIC else keep_at_most(rows, MAX_ROWS, seed=CAP_SEED) for name, rows in routed.items()
    }


def _reports(rows: pd.DataFrame, service_code: pd.Series[str] | str) -> pd.DataFrame:
    """Rename to the contract's properties."""
    reports = rows.rename(columns={"id": "service_request_id", "message": "description"})
    return reports.assign(service_code=service_code)[list(PROPERTIES)]


def keep_at_most(rows: pd.DataFrame, limit: int, *, seed: int) -> pd.DataFrame:
    """Keep ``limit`` rows, chosen by a hash of seed and id: the same rows on every machine and version."""
    ranked = sorted(rows["service_request_id"], key=lambda row: hashlib.sha256(f"{seed}:{row}".encode()).digest())
    return rows[rows["service_request_id"].isin(ranked[:limit])]


def write_department(folder: Path, name: str, reports: pd.DataFrame) -> None:
    """Write a department's reports under its local column names, and the binding that maps them.

    Args:
        folder: the department's folder; it must not exist. It and its files are for this account only.
        name: a key of ``DEPARTMENTS``; also the name of its contract.
        reports: columns ``PROPERTIES``.
    """
    local_names = dict(zip(PROPERTIES, DEPARTMENTS[name].columns, strict=True))
    folder.mkdir(mode=PRIVATE_FOLDER)
    write_reports(folder / REPORTS_FILE, reports.rename(columns=local_names))
    write_private_file(folder / BINDING_FILE, binding_text(name, local_names).encode())


def write_reports(path: Path, reports: pd.DataFrame) -> None:
    """Write a data set as CSV that only this account can read."""
    write_private_file(path, reports.to_csv(index=False).encode())


def binding_text(contract: str, columns: dict[str, str]) -> str:
    """Return the TOML binding of a report data set: where it is, and which column is which property."""
    lines = [f'{name} = "{columns[name]}"' for name in BOUND]
    head = [
        'dataset = "reports"',
        f'contract = "{contract}"',
        "",
        "[source]",
        'kind = "csv"',
        f'path = "{REPORTS_FILE}"',
    ]
    return "\n".join([*head, "", "[columns]", *lines, ""])
