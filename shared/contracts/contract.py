"""A data contract: an Open Data Contract Standard 3.1 file as one frozen, strict object.

The contract is what departments share about their data: names, types, ranges, roles. Its *agreement hash*
stands in the signed plan; where the data lies and what its columns are called stays in the binding.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import cache
from importlib import resources
from typing import Final, Literal

import msgspec

from shared.codec import Record, canonical_json
from shared.contracts.strict_yaml import load_yaml
from shared.contracts.units import UNITS
from shared.errors import ContractError
from shared.identity import DEPARTMENT_NAME

LogicalType = Literal["string", "integer", "number", "timestamp"]
Role = Literal["feature", "label", "identifier", "metadata"]
Classification = Literal["public", "internal", "confidential", "restricted"]

MAX_CONTRACT_BYTES: Final = 1 << 20
"""Longest contract text that is looked at (1 MiB)."""

_LARGEST: Final = 2**53 - 1
"""Largest length: the agreement hash is taken over JSON, which tells larger integers apart no more."""

_VERSION: Final = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class Limits(Record, frozen=True, kw_only=True, rename="camel"):
    """ODCS ``logicalTypeOptions``: lengths in characters for text, inclusive bounds for numbers."""

    min_length: int | None = None
    max_length: int | None = None
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if not all(0 <= length <= _LARGEST for length in (self.min_length, self.max_length) if length is not None):
            raise ValueError(f"`minLength` and `maxLength` lie in 0..{_LARGEST}")
        if not all(math.isfinite(bound) for bound in (self.minimum, self.maximum) if bound is not None):
            raise ValueError("`minimum` and `maximum` are finite")
        if None not in (self.min_length, self.max_length) and (self.min_length or 0) > (self.max_length or 0):
            raise ValueError("`minLength` is not above `maxLength`")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("`minimum` is not above `maximum`")

    @property
    def of_text(self) -> bool:
        """Whether a length is limited."""
        return self.min_length is not None or self.max_length is not None

    @property
    def of_number(self) -> bool:
        """Whether a value is limited."""
        return self.minimum is not None or self.maximum is not None


class Property(Record, frozen=True, kw_only=True):
    """One column of the contract.

    Attributes:
        name: the shared name; a binding maps a local column to it.
        type: ODCS logical type.
        required: whether every usable row has a value.
        role: ``feature`` and ``label`` may be learned from; ``identifier`` and ``metadata`` never.
        classification: the most sensitive class of its values.
        limits: lengths or bounds.
        unit: UN/CEFACT code of a number; empty when it has none.
        enum: allowed texts; empty when any is.
    """

    name: str
    type: LogicalType
    required: bool
    role: Role
    classification: Classification
    limits: Limits
    unit: str = ""
    enum: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numeric = self.type in ("integer", "number")
        if not _NAME.fullmatch(self.name):
            raise ValueError("a property name is a letter, then letters, digits or `_`")
        if self.limits.of_text and self.type != "string":
            raise ValueError(f"`{self.name}` has a length limit but is no string")
        if self.limits.of_number and not numeric:
            raise ValueError(f"`{self.name}` has a bound but is no number")
        if self.unit and (self.unit not in UNITS or not numeric):
            raise ValueError(f"`{self.name}` has a unit that is no known UN/CEFACT code, or is no number")
        if self.enum and (self.type != "string" or len(set(self.enum)) != len(self.enum)):
            raise ValueError(f"`{self.name}` has an enumeration that repeats a value, or is no string")


class Contract(Record, frozen=True, kw_only=True):
    """One versioned contract about one kind of row.

    Attributes:
        id: the file's stable identifier.
        name: the title that people read.
        version: MAJOR.MINOR.PATCH; MAJOR changes the tensor, MINOR adds an optional column that is no
            feature, PATCH changes text.
        status: ODCS status, for example ``active``.
        object: what one row is, for example ``report``.
        properties: the columns, in the file's order.
    """

    id: str
    name: str
    version: str
    status: str
    object: str
    properties: tuple[Property, ...]

    def __post_init__(self) -> None:
        names = [item.name for item in self.properties]
        if not _VERSION.fullmatch(self.version):
            raise ValueError("`version` is MAJOR.MINOR.PATCH, in quotes where YAML would read a number")
        if len(set(names)) != len(names):
            raise ValueError("a property name stands only once")
        if not self.features or not self.labels:
            raise ValueError("a contract has at least one feature and one label")
        if any(item.role == "label" and not item.required for item in self.properties):
            raise ValueError("a label is required")

    def with_role(self, role: Role) -> tuple[str, ...]:
        """Return the names of all properties of one role."""
        return tuple(item.name for item in self.properties if item.role == role)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the properties that a model may read."""
        return self.with_role("feature")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the properties that a model may learn to tell."""
        return self.with_role("label")

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Names of the properties that point at one record; never a feature or a label."""
        return self.with_role("identifier")

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the properties that every binding maps."""
        return tuple(item.name for item in self.properties if item.required)

    @property
    def by_name(self) -> dict[str, Property]:
        """The properties, keyed by name, in the file's order."""
        return {item.name: item for item in self.properties}


# --- the file, field for field ---------------------------------------------------------------------------


class _CustomProperty(Record, frozen=True, kw_only=True):
    property: Literal["role", "unit", "enum"]
    value: str | tuple[str, ...]


class _PropertyFile(Record, frozen=True, kw_only=True, rename="camel"):
    name: str
    logical_type: LogicalType
    required: bool
    classification: Classification
    custom_properties: tuple[_CustomProperty, ...]
    logical_type_options: Limits = Limits()
    description: str = ""


class _ObjectFile(Record, frozen=True, kw_only=True, rename="camel"):
    name: str
    properties: tuple[_PropertyFile, ...]
    logical_type: Literal["object"] = "object"
    physical_type: str = ""
    description: str = ""


class _Description(Record, frozen=True, kw_only=True):
    purpose: str = ""
    usage: str = ""
    limitations: str = ""


class _ContractFile(Record, frozen=True, kw_only=True, rename="camel"):
    api_version: Literal["v3.1.0"]
    kind: Literal["DataContract"]
    id: str
    name: str
    version: str
    status: str
    schema: tuple[_ObjectFile, ...]
    domain: str = ""
    description: _Description = _Description()


def load_contract(text: str, *, where: str = "The contract") -> Contract:
    """Parse an ODCS 3.1 file strictly.

    Args:
        text: the YAML text; a key that this version does not know is refused, not ignored.
        where: file name or description for the sentence.

    Raises:
        ContractError: ``contract-too-large``, ``contract-syntax``, ``contract-content``.

    Source: Open Data Contract Standard 3.1.0.
    """
    if len(text) > MAX_CONTRACT_BYTES:
        raise ContractError("contract-too-large", f"{where} is longer than {MAX_CONTRACT_BYTES} characters.")
    try:
        tree = load_yaml(text)
    except ValueError as cause:
        raise ContractError("contract-syntax", f"{where} cannot be read: {cause}.") from cause
    try:
        return _contract(msgspec.convert(tree, type=_ContractFile, strict=True))
    except (msgspec.ValidationError, ValueError) as cause:
        sentence = str(cause).replace(" - at `$", " at `")
        raise ContractError("contract-content", f"{where}: {sentence}.") from cause


@cache  # the files are part of the package, and every decision asks again
def packaged_contract(department: str) -> Contract:
    """Return the newest contract that this package ships for a department.

    Raises:
        ContractError: ``contract-unknown`` when there is none.
    """
    folder = resources.files("shared.contracts") / department
    known = DEPARTMENT_NAME.fullmatch(department) and folder.is_dir()
    files = [file for file in folder.iterdir() if file.name.endswith(".odcs.yaml")] if known else []
    if not files:
        raise ContractError("contract-unknown", f"This package ships no contract named `{department}`.")
    found = [load_contract(file.read_text("utf-8"), where=f"{department}/{file.name}") for file in files]
    return max(found, key=lambda contract: tuple(int(part) for part in contract.version.split(".")))


def agreement_hash(contract: Contract) -> str:
    """Return the hash that the plan pins: it changes exactly when training could.

    Covers object, MAJOR.MINOR, and of each property name, type, required, limits, enumeration, unit and role.
    Neither titles, descriptions, the PATCH number nor the order of properties count.

    Returns:
        SHA-256 as 64 hex digits over RFC 8785 canonical JSON.
    """
    properties = [
        {
            "name": item.name,
            "type": item.type,
            "required": item.required,
            "limits": item.limits,
            "enum": sorted(item.enum),
            "unit": item.unit,
            "role": item.role,
        }
        for item in sorted(contract.properties, key=lambda item: item.name)
    ]
    agreed = {
        "object": contract.object,
        "version": contract.version.rpartition(".")[0],
        "properties": properties,
    }
    return hashlib.sha256(canonical_json(agreed)).hexdigest()


def _contract(file: _ContractFile) -> Contract:
    """Turn the file into the contract; one file describes one object."""
    if len(file.schema) != 1:
        raise ValueError("`schema` has exactly one object")
    return Contract(
        id=file.id,
        name=file.name,
        version=file.version,
        status=file.status,
        object=file.schema[0].name,
        properties=tuple(_property(item) for item in file.schema[0].properties),
    )


def _property(file: _PropertyFile) -> Property:
    """Turn one property of the file into ours: role, unit and enumeration are ODCS custom properties."""
    custom: dict[str, object] = {item.property: item.value for item in file.custom_properties}
    if len(custom) != len(file.custom_properties):
        raise ValueError(f"`{file.name}` has a custom property twice")
    fields: dict[str, object] = {
        "name": file.name,
        "type": file.logical_type,
        "required": file.required,
        "classification": file.classification,
        "limits": file.logical_type_options,
        **custom,
    }
    return msgspec.convert(fields, type=Property, from_attributes=True)
