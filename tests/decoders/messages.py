"""Real messages and what stands in them: the inputs that readers of the protocol start from."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from shared.codec import Record, decode, encode
from shared.identity import Roster, Signed, sign_record
from shared.messages import (
    ClosedRound,
    CloseReply,
    CloseRound,
    HeadReceipt,
    OpenEpoch,
    Refusal,
    RevealRequest,
    SealRequest,
    decode_request,
)
from shared.plan import Plan
from shared.roster import KeyEndorsement, endorse_key
from shared.secagg.terms import RoundTerms
from shared.shelf import Item, Listing
from tests.server.small_plan import plan_with

ROOT = Path(__file__).parents[2]
FROZEN = runpy.run_path(str(ROOT / "tests" / "vectors" / "generate_secagg_bad.py"))
NAMES, TERMS, ROSTER, KEYS, OFFICE = (FROZEN[name] for name in ("NAMES", "TERMS", "ROSTER", "KEYS", "OFFICE"))
PLAN = plan_with(dict.fromkeys(NAMES, 1.0))


def good(name: str) -> bytes:
    message: bytes = FROZEN["GOOD"][name][1]
    return message


def frozen_signed(name: str) -> Signed:
    return decode(good(name), Signed)


def requests() -> Iterator[Record]:
    """One of each request."""
    yield decode_request(good("confirm_request"))
    yield decode_request(good("update_request"))
    plan, roster = sign_record(OFFICE, "plan", PLAN), frozen_signed("roster")
    yield OpenEpoch(run=PLAN.run_id(), epoch=1, cohort=NAMES, plan=plan, roster=roster)
    adverts = {name: FROZEN["_signed"]("adverts", name) for name in NAMES}
    yield SealRequest(run=TERMS.run, epoch=1, adverts=adverts)
    uploads = {name: FROZEN["_update"](name) for name in FROZEN["UPLOADING"]}
    yield RevealRequest(
        run=TERMS.run,
        round=TERMS.round,
        sid=TERMS.sid(),
        survivors=FROZEN["UPLOADING"],
        receipts={name: update.receipt for name, update in uploads.items()},
        confirmations={"health": frozen_signed("confirmation")},
        envelopes={name: update.envelopes["health"] for name, update in uploads.items() if name != "health"},
    )
    yield CloseRound(closed=sign_record(OFFICE, "round-closed", closed_round()))


def replies() -> Iterator[bytes]:
    """One of each reply."""
    yield from (good("update"), good("reveal"))
    yield msgspec.msgpack.encode({"type": "AdvertReply", "advert": frozen_signed("advert")})
    yield msgspec.msgpack.encode({"type": "SealReply", "seals": frozen_signed("seals")})
    yield msgspec.msgpack.encode({"type": "ConfirmReply", "confirmation": frozen_signed("confirmation")})
    yield encode(CloseReply(receipt=sign_record(KEYS["health"], "head-receipt", head_receipt())))
    yield encode(Refusal(status="refused"))


def closed_round() -> ClosedRound:
    hashes = dict.fromkeys(("run", "sid", "model_hash", "receipts_hash", "journal_head"), bytes(32))
    return ClosedRound(**hashes, round=1, survivors=NAMES, final=True, journal_sequence=3)


def head_receipt() -> HeadReceipt:
    return HeadReceipt(department="health", closed_hash=bytes(32), journal_sequence=3, journal_head=bytes(32))


def bodies() -> Iterator[tuple[type[Any], Record]]:
    """What is signed, and what stands on its own."""
    for name, (_, signed, record) in FROZEN["SIGNED"].items():
        assert name
        yield record, decode(signed.body, record)
    endorsement = endorse_key(OFFICE, city=ROSTER.city, department="health", key=bytes(32))
    yield Roster, msgspec.structs.replace(ROSTER, endorsements={"health": endorsement})
    yield KeyEndorsement, KeyEndorsement(city="Riverton", department="health", key=bytes(32))
    yield Plan, PLAN
    yield RoundTerms, TERMS
    yield ClosedRound, closed_round()
    yield HeadReceipt, head_receipt()
    yield Signed, frozen_signed("receipt")
    yield Item, Item(kind="plan", name=PLAN.digest().hex())
    yield Listing, Listing(roster=True, plans=(PLAN.digest().hex(),), models=(PLAN.run_id().hex(),))
