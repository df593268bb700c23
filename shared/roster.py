"""Which roster counts, and which keys on it (protocol 1).

A roster counts from the moment its signature verifies: whoever is not on it is out, and a key that it no longer lists
is out. A key that is added or changed counts only where the old key vouches for it or a person approved its
fingerprint; otherwise whoever holds the roster key could swap all keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from shared.codec import Record, encode
from shared.errors import ProtocolError
from shared.identity import DepartmentId, IdentityKey, Roster, Signed, open_signed, verify_bytes

ROSTER_LABEL = "roster"
ENDORSEMENT_LABEL = "key-endorsement"


class KeyEndorsement(Record, frozen=True, kw_only=True):
    """What a department's old key signs about the new one; label ``key-endorsement``."""

    city: str
    department: str
    key: bytes


class KeyState(StrEnum):
    """How a department looks at a member's key on a roster; only the first two count."""

    APPROVED = "approved"
    ENDORSED = "endorsed by the old key"
    CHANGED = "changed, not approved"
    NEW = "new, not approved"


def endorse_key(old: IdentityKey, *, city: str, department: str, key: bytes) -> bytes:
    """Let a department's old key vouch for its new public key; the roster carries the 64 signature bytes."""
    return old.sign(ENDORSEMENT_LABEL, encode(KeyEndorsement(city=city, department=department, key=key)))


def verify_endorsement(old: bytes, signature: bytes, *, city: str, department: str, key: bytes) -> None:
    """Check the word of a department's old key for its new one.

    Raises:
        ProtocolError: ``endorsement-invalid``.
    """
    body = encode(KeyEndorsement(city=city, department=department, key=key))
    try:
        verify_bytes(old, ENDORSEMENT_LABEL, body, signature)
    except ProtocolError as cause:
        raise ProtocolError(
            "endorsement-invalid", f"The present key of {department} does not vouch for the new one."
        ) from cause


def open_roster(signed: Signed, *, roster_key: bytes, newest: Roster | None) -> Roster:
    """Verify a signed roster, whatever keys it lists.

    Args:
        signed: the roster as it was handed over.
        roster_key: the roster key pinned here.
        newest: the roster with the highest serial that was verified here, if there was one.

    Raises:
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``roster-rolled-back``, ``roster-contradicted``.
    """
    roster = open_signed(roster_key, ROSTER_LABEL, signed, Roster)
    if newest is not None and roster.serial < newest.serial:
        raise ProtocolError(
            "roster-rolled-back",
            f"Roster serial {roster.serial} is older than serial {newest.serial}, already seen here.",
        )
    if newest is not None and roster.serial == newest.serial and roster.digest() != newest.digest():
        raise ProtocolError("roster-contradicted", f"Another roster with serial {roster.serial} was already seen here.")
    return roster


def key_states(roster: Roster, pins: Mapping[DepartmentId, bytes]) -> dict[DepartmentId, KeyState]:
    """Judge the key of every member, in roster order, by the keys approved here."""
    return {name: _key_state(roster, name, pins.get(name)) for name in roster.ordered()}


def counting_keys(roster: Roster, pins: Mapping[DepartmentId, bytes]) -> dict[str, bytes]:
    """Return the keys on a roster that count here; a member whose key does not is left out."""
    counting = (KeyState.APPROVED, KeyState.ENDORSED)
    return {name: roster.members[name] for name, state in key_states(roster, pins).items() if state in counting}


def accept_keys(roster: Roster, pins: Mapping[DepartmentId, bytes]) -> dict[DepartmentId, bytes]:
    """Refuse a roster unless every key on it counts here.

    Args:
        roster: as :func:`open_roster` returned it.
        pins: the key approved here, by department.

    Returns:
        The keys that count because the old key vouches for them; from now on they are the approved ones.

    Raises:
        ProtocolError: ``roster-key-unapproved``, naming the first such member.
    """
    states = key_states(roster, pins)
    for name, state in states.items():
        if state in (KeyState.CHANGED, KeyState.NEW):
            raise ProtocolError("roster-key-unapproved", f"The key of {name} on the roster was not approved here.")
    return {name: roster.members[name] for name, state in states.items() if state is KeyState.ENDORSED}


def _key_state(roster: Roster, name: DepartmentId, pin: bytes | None) -> KeyState:
    """Judge one key; an endorsement that does not verify is as good as none."""
    key = roster.members[name]
    if pin is None:
        return KeyState.NEW
    if key == pin:
        return KeyState.APPROVED
    try:
        verify_endorsement(pin, roster.endorsements.get(name, b""), city=roster.city, department=name, key=key)
    except ProtocolError:
        return KeyState.CHANGED
    return KeyState.ENDORSED
