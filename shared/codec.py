"""The one codec: strict msgspec structs as MessagePack, TOML or JSON.

Every wire type and every configuration file is a :class:`Record`. Decoding refuses unknown fields, wrong
types and trailing bytes; the size limit is checked before anything is parsed.
"""

from __future__ import annotations

import hashlib
import tomllib
from typing import Annotated, Any, TypeVar

import msgspec
import rfc8785

from shared.errors import CityFedError, ConfigError, ProtocolError


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every message and every configuration type: frozen, keyword-only, strict."""


class Tagged(Record, frozen=True, kw_only=True, tag_field="type", tag=True, forbid_unknown_fields=True):
    """Base of messages that are told apart by a ``type`` field holding the class name."""


T = TypeVar("T")

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""A SHA-256 hash as it travels."""

Encoded = bytes | memoryview
"""An encoded record: bytes, or a view of bytes that lie elsewhere, such as in a file that is mapped to memory."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A round, epoch, serial or journal position as it travels."""

MAX_MESSAGE_BYTES = 1 << 30
"""Largest message that any decoder looks at (1 GiB)."""

MAX_FILE_BYTES = 16 << 20
"""Largest JSON file that is looked at (16 MiB)."""


def encode(record: msgspec.Struct) -> bytes:
    """Encode a record as MessagePack; field order is the declaration order, so equal records give equal bytes."""
    return msgspec.msgpack.encode(record)


def decode(
    data: Encoded,
    record_type: type[T],
    *,
    max_bytes: int = MAX_MESSAGE_BYTES,
    error: type[CityFedError] = ProtocolError,
    where: str = "A message",
) -> T:
    """Decode MessagePack strictly.

    Args:
        data: exactly one encoded record; trailing bytes are an error. Fields of type ``memoryview`` point into it.
        record_type: a :class:`Record` subclass or a union of tagged ones.
        max_bytes: refuse longer input before parsing it.
        error: family to raise.
        where: what is decoded, for people: a file's name.

    Raises:
        CityFedError: of the family ``error``, with code ``message-too-large`` or ``message-malformed``.
    """
    if len(data) > max_bytes:  # a view's length counts bytes, or msgspec would not take it
        raise error("message-too-large", f"{where} of {len(data)} bytes is over the limit of {max_bytes} bytes.")
    try:
        return msgspec.msgpack.decode(data, type=record_type)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, ValueError) as cause:
        # The cause names the field and the expected type, never the value.
        raise error("message-malformed", f"{where} could not be decoded: {cause}.") from cause


def load_toml(text: str, record_type: type[T], *, where: str, error: type[CityFedError] = ConfigError) -> T:
    """Parse TOML text into a record with one clear sentence when it does not fit.

    Args:
        text: the TOML document.
        record_type: the :class:`Record` subclass to build.
        where: file name or description used in the sentence.
        error: family to raise.

    Raises:
        CityFedError: of the family ``error``, with code ``toml-syntax`` or ``toml-content``.
    """
    tree = parse_toml(text, where=where, error=error)
    try:
        return msgspec.convert(tree, type=record_type, strict=True)
    except msgspec.ValidationError as cause:
        sentence = str(cause).replace(" - at `$", " at `")
        raise error("toml-content", f"{where}: {sentence}.") from cause


def load_json(data: bytes, record_type: type[T], *, where: str) -> T:
    """Parse a JSON file that people carry from one office to another; bytes stand in it as base64.

    Args:
        data: the document.
        record_type: the :class:`Record` subclass to build.
        where: file name or description used in the sentence.

    Raises:
        ConfigError: ``json-too-large``, before anything is parsed; ``json-content``.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError("json-too-large", f"{where} has more than the {MAX_FILE_BYTES} bytes that are allowed.")
    try:
        return msgspec.json.decode(data, type=record_type)
    except UnicodeDecodeError as cause:
        raise ConfigError("json-content", f"{where}: it is not UTF-8.") from cause
    except (msgspec.DecodeError, RecursionError) as cause:
        sentence = str(cause).replace(" - at `$", " at `")
        raise ConfigError("json-content", f"{where}: {sentence}.") from cause


def dump_json(record: msgspec.Struct) -> bytes:
    """Return a record as indented JSON with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def parse_toml(text: str, *, where: str, error: type[CityFedError] = ConfigError) -> dict[str, Any]:
    """Parse TOML text into plain data.

    Raises:
        CityFedError: of the family ``error``, with code ``toml-syntax``; ``toml-content`` if a text holds NUL, which an
            escape can write and no path or name may have.
    """
    try:
        tree = tomllib.loads(text)
        nul = _holds_nul(tree)
    except RecursionError as cause:
        raise error("toml-syntax", f"{where} is not valid TOML: it is nested too deep.") from cause
    except ValueError as cause:  # tomllib's own error is one; an integer of thousands of digits is another
        raise error("toml-syntax", f"{where} is not valid TOML: {cause}.") from cause
    if nul:
        raise error("toml-content", f"{where}: a text in it holds the character NUL; none may.")
    return tree


def _holds_nul(value: object) -> bool:
    """Look for the character in whatever TOML can hold."""
    match value:
        case str():
            return "\0" in value
        case list():
            return any(map(_holds_nul, value))
        case dict():
            return any(_holds_nul(each) for pair in value.items() for each in pair)
    return False


def canonical_json(value: object) -> bytes:
    """Return RFC 8785 canonical JSON of plain data (a struct is converted first)."""
    return rfc8785.dumps(msgspec.to_builtins(value))


def sha256(*parts: Encoded) -> bytes:
    """Return SHA-256 over length-prefixed parts, so that no two different part lists collide by concatenation."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
