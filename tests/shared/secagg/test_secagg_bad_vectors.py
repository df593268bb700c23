"""The frozen good messages are read, each ``*_bad_*`` one is refused by name, and an independent reading sees the fault."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VECTORS = Path(__file__).parents[2] / "vectors"
FROZEN: dict[str, Any] = json.loads((VECTORS / "secagg_bad_v1.json").read_text(encoding="utf-8"))
ROUND: dict[str, Any] = json.loads((VECTORS / "secagg_v1.json").read_text(encoding="utf-8"))
LABELS = {"advert": "key-advert", "seals": "seals", "receipt": "receipt", "confirmation": "confirmation"}


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(VECTORS / "generate_secagg_bad.py"))


def test_the_file_comes_out_byte_for_byte(generator: dict[str, Any]) -> None:
    assert generator["make"]() == FROZEN


@pytest.mark.parametrize("name", FROZEN["good"])
def test_a_good_message_is_read(generator: dict[str, Any], name: str) -> None:
    case = FROZEN["good"][name]
    assert generator["code_of"](case["reader"], bytes.fromhex(case["message"])) == ""


@pytest.mark.parametrize("name", FROZEN["bad"])
def test_a_bad_message_is_refused_by_name(generator: dict[str, Any], name: str) -> None:
    case = FROZEN["bad"][name]
    assert generator["code_of"](case["reader"], bytes.fromhex(case["message"])) == case["code"]


# --- an independent reading: generic MessagePack, the standard library, one Ed25519 --------------------------


def tree_of(message: bytes) -> Any:
    return msgspec.msgpack.decode(message)


def verifies(signed: dict[str, bytes], label: str, name: str = "health") -> bool:
    """Whether a department signed these bytes under this label; keys are made anew from their rule."""
    seed = hashlib.shake_256(f"identity/{name}/1".encode()).digest(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    try:
        public.verify(signed["signature"], b"cityfed/1/" + label.encode() + b"\x00" + signed["body"])
    except InvalidSignature:
        return False
    return True


def good_and_bad(name: str) -> tuple[bytes, bytes]:
    good = FROZEN["good"][name.partition("_bad_")[0]]["message"]
    return bytes.fromhex(good), bytes.fromhex(FROZEN["bad"][name]["message"])


def names(suffix: str) -> list[str]:
    found = [name for name in FROZEN["bad"] if name.endswith(f"_bad_{suffix}")]
    assert found
    return found


@pytest.mark.parametrize("message", LABELS)
def test_signatures_verify_where_they_should_and_nowhere_else(message: str) -> None:
    label = LABELS[message]
    assert verifies(tree_of(bytes.fromhex(FROZEN["good"][message]["message"])), label)
    bad = {
        fault: tree_of(good_and_bad(f"{message}_bad_{fault}")[1]) for fault in ("signature", "body", "label", "signer")
    }
    assert not any(verifies(signed, label) for signed in bad.values())
    assert verifies(bad["label"], f"{label}s")
    assert verifies(bad["signer"], label, "police")


@pytest.mark.parametrize("name", names("unknown_field"))
def test_an_unknown_field_is_properly_signed_all_the_same(name: str) -> None:
    good, bad = (tree_of(message) for message in good_and_bad(name))
    assert verifies(bad, LABELS[name.partition("_bad_")[0]])
    assert set(tree_of(bad["body"])) - set(tree_of(good["body"])) == {"extra"}


@pytest.mark.parametrize("name", [*names("trailing_byte"), *names("truncated")])
def test_a_byte_too_many_or_too_few_is_the_only_fault(name: str) -> None:
    good, bad = good_and_bad(name)
    assert abs(len(good) - len(bad)) == 1
    assert good.startswith(bad) or bad.startswith(good)
    with pytest.raises(msgspec.DecodeError):
        tree_of(bad)


@pytest.mark.parametrize("name", [*names("extra_field"), *names("missing_field"), *names("type")])
def test_one_field_is_the_only_fault(name: str) -> None:
    good, bad = (tree_of(message) for message in good_and_bad(name))
    differing = {field for field in good.keys() | bad.keys() if good.get(field) != bad.get(field)}
    assert len(differing) == 1


@pytest.mark.parametrize("name", [*names("length"), *names("count")])
def test_a_promised_length_is_not_there(name: str) -> None:
    assert b"\xff\xff\xff\xff" in good_and_bad(name)[1]
    assert len(good_and_bad(name)[1]) < 100_000


@pytest.mark.parametrize("name", names("oversized_list"))
def test_an_oversized_list_has_one_department_too_many(name: str) -> None:
    tree = tree_of(good_and_bad(name)[1])
    survivors = tree_of(tree["body"])["survivors"] if "body" in tree else tree["survivors"]
    assert len(set(survivors)) == len(survivors) == 1001


def test_the_swapped_envelopes_are_real_ones_for_others() -> None:
    """Each has the length of an envelope, and neither has the hash that the receipt lists for its recipient."""
    good, bad = (tree_of(message) for message in good_and_bad("update_bad_swapped_envelope"))
    assert sorted(good["envelopes"].values()) == sorted(bad["envelopes"].values())
    listed = tree_of(good["receipt"]["body"])["envelope_hashes"]
    sid = bytes.fromhex(ROUND["sid"])

    def hash_of(recipient: str, envelope: bytes) -> bytes:
        parts = [b"cityfed/1/envelope-hash", sid, b"health", recipient.encode()]
        about = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        whole = [len(part).to_bytes(8, "big") + part for part in (about, envelope)]
        return hashlib.sha256(b"".join(whole)).digest()

    assert all(hash_of(name, envelope) == listed[name] for name, envelope in good["envelopes"].items())
    wrong = {name for name, envelope in bad["envelopes"].items() if hash_of(name, envelope) != listed[name]}
    assert wrong == {"police", "transport"}


def test_the_forbidden_reveal_has_both_kinds_of_share_of_one_department() -> None:
    good, bad = (tree_of(message) for message in good_and_bad("reveal_bad_both_kinds"))
    assert all("police" in row for row in bad["pair_shares"].values())
    assert "police" in bad["self_shares"]
    assert "police" not in good["self_shares"]


def test_a_share_beyond_the_field_is_no_number_below_the_prime() -> None:
    share = tree_of(good_and_bad("reveal_bad_share_beyond_the_field")[1])["self_shares"]["health"]
    assert int.from_bytes(share, "little") >= 2**255 - 19
