"""Who is who: Ed25519 identities, labelled signatures and the signed roster (protocol 1).

A signature covers exactly the bytes that travel, prefixed with a label, so that a signature made for one
purpose never verifies for another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Annotated, Final, NewType, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.codec import Number, Record, decode, encode, sha256
from shared.errors import ConfigError, ProtocolError

DepartmentId = NewType("DepartmentId", str)
"""A department's name on the roster, for example ``transport``."""

DEPARTMENT_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")

MAX_DEPARTMENTS = 1000
"""Most members of a roster, and so the most entries of any list or table by department."""

MAX_SIGNED_BYTES = 1 << 22
"""Longest signed body (4 MiB); the largest is a plan with its layout, or the seals of a very large cohort."""

FINGERPRINT_DIGITS = 32

T = TypeVar("T")

Name = Annotated[str, msgspec.Meta(max_length=32)]
"""A department's name as it travels; whether it is a member's shows when it is looked up."""

Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_DEPARTMENTS)]

ByDepartment = Annotated[dict[Name, T], msgspec.Meta(max_length=MAX_DEPARTMENTS)]

PublicKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]

Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


KEY_BYTES: Final = 32
"""Length of an identity key, private or public."""


class IdentityKey:
    """An Ed25519 signing key; its ``repr`` shows the fingerprint and nothing else."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public: bytes = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> IdentityKey:
        """Make a new key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> IdentityKey:
        """Load a key from its 32 private bytes.

        Raises:
            ValueError: the length is wrong.
        """
        if len(raw) != KEY_BYTES:
            raise ValueError(f"an identity key has {KEY_BYTES} bytes")
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def private_bytes(self) -> bytes:
        """Return the 32 private bytes, for the key store only."""
        return self._private.private_bytes_raw()

    def sign(self, label: str, body: bytes) -> bytes:
        """Sign ``body`` under ``label``; returns the 64 signature bytes."""
        return self._private.sign(_labelled(label, body))

    def __repr__(self) -> str:
        return f"IdentityKey({fingerprint(self.public)})"


class Signed(Record, frozen=True, kw_only=True):
    """Bytes with a signature over exactly these bytes; the label is fixed by the reader, never by the sender."""

    body: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNED_BYTES)]
    signature: Signature


def _labelled(label: str, body: bytes) -> bytes:
    """Separate domains: label, a zero byte, the body."""
    return b"cityfed/1/" + label.encode() + b"\x00" + body


def fingerprint(public: bytes) -> str:
    """Return the fingerprint that two people compare over the telephone: 8 groups of 4 hex digits."""
    digest = hashlib.sha256(b"cityfed/1/fingerprint\x00" + public).hexdigest()[:FINGERPRINT_DIGITS]
    return " ".join(digest[i : i + 4] for i in range(0, FINGERPRINT_DIGITS, 4))


def read_fingerprints(words: Iterable[str]) -> list[str]:
    """Read fingerprints as people type them, with or without spaces, one or several.

    Raises:
        ConfigError: ``fingerprint-malformed``.
    """
    digits = "".join("".join(words).split()).lower()
    if not digits or len(digits) % FINGERPRINT_DIGITS or not re.fullmatch(r"[0-9a-f]+", digits):
        raise ConfigError("fingerprint-malformed", "A fingerprint is 8 groups of 4 hex digits.")
    groups = [digits[at : at + 4] for at in range(0, len(digits), 4)]
    return [" ".join(groups[at : at + 8]) for at in range(0, len(groups), 8)]


def sign_record(key: IdentityKey, label: str, record: msgspec.Struct) -> Signed:
    """Encode and sign a record."""
    body = encode(record)
    return Signed(body=body, signature=key.sign(label, body))


def verify_bytes(public: bytes, label: str, body: bytes, signature: bytes) -> None:
    """Check a signature.

    Raises:
        ProtocolError: ``signature-invalid``.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _labelled(label, body))
    except (InvalidSignature, ValueError) as cause:
        raise ProtocolError("signature-invalid", f"The signature on a {label} does not verify.") from cause


def open_signed(public: bytes, label: str, signed: Signed, record_type: type[T]) -> T:
    """Verify first, decode second.

    Raises:
        ProtocolError: ``signature-invalid``, then ``message-malformed``.
    """
    verify_bytes(public, label, signed.body, signed.signature)
    return decode(signed.body, record_type)


class Roster(Record, frozen=True, kw_only=True):
    """The city's members and their identity keys, signed by the roster key under the label ``roster``.

    Attributes:
        city: the city's name.
        serial: grows with every roster; see :func:`shared.roster.open_roster`.
        members: identity key by department.
        endorsements: a member's signature with its old key over its new one; see :func:`shared.roster.endorse_key`.
    """

    city: Annotated[str, msgspec.Meta(max_length=200)]
    serial: Number
    members: ByDepartment[PublicKey]
    endorsements: ByDepartment[Signature] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.serial < 1:
            raise ValueError("a roster serial starts at 1")
        if not self.members:
            raise ValueError("a roster has at least one member")
        if len(set(self.members.values())) != len(self.members):
            raise ValueError("two members of a roster may not share a key")
        for name, key in self.members.items():
            if not DEPARTMENT_NAME.fullmatch(name) or len(key) != 32:
                raise ValueError("a roster member is a lower-case name with a 32-byte key")
        if not set(self.endorsements) <= set(self.members):
            raise ValueError("an endorsement belongs to a member")

    def ordered(self) -> tuple[DepartmentId, ...]:
        """Return the members in roster order, which is by name."""
        return tuple(DepartmentId(name) for name in sorted(self.members))

    def digest(self) -> bytes:
        """Return the hash that departments compare in their adverts: who is a member, with which key."""
        pairs = [part for name in self.ordered() for part in (name.encode(), self.members[name])]
        return sha256(b"roster", self.city.encode(), str(self.serial).encode(), *pairs)
