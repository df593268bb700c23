"""Write ``secagg_bad_v1.json``: messages of the frozen epoch and round, and what must be refused instead of each.

Run ``python tests/vectors/generate_secagg_bad.py`` after ``generate_secagg.py``. Every input follows from
``secagg_v1.json``, so the file comes out the same each time. A case is called ``<message>_bad_<fault>`` and says
which reader refuses it (:func:`read`) and with which reason code.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import msgspec

from shared.codec import decode, encode
from shared.errors import ProtocolError
from shared.identity import MAX_DEPARTMENTS, IdentityKey, Roster, Signed, sign_record
from shared.messages import (
    ConfirmedSet,
    ConfirmRequest,
    KeyAdvert,
    MaskedUpdate,
    Receipt,
    Reveal,
    SealSet,
    UpdateRequest,
    decode_reply,
    decode_request,
)
from shared.roster import open_roster
from shared.secagg.adverts import open_advert, open_seals
from shared.secagg.receipts import check_confirmation, open_receipt
from shared.secagg.server import RoundCollector
from shared.secagg.terms import RoundTerms

FOLDER = Path(__file__).parent
FILE = FOLDER / "secagg_bad_v1.json"
FROZEN: dict[str, Any] = json.loads((FOLDER / "secagg_v1.json").read_text(encoding="utf-8"))
GENERATOR = runpy.run_path(str(FOLDER / "generate_secagg.py"))
NAMES: tuple[str, ...] = GENERATOR["NAMES"]
UPLOADING: tuple[str, ...] = GENERATOR["UPLOADING"]
WHO = "health"

replace = msgspec.structs.replace


def _key(name: str) -> IdentityKey:
    """The identity that the frozen epoch has for a name; any other name gets one in the same way."""
    return IdentityKey.from_private_bytes(GENERATOR["UnsafeEntropy"](f"identity/{name}")(32))


KEYS = {name: _key(name) for name in NAMES}
OFFICE = _key("roster-office")
ROSTER = Roster(city="Riverton", serial=1, members={name: key.public for name, key in KEYS.items()})
TERMS: RoundTerms = decode(bytes.fromhex(FROZEN["terms"]), RoundTerms)


def _signed(part: str, name: str = WHO) -> Signed:
    return Signed(**{field: bytes.fromhex(value) for field, value in FROZEN[part][name].items()})


def _update(name: str = WHO) -> MaskedUpdate:
    return decode(bytes.fromhex(FROZEN["updates"][name]), MaskedUpdate)


ADVERT, SEALS, UPDATE = _signed("adverts"), _signed("seals"), _update()
RECEIPT = UPDATE.receipt
CONFIRMATION: Signed = decode_reply(bytes.fromhex(FROZEN["confirmations"][WHO])).confirmation  # type: ignore[union-attr]  # the frozen one is a confirmation
REVEAL: Reveal = decode_reply(bytes.fromhex(FROZEN["reveals"][WHO]))  # type: ignore[assignment]  # as above
ASK = ConfirmRequest(run=TERMS.run, round=TERMS.round, sid=TERMS.sid(), survivors=UPLOADING)
TRAIN = UpdateRequest(
    run=TERMS.run,
    epoch=1,
    round=TERMS.round,
    participants=NAMES,
    model=bytes(20),
    seals={WHO: SEALS},
)

GOOD: dict[str, tuple[str, bytes]] = {
    "advert": ("advert", encode(ADVERT)),
    "seals": ("seals", encode(SEALS)),
    "receipt": ("receipt", encode(RECEIPT)),
    "confirmation": ("confirmation", encode(CONFIRMATION)),
    "update": ("update", encode(UPDATE)),
    "reveal": ("reveal", encode(REVEAL)),
    "confirm_request": ("request", encode(ASK)),
    "update_request": ("request", encode(TRAIN)),
    "roster": ("roster", encode(sign_record(OFFICE, "roster", ROSTER))),
}


def read(reader: str, message: bytes) -> None:
    """Read a message from ``health`` as the side that gets it would.

    Raises:
        ProtocolError: the message is refused.
    """
    readers: dict[str, Any] = {
        "request": decode_request,
        "advert": lambda raw: open_advert(decode(raw, Signed), sender=WHO, run=TERMS.run, epoch=1, roster=ROSTER),
        "seals": lambda raw: open_seals(
            decode(raw, Signed), sender=WHO, epoch_id=TERMS.epoch_id, cohort=NAMES, roster=ROSTER
        ),
        "receipt": lambda raw: open_receipt(decode(raw, Signed), sender=WHO, terms=TERMS, roster=ROSTER),
        "confirmation": lambda raw: check_confirmation(
            decode(raw, Signed), sender=WHO, sid=TERMS.sid(), survivors=UPLOADING, roster=ROSTER
        ),
        "update": lambda raw: RoundCollector(TERMS, ROSTER).receive_update(WHO, decode_reply(raw)),  # type: ignore[arg-type]  # another message fails on the way
        "reveal": lambda raw: _asking().receive_reveal(WHO, decode_reply(raw)),  # type: ignore[arg-type]  # as above
        "roster": lambda raw: open_roster(decode(raw, Signed), roster_key=OFFICE.public, newest=None),
    }
    readers[reader](message)


def _asking() -> RoundCollector:
    """The coordinator of the frozen round, once it has asked for shares."""
    collector = RoundCollector(TERMS, ROSTER)
    for name in UPLOADING:
        collector.receive_update(name, _update(name))
    for name in collector.confirm_requests():
        reply: Any = decode_reply(bytes.fromhex(FROZEN["confirmations"][name]))
        collector.receive_confirmation(name, reply)
    collector.reveal_requests()
    return collector


def _tree(message: bytes, **changes: Any) -> bytes:
    """A message with other fields; ``None`` takes a field away."""
    tree = msgspec.msgpack.decode(message) | changes
    return msgspec.msgpack.encode({name: value for name, value in tree.items() if value is not None})


def _resigned(label: str, signed: Signed, record_type: Any, **changes: Any) -> bytes:
    """What ``health`` could have signed instead."""
    return encode(sign_record(KEYS[WHO], label, replace(decode(signed.body, record_type), **changes)))


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


SIGNED: dict[str, tuple[str, Signed, Any]] = {
    "advert": ("key-advert", ADVERT, KeyAdvert),
    "seals": ("seals", SEALS, SealSet),
    "receipt": ("receipt", RECEIPT, Receipt),
    "confirmation": ("confirmation", CONFIRMATION, ConfirmedSet),
}


def _bad_signatures() -> dict[str, tuple[bytes, str]]:
    """Faults that no signed message gets through with."""
    cases: dict[str, tuple[bytes, str]] = {}
    for name, (label, signed, record_type) in SIGNED.items():
        record = decode(signed.body, record_type)
        body = _tree(signed.body, extra=1)
        cases |= {
            f"{name}_bad_signature": (
                encode(replace(signed, signature=_flipped(signed.signature))),
                "signature-invalid",
            ),
            f"{name}_bad_body": (
                encode(replace(signed, body=signed.body[:-1] + bytes([signed.body[-1] ^ 1]))),
                "signature-invalid",
            ),
            f"{name}_bad_label": (encode(sign_record(KEYS[WHO], f"{label}s", record)), "signature-invalid"),
            f"{name}_bad_signer": (encode(sign_record(KEYS["police"], label, record)), "signature-invalid"),
            f"{name}_bad_unknown_field": (
                encode(Signed(body=body, signature=KEYS[WHO].sign(label, body))),
                "message-malformed",
            ),
        }
    return cases


def _bad_contents() -> dict[str, tuple[bytes, str]]:
    """Validly signed, and wrong."""
    receipt: Receipt = decode(RECEIPT.body, Receipt)
    seals: SealSet = decode(SEALS.body, SealSet)
    crowd = tuple(f"d-{number}" for number in range(MAX_DEPARTMENTS + 1))
    swapped = UPDATE.envelopes | {"police": UPDATE.envelopes["transport"], "transport": UPDATE.envelopes["police"]}
    return {
        "advert_bad_version": (_resigned("key-advert", ADVERT, KeyAdvert, version=2), "version-unsupported"),
        "advert_bad_epoch": (_resigned("key-advert", ADVERT, KeyAdvert, epoch=2), "advert-foreign"),
        "advert_bad_roster": (_resigned("key-advert", ADVERT, KeyAdvert, roster_hash=bytes(32)), "roster-mismatch"),
        "advert_bad_short_key": (_resigned("key-advert", ADVERT, KeyAdvert, hpke_key=bytes(1215)), "message-malformed"),
        "seals_bad_epoch": (_resigned("seals", SEALS, SealSet, epoch_id=bytes(32)), "epoch-mismatch"),
        "seals_bad_missing_peer": (
            _resigned("seals", SEALS, SealSet, seals={"police": seals.seals["police"]}),
            "seals-incomplete",
        ),
        "seals_bad_long_seal": (
            _resigned("seals", SEALS, SealSet, seals=seals.seals | {"police": bytes(1169)}),
            "message-malformed",
        ),
        "receipt_bad_sid": (_resigned("receipt", RECEIPT, Receipt, sid=bytes(32)), "sid-mismatch"),
        "receipt_bad_sender": (_resigned("receipt", RECEIPT, Receipt, department="police"), "receipt-foreign"),
        "receipt_bad_own_commitment": (
            _resigned("receipt", RECEIPT, Receipt, pair_commitments=receipt.pair_commitments | {WHO: bytes(32)}),
            "receipt-incomplete",
        ),
        "receipt_bad_short_hash": (_resigned("receipt", RECEIPT, Receipt, ledger_head=bytes(31)), "message-malformed"),
        "confirmation_bad_survivors": (
            _resigned("confirmation", CONFIRMATION, ConfirmedSet, survivors=NAMES),
            "survivors-changed",
        ),
        "confirmation_bad_oversized_list": (
            _resigned("confirmation", CONFIRMATION, ConfirmedSet, survivors=crowd),
            "message-malformed",
        ),
        "update_bad_swapped_envelope": (encode(replace(UPDATE, envelopes=swapped)), "envelope-mismatch"),
        "update_bad_vector": (encode(replace(UPDATE, words=memoryview(bytes(20)))), "vector-digest-mismatch"),
        "update_bad_vector_length": (encode(replace(UPDATE, words=UPDATE.words[:-4])), "vector-length"),
        "update_bad_receipt": (encode(replace(UPDATE, receipt=_update("transport").receipt)), "signature-invalid"),
        "reveal_bad_both_kinds": (
            encode(replace(REVEAL, self_shares=REVEAL.self_shares | {"police": bytes(32)})),
            "reveal-incomplete",
        ),
        "reveal_bad_share_beyond_the_field": (
            encode(replace(REVEAL, self_shares=REVEAL.self_shares | {WHO: b"\xff" * 32})),
            "share-malformed",
        ),
        "reveal_bad_long_share": (
            encode(replace(REVEAL, self_shares=REVEAL.self_shares | {WHO: bytes(33)})),
            "message-malformed",
        ),
        "confirm_request_bad_oversized_list": (encode(replace(ASK, survivors=crowd)), "message-malformed"),
        "roster_bad_shared_key": (_bad_roster(members={"health": bytes(32), "police": bytes(32)}), "message-malformed"),
        "roster_bad_serial": (_bad_roster(serial=0), "message-malformed"),
        "roster_bad_name": (_bad_roster(members={"Health": bytes(32)}), "message-malformed"),
    }


def _bad_roster(**changes: Any) -> bytes:
    """A roster that cannot be made, with the office's signature."""
    body = _tree(encode(ROSTER), **changes)
    return encode(Signed(body=body, signature=OFFICE.sign("roster", body)))


def _bad_bytes() -> dict[str, tuple[bytes, str]]:
    """Faults of form, in every message."""
    cases: dict[str, tuple[bytes, str]] = {}
    for name, (_, good) in GOOD.items():
        tree = msgspec.msgpack.decode(good)
        last = list(tree)[-1]
        cases |= {
            f"{name}_bad_trailing_byte": (good + b"\x00", "message-malformed"),
            f"{name}_bad_truncated": (good[:-1], "message-malformed"),
            f"{name}_bad_empty": (b"", "message-malformed"),
            f"{name}_bad_extra_field": (_tree(good, extra=1), "message-malformed"),
            f"{name}_bad_missing_field": (_tree(good, **{last: None}), "message-malformed"),
            f"{name}_bad_type": (_tree(good, **{last: 1.5}), "message-malformed"),
            # 4 GiB are promised and nothing follows.
            f"{name}_bad_length": (
                good[: good.index(last.encode()) + len(last)] + b"\xc6\xff\xff\xff\xff",
                "message-malformed",
            ),
            f"{name}_bad_count": (b"\xdf\xff\xff\xff\xff" + good[1:], "message-malformed"),
        }
    return cases


def make() -> dict[str, Any]:
    """Return the whole file."""
    bad = _bad_signatures() | _bad_contents() | _bad_bytes()
    return {
        "good": {name: {"reader": reader, "message": good.hex()} for name, (reader, good) in GOOD.items()},
        "bad": {
            name: {"reader": GOOD[name.partition("_bad_")[0]][0], "code": code, "message": message.hex()}
            for name, (message, code) in bad.items()
        },
    }


def code_of(reader: str, message: bytes) -> str:
    """Return the reason code with which a message is refused; empty when it is not."""
    try:
        read(reader, message)
    except ProtocolError as error:
        return error.code
    return ""


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
