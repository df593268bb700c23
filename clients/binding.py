"""A binding: where a department's data lies and what its columns are called; it never leaves the department.

``check_binding`` judges the rows in full, once, and freezes the public size (privacy 2). In a round only the
binding and the contract are compared with that declaration, never the rows.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from clients.persons import owners_of
from clients.sources import read_rows
from shared.codec import Record, canonical_json, dump_json, load_toml
from shared.contracts.contract import Contract, agreement_hash, load_contract, packaged_contract
from shared.contracts.units import check_conversion
from shared.contracts.validate import RuleFailure, ValidationReport, usable_rows, validate
from shared.errors import ContractError
from shared.identity import DEPARTMENT_NAME
from shared.privacy.plan import PrivacyUnit
from shared.private_files import replace_private_file

if TYPE_CHECKING:
    import pandas as pd

PUBLIC_SIZE_STEP: Final = 10
"""A public size that is not given is the number of usable rows rounded down to a multiple of this."""

MAX_PUBLIC_SIZE: Final = 2**53 - 1
"""Largest public size: the digest of a binding is taken over JSON, which tells larger integers apart no more."""


class Source(Record, frozen=True, kw_only=True):
    """Where the rows are: a CSV file in UTF-8 with a header line."""

    kind: Literal["csv"] = "csv"
    path: str


class Binding(Record, frozen=True, kw_only=True):
    """One data set of a department, in the department's own words.

    Attributes:
        dataset: the department's name for it, for example ``reports-2026``.
        contract: a department whose packaged contract it follows, or the path of an ODCS file.
        source: where the rows are.
        columns: local column name by contract property; no other column is read.
        units: UN/CEFACT code of a number column that is not in the contract's unit.
        unit: the privacy unit: a record, a person or a device.
        owner: with unit ``person`` or ``device`` the mapped identifier that tells them apart, else empty.
        several_owners: what becomes of a record that names several of them: ``refuse`` does not bind such data,
            ``drop`` leaves such records out.
        public_size: the number of units told to everybody; left out, it is counted at binding and rounded down.
        max_bad_share: share of bad rows up to which the data set may be bound.
    """

    dataset: str
    contract: str
    source: Source
    columns: dict[str, str]
    units: dict[str, str] = msgspec.field(default_factory=dict)
    unit: PrivacyUnit = "record"
    owner: str = ""
    several_owners: Literal["refuse", "drop"] = "refuse"
    public_size: int | None = None
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not DEPARTMENT_NAME.fullmatch(self.dataset):
            raise ValueError("`dataset` is a lower-case letter, then up to 31 letters, digits or `-`")
        if len(set(self.columns.values())) != len(self.columns):
            raise ValueError("`columns` maps one local column twice")
        if (self.unit == "record") == bool(self.owner):
            raise ValueError('`owner` names a property exactly when `unit` is "person" or "device"')
        if self.public_size is not None:
            _check_size(self.public_size)
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError("`max_bad_share` lies in [0, 1]")


class Declaration(Record, frozen=True, kw_only=True):
    """What a department found when it bound a data set; only ``public_size`` and ``contract_hash`` are told to others.

    ``binding_digest`` and ``contract_hash`` are 64 hex digits each; ``rows_usable`` counts usable rows and
    ``units`` the privacy units that have any.
    ``judged_by`` is the digest in hex of the policy whose rules on contents were satisfied, empty if none was
    asked; a node accepts a declaration only from the policy that it runs under.
    """

    version: Literal[1] = 1
    dataset: str
    contract_hash: str
    binding_digest: str
    public_size: int
    rows_checked: int
    rows_usable: int
    unit: PrivacyUnit
    units: int
    failures: tuple[RuleFailure, ...]
    checked_at: dt.datetime
    judged_by: str = ""

    def __post_init__(self) -> None:
        _check_size(self.public_size)


def load_binding(path: Path) -> Binding:
    """Read a binding and hold it against its contract.

    Args:
        path: the TOML file; the paths in it are relative to its folder.

    Returns:
        The binding with absolute paths.

    Raises:
        ContractError: ``binding-unreadable``, ``toml-syntax``, ``toml-content``, ``binding-contract-missing`` or
            a contract's own codes, ``binding-property-unknown``, ``binding-property-missing``, ``binding-unit``,
            ``unit-unknown``, ``unit-incompatible``, ``binding-owner``, ``binding-source-missing``.
    """
    binding = load_toml(_read(path, "binding-unreadable"), Binding, where=str(path), error=ContractError)
    binding = _absolute(binding, path)
    contract = bound_contract(binding)
    _check_columns(binding, contract, path)
    _check_units(binding, contract, path)
    _check_owner(binding, contract, path)
    if not _is_file(Path(binding.source.path)):
        raise ContractError("binding-source-missing", f"{path}: the source file {binding.source.path} does not exist.")
    return binding


def named_file(binding_path: Path, name: str) -> Path:
    """Return the file that a path in a binding names: it counts from the folder in which the binding itself lies."""
    folder = Path(os.path.realpath(binding_path)).parent
    return Path(os.path.realpath(folder / name))  # `Path.resolve` raises where links go round


def named_contract(binding_path: Path, contract: str) -> str:
    """Return a binding's ``contract``: a packaged one by its name, or else the path of a file, made absolute."""
    return contract if DEPARTMENT_NAME.fullmatch(contract) else str(named_file(binding_path, contract))


def bound_contract(binding: Binding) -> Contract:
    """Return the contract that a loaded binding names.

    Raises:
        ContractError: ``contract-unknown``, ``binding-contract-missing``, ``contract-too-large``,
            ``contract-syntax``, ``contract-content``.
    """
    if DEPARTMENT_NAME.fullmatch(binding.contract):
        return packaged_contract(binding.contract)
    return load_contract(_read(Path(binding.contract), "binding-contract-missing"), where=binding.contract)


def binding_digest(binding: Binding) -> str:
    """Return SHA-256 over the canonical JSON of a loaded binding, as 64 hex digits."""
    return hashlib.sha256(canonical_json(binding)).hexdigest()


def check_binding(
    binding_path: Path, *, now: dt.datetime, minimum_rows: int = 0, minimum_units: int = 0
) -> Declaration:
    """Validate a data set in full and declare its frozen public size; run by the department, for its own eyes.

    Args:
        binding_path: the binding.
        now: the time to note, with a UTC offset.
        minimum_rows: fewest usable rows that the policy accepts.
        minimum_units: fewest privacy units with a usable row that the policy accepts.

    Raises:
        ValueError: when ``now`` has no UTC offset.
        ContractError: those of :func:`load_binding` and of reading; then ``several-owners``,
            ``too-many-bad-rows``, ``too-few-rows``, ``too-few-units``.

    Guarantees:
        Rule names and counts only, never a value.
    """
    if now.tzinfo is None:
        raise ValueError("`now` has a UTC offset")
    binding = load_binding(binding_path)
    contract = bound_contract(binding)
    rows = read_rows(binding)
    report, units = validate(rows, contract, units=binding.units), None
    if binding.unit != "record":
        report, units = _by_owner(report, binding, usable_rows(rows, contract, units=binding.units))
    _check_bad_share(report, binding)
    units = report.usable if units is None else units
    least = max(minimum_units, PUBLIC_SIZE_STEP if binding.public_size is None else 1)
    _check_enough(binding, "rows", report.usable, max(minimum_rows, least))
    _check_enough(binding, "units", units, least)
    return Declaration(
        dataset=binding.dataset,
        contract_hash=agreement_hash(contract),
        binding_digest=binding_digest(binding),
        public_size=binding.public_size or rounded_size(units),
        rows_checked=report.rows,
        rows_usable=report.usable,
        unit=binding.unit,
        units=units,
        failures=report.failures,
        checked_at=now,
    )


def rounded_size(units: int) -> int:
    """Return the public size of so many units: rounded down to a multiple of 10."""
    return units - units % PUBLIC_SIZE_STEP


def declaration_path(binding_path: Path) -> Path:
    """Return where a binding's declaration lies: beside it."""
    return binding_path.with_name(f"{binding_path.stem}.declaration.json")


def write_declaration(binding_path: Path, declaration: Declaration) -> Path:
    """Write the declaration beside its binding, readable by the owner only, all of it or nothing.

    Raises:
        ContractError: ``declaration-unwritable``.
    """
    target = declaration_path(binding_path)
    try:
        replace_private_file(target, dump_json(declaration))
    except OSError as cause:
        raise ContractError("declaration-unwritable", f"{target} cannot be written: {cause.strerror}.") from cause
    return target


def load_declaration(binding_path: Path) -> Declaration:
    """Read the declaration of a binding.

    Raises:
        ContractError: ``declaration-missing``, ``declaration-malformed``.
    """
    path = declaration_path(binding_path)
    text = _read(path, "declaration-missing")
    try:
        return msgspec.json.decode(text, type=Declaration)
    except msgspec.DecodeError as cause:
        raise ContractError("declaration-malformed", f"{path} is not a declaration: {cause}.") from cause


def verify_declaration(binding_path: Path, declaration: Declaration, contract: Contract) -> None:
    """Check that binding and contract are the ones that were judged.

    The rows are not looked at: what they hold must never cause a refusal that others can see (privacy 2).

    Raises:
        ContractError: those of :func:`load_binding`, then ``binding-changed``, ``contract-changed``.
    """
    again = "check the data again"
    if binding_digest(load_binding(binding_path)) != declaration.binding_digest:
        raise ContractError("binding-changed", f"{binding_path} changed after its data was checked; {again}.")
    if agreement_hash(contract) != declaration.contract_hash:
        raise ContractError("contract-changed", f"The contract of {binding_path} changed after the check; {again}.")


def _read(path: Path, code: str) -> str:
    """Read a small text file of the department's own."""
    try:
        return path.read_text("utf-8")
    except OSError as cause:
        raise ContractError(code, f"{path} cannot be read: {cause.strerror}.") from cause
    except UnicodeDecodeError as cause:
        raise ContractError(code, f"{path} is not UTF-8 text.") from cause


def _check_size(public_size: int) -> None:
    """Refuse a size that no data set has, or that the binding's digest cannot tell from its neighbours."""
    if not 1 <= public_size <= MAX_PUBLIC_SIZE:
        raise ValueError(f"`public_size` lies in 1..{MAX_PUBLIC_SIZE}")


def _is_file(path: Path) -> bool:
    """Return whether a file is there, as far as this process may see; a name that none can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _absolute(binding: Binding, path: Path) -> Binding:
    """Make the binding's paths absolute; refuse those that no digest can be taken of."""
    source = msgspec.structs.replace(binding.source, path=str(named_file(path, binding.source.path)))
    contract = named_contract(path, binding.contract)
    try:
        f"{source.path}{contract}".encode()
    except UnicodeEncodeError as cause:  # what no digest and no record can hold
        sentence = f"{str(path)!a} names a file whose folder has a name that is not UTF-8 text."
        raise ContractError("binding-unreadable", sentence) from cause
    return msgspec.structs.replace(binding, source=source, contract=contract)


def _check_columns(binding: Binding, contract: Contract, path: Path) -> None:
    """Every mapped property exists; every required property is mapped."""
    for name in binding.columns:
        if name not in contract.by_name:
            raise ContractError(
                "binding-property-unknown",
                f"{path}: `columns.{name}` is no property of {contract.name}; it has {', '.join(contract.by_name)}.",
            )
    for name in contract.required:
        if name not in binding.columns:
            raise ContractError(
                "binding-property-missing", f"{path}: `columns` maps no column to the required property `{name}`."
            )


def _check_units(binding: Binding, contract: Contract, path: Path) -> None:
    """A unit is given for mapped numbers that have one, and can be converted."""
    for name, unit in binding.units.items():
        item = contract.by_name.get(name)
        if name not in binding.columns or item is None or item.type != "number" or not item.unit:
            raise ContractError("binding-unit", f"{path}: `units.{name}` is not a mapped number with a unit.")
        check_conversion(unit, item.unit)


def _check_bad_share(report: ValidationReport, binding: Binding) -> None:
    """Refuse to bind data of which too much breaks the contract; says which rules and how often."""
    bad = report.rows - report.usable
    if bad > binding.max_bad_share * report.rows:
        counts = ", ".join(f"{item.rule} of {item.column}: {item.count}" for item in report.failures)
        raise ContractError(
            "too-many-bad-rows",
            f"{bad} of {report.rows} rows of {binding.dataset} break their contract ({counts}); "
            f"a share of {binding.max_bad_share:g} is allowed.",
        )


def _check_owner(binding: Binding, contract: Contract, path: Path) -> None:
    """Persons and devices are told apart by a mapped identifier that is text."""
    item = contract.by_name.get(binding.owner)
    if binding.unit != "record" and not (
        item is not None and item.role == "identifier" and item.type == "string" and item.name in binding.columns
    ):
        raise ContractError(
            "binding-owner", f"{path}: `owner` is not a mapped property of role identifier and type string."
        )


def _by_owner(report: ValidationReport, binding: Binding, usable: pd.DataFrame) -> tuple[ValidationReport, int]:
    """Count a usable row that does not name exactly one owner as bad, and return how many owners are left."""
    owners = [owners_of(cell) for cell in usable[binding.owner].fillna("")]
    several = sum(len(named) > 1 for named in owners)
    if several and binding.several_owners == "refuse":
        raise ContractError(
            "several-owners",
            f"{several} rows of {binding.dataset} name several {binding.unit}s in `{binding.owner}`; a record has one "
            'owner, unless the binding says `several_owners = "drop"`.',
        )
    bad = sum(len(named) != 1 for named in owners)
    failures = (RuleFailure(rule=binding.unit, column=binding.owner, count=bad),) if bad else ()
    judged = ValidationReport(rows=report.rows, usable=report.usable - bad, failures=report.failures + failures)
    return judged, len({named for named in owners if len(named) == 1})


def _check_enough(binding: Binding, what: Literal["rows", "units"], found: int, least: int) -> None:
    """Refuse to bind fewer rows or units than the policy wants, or than a public size needs."""
    if found < least:
        raise ContractError(
            f"too-few-{what}", f"{binding.dataset} has {found} usable {what}; at least {least} are needed."
        )
