"""Identities, labelled signatures, the roster, and which of its keys count."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.codec import Record, encode
from shared.errors import ProtocolError
from shared.identity import (
    MAX_DEPARTMENTS,
    DepartmentId,
    IdentityKey,
    Roster,
    Signed,
    fingerprint,
    open_signed,
    sign_record,
    verify_bytes,
)
from shared.roster import KeyState, accept_keys, endorse_key, key_states, open_roster
from tests import refusals

CITY = "Riverton"
HEALTH, PARKS, POLICE = (DepartmentId(name) for name in ("health", "parks", "police"))
OFFICE = IdentityKey.generate()
KEYS = {name: IdentityKey.generate() for name in (HEALTH, PARKS, POLICE)}
PINS = {name: key.public for name, key in KEYS.items()}
MEMBERS: dict[str, bytes] = dict(PINS.items())


class Note(Record, frozen=True, kw_only=True):
    text: str


def roster(serial: int = 1, **changes: bytes) -> Roster:
    return Roster(city=CITY, serial=serial, members={**MEMBERS, **changes})


def code_of(action: Callable[[], object]) -> str:
    return refusals.code_of(action, ProtocolError)


# --- signatures --------------------------------------------------------------------------------------------


def test_a_signature_verifies_for_its_key_label_and_bytes_only() -> None:
    key, other = IdentityKey.generate(), IdentityKey.generate()
    signature = key.sign("note", b"body")
    verify_bytes(key.public, "note", b"body", signature)
    for public, label, body, made in (
        (other.public, "note", b"body", signature),
        (key.public, "plan", b"body", signature),
        (key.public, "note", b"bodY", signature),
        (key.public, "note", b"body", signature[:-1]),
        (key.public, "note", b"body", b""),
        (key.public[:-1], "note", b"body", signature),
    ):
        assert code_of(lambda case=(public, label, body, made): verify_bytes(*case)) == "signature-invalid"  # type: ignore[misc]  # default binds the loop value


@given(st.binary(max_size=40), st.integers(min_value=0, max_value=511))
def test_a_flipped_bit_in_a_signature_is_found(body: bytes, bit: int) -> None:
    signature = bytearray(OFFICE.sign("note", body))
    signature[bit // 8] ^= 1 << bit % 8
    assert code_of(lambda: verify_bytes(OFFICE.public, "note", body, bytes(signature))) == "signature-invalid"


def test_a_label_and_its_body_are_told_apart() -> None:
    """`a` over `b-c` and `a-b` over `c` are not the same bytes: a zero byte stands between, and no label has one."""
    signature = OFFICE.sign("note", b"-more")
    assert code_of(lambda: verify_bytes(OFFICE.public, "note-more", b"", signature)) == "signature-invalid"


def test_the_signature_is_checked_before_anything_is_decoded() -> None:
    garbage = Signed(body=b"\xc1", signature=bytes(64))
    assert code_of(lambda: open_signed(OFFICE.public, "note", garbage, Note)) == "signature-invalid"
    signed = Signed(body=b"\xc1", signature=OFFICE.sign("note", b"\xc1"))
    assert code_of(lambda: open_signed(OFFICE.public, "note", signed, Note)) == "message-malformed"
    assert open_signed(OFFICE.public, "note", sign_record(OFFICE, "note", Note(text="hi")), Note) == Note(text="hi")


def test_a_key_prints_its_fingerprint_and_nothing_private() -> None:
    key = IdentityKey.generate()
    private = key.private_bytes()
    assert repr(key) == f"IdentityKey({fingerprint(key.public)})"
    assert private.hex() not in f"{key!r} {key} {[key]}"
    assert IdentityKey.from_private_bytes(private).public == key.public


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_private_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        IdentityKey.from_private_bytes(os.urandom(length))


def test_a_fingerprint_is_eight_groups_that_depend_on_the_whole_key() -> None:
    key = os.urandom(32)
    groups = fingerprint(key).split(" ")
    assert [len(group) for group in groups] == [4] * 8
    assert all(fingerprint(key[:at] + bytes([key[at] ^ 1]) + key[at + 1 :]) != fingerprint(key) for at in range(32))


# --- the roster --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"serial": 0}, "starts at 1"),
        ({"members": {}}, "at least one member"),
        ({"members": {"health": bytes(32), "police": bytes(32)}}, "may not share a key"),
        ({"members": {"health": bytes(31)}}, "32-byte key"),
        ({"members": {"Health": bytes(32)}}, "lower-case name"),
        ({"members": {"health\n": bytes(32)}}, "lower-case name"),
        ({"endorsements": {"water": bytes(64)}}, "belongs to a member"),
    ],
)
def test_a_roster_that_makes_no_sense_cannot_be_made_or_decoded(changes: dict[str, object], sentence: str) -> None:
    fields: dict[str, object] = {"city": CITY, "serial": 1, "members": {"health": b"h" * 32}, "endorsements": {}}
    with pytest.raises(ValueError, match=sentence):
        Roster(**(fields | changes))  # type: ignore[arg-type]  # wrong on purpose
    body = msgspec.msgpack.encode(fields | changes)
    signed = Signed(body=body, signature=OFFICE.sign("roster", body))
    assert code_of(lambda: open_roster(signed, roster_key=OFFICE.public, newest=None)) == "message-malformed"


def test_a_roster_has_at_most_a_thousand_members() -> None:
    crowd = {f"d-{number}": number.to_bytes(32, "big") for number in range(MAX_DEPARTMENTS + 1)}
    signed = sign_record(OFFICE, "roster", Roster(city=CITY, serial=1, members=crowd))
    assert code_of(lambda: open_roster(signed, roster_key=OFFICE.public, newest=None)) == "message-malformed"
    crowd.popitem()
    signed = sign_record(OFFICE, "roster", Roster(city=CITY, serial=1, members=crowd))
    assert len(open_roster(signed, roster_key=OFFICE.public, newest=None).members) == MAX_DEPARTMENTS


def test_roster_order_is_by_name() -> None:
    assert Roster(city=CITY, serial=1, members=dict(reversed(MEMBERS.items()))).ordered() == (
        "health",
        "parks",
        "police",
    )


def test_the_digest_tells_any_two_rosters_apart() -> None:
    one = roster()
    others = [
        roster(2),
        Roster(city="Lakeside", serial=1, members=MEMBERS),
        roster(parks=os.urandom(32)),
        Roster(city=CITY, serial=1, members={"health": PINS[HEALTH], "parks": PINS[PARKS]}),
        Roster(city=CITY, serial=1, members={**MEMBERS, "parks": PINS[POLICE], "police": PINS[PARKS]}),
    ]
    assert len({item.digest() for item in (one, *others)}) == 6
    assert one.digest() == Roster(city=CITY, serial=1, members=dict(reversed(MEMBERS.items()))).digest()


def test_only_the_roster_office_signs_rosters() -> None:
    assert open_roster(sign_record(OFFICE, "roster", roster()), roster_key=OFFICE.public, newest=None) == roster()
    for signed in (sign_record(KEYS[POLICE], "roster", roster()), sign_record(OFFICE, "plan", roster())):
        assert (
            code_of(lambda item=signed: open_roster(item, roster_key=OFFICE.public, newest=None))  # type: ignore[misc]  # default binds the loop value
            == "signature-invalid"
        )


def test_a_serial_never_falls_and_names_one_roster() -> None:
    newest = roster(5)

    def opened(item: Roster) -> Roster:
        return open_roster(sign_record(OFFICE, "roster", item), roster_key=OFFICE.public, newest=newest)

    assert opened(roster(5)) == newest
    assert opened(roster(6)).serial == 6
    assert code_of(lambda: opened(roster(4))) == "roster-rolled-back"
    without = Roster(city=CITY, serial=5, members={name: PINS[name] for name in (HEALTH, PARKS)})
    for other in (roster(5, police=os.urandom(32)), without):
        assert code_of(lambda item=other: opened(item)) == "roster-contradicted"  # type: ignore[misc]  # default binds the loop value


# --- keys --------------------------------------------------------------------------------------------------


def test_a_member_with_the_approved_key_counts() -> None:
    assert set(key_states(roster(), PINS).values()) == {KeyState.APPROVED}
    assert accept_keys(roster(), PINS) == {}


def test_a_removed_member_needs_nobodys_approval() -> None:
    fewer = Roster(city=CITY, serial=2, members={name: PINS[name] for name in (HEALTH, PARKS)})
    assert accept_keys(fewer, PINS) == {}


def test_a_changed_an_added_and_an_exchanged_key_are_refused() -> None:
    added = roster(2, water=os.urandom(32))
    changed = roster(2, police=os.urandom(32))
    exchanged = roster(2, police=PINS[PARKS], parks=PINS[POLICE])
    assert key_states(added, PINS)[DepartmentId("water")] == KeyState.NEW
    assert key_states(changed, PINS)[POLICE] == KeyState.CHANGED
    for item, name in ((added, "water"), (changed, "police"), (exchanged, "parks")):
        with pytest.raises(ProtocolError) as caught:
            accept_keys(item, PINS)
        assert caught.value.code == "roster-key-unapproved"
        assert name in caught.value.message


def endorsed(old: IdentityKey, new: bytes, *, city: str = CITY, department: str = POLICE) -> Roster:
    """A roster on which police has a new key with somebody's endorsement."""
    signature = endorse_key(old, city=city, department=department, key=new)
    return Roster(city=CITY, serial=2, members={**MEMBERS, "police": new}, endorsements={"police": signature})


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_the_old_one_vouches_for_counts(name: DepartmentId) -> None:
    new = os.urandom(32)
    signature = endorse_key(KEYS[name], city=CITY, department=name, key=new)
    item = Roster(city=CITY, serial=2, members={**MEMBERS, name: new}, endorsements={name: signature})
    assert key_states(item, PINS)[name] == KeyState.ENDORSED
    assert accept_keys(item, PINS) == {name: new}
    assert accept_keys(item, PINS | {name: new}) == {}


def test_an_endorsement_is_for_one_city_department_and_key_by_the_approved_key() -> None:
    new = os.urandom(32)
    good = endorsed(KEYS[POLICE], new)
    bad = [
        endorsed(KEYS[PARKS], new),
        endorsed(OFFICE, new),
        endorsed(KEYS[POLICE], new, city="Lakeside"),
        endorsed(KEYS[POLICE], new, department=PARKS),
        msgspec.structs.replace(good, members={**MEMBERS, "police": os.urandom(32)}),
        msgspec.structs.replace(good, endorsements={"parks": good.endorsements["police"]}),
        msgspec.structs.replace(good, endorsements={"police": bytes(64)}),
    ]
    for item in bad:
        assert key_states(item, PINS)[POLICE] == KeyState.CHANGED
        assert code_of(lambda case=item: accept_keys(case, PINS)) == "roster-key-unapproved"  # type: ignore[misc]  # default binds the loop value
    assert accept_keys(good, PINS) == {POLICE: new}


def test_an_endorsement_leads_forward_only() -> None:
    """After the second change, neither the first key nor the first endorsement counts any more."""
    second, third = IdentityKey.generate(), IdentityKey.generate()
    pins = PINS | {POLICE: third.public}
    for item in (roster(3), endorsed(KEYS[POLICE], second.public)):
        assert code_of(lambda case=item: accept_keys(case, pins)) == "roster-key-unapproved"  # type: ignore[misc]  # default binds the loop value
    back = endorsed(third, second.public)
    assert accept_keys(back, pins) == {POLICE: second.public}


def test_a_new_members_own_signature_is_no_endorsement() -> None:
    key = IdentityKey.generate()
    signature = endorse_key(key, city=CITY, department="water", key=key.public)
    item = Roster(city=CITY, serial=2, members={**MEMBERS, "water": key.public}, endorsements={"water": signature})
    assert key_states(item, PINS)[DepartmentId("water")] == KeyState.NEW


def test_a_roster_without_endorsements_decodes() -> None:
    """The field may be left out; nobody has to write an empty table."""
    fields = {"city": CITY, "serial": 1, "members": MEMBERS}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Roster) == roster()
    assert msgspec.msgpack.decode(encode(roster()), type=Roster) == roster()
