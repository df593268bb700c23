"""Every reader of bytes from outside, with real inputs to start from. Whatever comes in, only a CityFedError comes out."""

from __future__ import annotations

import datetime as dt
import runpy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
import tomli_w

from clients import records as client_records
from clients.binding import Binding, Declaration, declaration_path, load_declaration
from clients.config import ClientConfig
from policies.load import complete, department_policy, parse_policy
from server import records as server_records
from server.release import write_model
from shared.attack_audit import ATTACK_AUDIT_LABEL, AttackAudit, AuditedClaim, open_attack_audits
from shared.audit import ReceiptLine, read_receipt_lines, read_receipts, receipt_line, verify_line, view_entries
from shared.codec import Record, decode, encode, load_toml
from shared.contracts.contract import agreement_hash, load_contract
from shared.errors import CityFedError, JournalError
from shared.identity import IdentityKey, Roster, Signed, fingerprint, sign_record
from shared.journal import EntryKind, Journal, JournalEntry, verify_journal
from shared.messages import (
    ClosedRound,
    CloseReply,
    CloseRound,
    HeadReceipt,
    OpenEpoch,
    Refusal,
    RevealRequest,
    SealRequest,
    decode_reply,
    decode_request,
)
from shared.model_file import read_model
from shared.parameters import vector_from_bytes
from shared.plan import Plan, accept_plan
from shared.privacy.accountant import event_of
from shared.privacy.charges import Budgets, PlanCharge
from shared.privacy.ledger import AttemptBurned, ChargeReserved, ChargeRestored, LedgerClosed, RunSettled
from shared.privacy.statement import privacy_statement
from shared.release import RELEASE_LABEL, ModelRelease, open_release
from shared.roster import KeyEndorsement, endorse_key, open_roster
from shared.secagg.shamir import share_from_bytes
from shared.secagg.terms import RoundTerms
from shared.shelf import Item, Listing
from shared.tasks.encoder_files import read_config
from shared.tasks.features import FeatureCache
from simulation.scenario import Scenario
from tests.city import MESSAGES
from tests.mutations import Mutation, mutate_bytes, mutate_safetensors, mutate_text, mutate_tree
from tests.server.small_plan import LAYOUT, PRIVACY, plan_with

ROOT = Path(__file__).parents[1]
FROZEN = runpy.run_path(str(ROOT / "tests" / "vectors" / "generate_secagg_bad.py"))
NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
NAMES, TERMS, ROSTER, KEYS, OFFICE = (FROZEN[name] for name in ("NAMES", "TERMS", "ROSTER", "KEYS", "OFFICE"))
PLAN = plan_with(dict.fromkeys(NAMES, 1.0))


@dataclass(frozen=True)
class Decoder:
    """One reader.

    Attributes:
        read: takes bytes.
        seeds: inputs that it reads without complaint.
        mutate: how an input is changed.
        share: how many inputs of a million it gets; slow readers get fewer.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    mutate: Mutation = field(default=mutate_tree, repr=False)
    share: int = 20_000

    def refuses(self, data: bytes) -> bool:
        """Read; anything but a CityFedError falls through."""
        try:
            self.read(data)
        except CityFedError:
            return True
        return False

    def inputs(self, random: Random) -> Iterator[bytes]:
        """Yield mutated inputs without end."""
        while True:
            yield self.mutate(random.choice(self.seeds), random)


def every_decoder(folder: Path) -> dict[str, Decoder]:
    """Return all readers by name; those that read files use ``folder``."""
    return {
        "request": Decoder(decode_request, tuple(map(encode, _requests())), share=150_000),
        "reply": Decoder(decode_reply, tuple(_replies()), share=150_000),
        **{record.__name__: _record(record, seed) for record, seed in _bodies()},
        **{f"{name} signed": decoder for name, decoder in _signed()},
        **{f"journal {record.__name__}": _record(record, seed, JournalError) for record, seed in _journal_bodies()},
        **_vectors(),
        **_texts(),
        **_files(folder),
    }


def _record(record: type[Any], seed: Record, error: type[CityFedError] | None = None) -> Decoder:
    """A record by itself, and what is computed from it."""
    options: dict[str, Any] = {} if error is None else {"error": error}
    return Decoder(lambda data: _use(decode(data, record, **options)), (encode(seed),))


def _use(value: object) -> None:
    """Everything that a decoded record can be asked."""
    if isinstance(value, Plan):
        value.digest(), value.run_id(), value.cohort, value.attempts, value.layout.total_size
        value.aggregation.admissible_for(value.roster_size)
    elif isinstance(value, Roster):
        value.digest(), value.ordered()
    elif isinstance(value, RoundTerms):
        value.sid(), value.points()
    repr(value)
    if isinstance(value, msgspec.Struct):
        encode(value)


# --- messages ----------------------------------------------------------------------------------------------


def _good(name: str) -> bytes:
    message: bytes = FROZEN["GOOD"][name][1]
    return message


def _frozen_signed(name: str) -> Signed:
    return decode(_good(name), Signed)


def _requests() -> Iterator[Record]:
    """One of each request."""
    yield decode_request(_good("confirm_request"))
    yield decode_request(_good("update_request"))
    plan, roster = sign_record(OFFICE, "plan", PLAN), _frozen_signed("roster")
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
        confirmations={"health": _frozen_signed("confirmation")},
        envelopes={name: update.envelopes["health"] for name, update in uploads.items() if name != "health"},
    )
    yield CloseRound(closed=sign_record(OFFICE, "round-closed", _closed()))


def _replies() -> Iterator[bytes]:
    """One of each reply."""
    yield from (_good("update"), _good("reveal"))
    yield msgspec.msgpack.encode({"type": "AdvertReply", "advert": _frozen_signed("advert")})
    yield msgspec.msgpack.encode({"type": "SealReply", "seals": _frozen_signed("seals")})
    yield msgspec.msgpack.encode({"type": "ConfirmReply", "confirmation": _frozen_signed("confirmation")})
    yield encode(CloseReply(receipt=sign_record(KEYS["health"], "head-receipt", _head_receipt())))
    yield encode(Refusal(status="refused"))


def _closed() -> ClosedRound:
    hashes = dict.fromkeys(("run", "sid", "model_hash", "receipts_hash", "journal_head"), bytes(32))
    return ClosedRound(**hashes, round=1, survivors=NAMES, final=True, journal_sequence=3)


def _release() -> ModelRelease:
    return ModelRelease(
        run=PLAN.run_id(),
        plan_digest=PLAN.digest(),
        layout_digest=PLAN.layout.digest(),
        initial_model_sha256=PLAN.initial_model_sha256,
        base_weights_sha256=PLAN.model.base_weights_sha256,
        contributors=(3,),
        model_hash=bytes(32),
        file_sha256="0" * 64,
        card_sha256="0" * 64,
        privacy=privacy_statement(PLAN),
        terms=PLAN.release,
        audits=(sign_record(KEYS["health"], ATTACK_AUDIT_LABEL, _attack_audit()),),
    )


def _attack_audit() -> AttackAudit:
    claims = tuple(
        AuditedClaim(name=name, epsilon=epsilon, lower_bound=0.3, ceiling=6.0)
        for name, epsilon in (("reference", 1.0), ("plan", PLAN.privacy.budget.epsilon))
    )
    return AttackAudit(
        department="health", plan_digest=PLAN.digest(), package_digest=PLAN.package_digest, claims=claims, failures=()
    )


def _head_receipt() -> HeadReceipt:
    return HeadReceipt(department="health", closed_hash=bytes(32), journal_sequence=3, journal_head=bytes(32))


def _bodies() -> Iterator[tuple[type[Any], Record]]:
    """What is signed, and what stands on its own."""
    for name, (_, signed, record) in FROZEN["SIGNED"].items():
        assert name
        yield record, decode(signed.body, record)
    endorsement = endorse_key(OFFICE, city=ROSTER.city, department="health", key=bytes(32))
    yield Roster, msgspec.structs.replace(ROSTER, endorsements={"health": endorsement})
    yield KeyEndorsement, KeyEndorsement(city="Riverton", department="health", key=bytes(32))
    yield Plan, PLAN
    yield RoundTerms, TERMS
    yield ClosedRound, _closed()
    yield HeadReceipt, _head_receipt()
    yield Signed, _frozen_signed("receipt")
    yield Item, Item(kind="plan", name=PLAN.digest().hex())
    yield Listing, Listing(roster=True, plans=(PLAN.digest().hex(),), models=(PLAN.run_id().hex(),))


def _signed() -> Iterator[tuple[str, Decoder]]:
    """Bodies that are changed and then signed again, so that what lies behind the signature is reached."""
    readers = {name: (label, signed, KEYS["health"]) for name, (label, signed, _) in FROZEN["SIGNED"].items()}
    readers["roster"] = ("roster", _frozen_signed("roster"), OFFICE)
    for name, (label, signed, key) in readers.items():
        yield name, Decoder(_resigning(name, label, key), (signed.body,))
    yield (
        "plan",
        Decoder(
            lambda body: _use(accept_plan(Signed(body=body, signature=OFFICE.sign("plan", body)), OFFICE.public)),
            (encode(PLAN),),
        ),
    )
    yield (
        "model release",
        Decoder(
            lambda body: open_release(
                Signed(body=body, signature=OFFICE.sign(RELEASE_LABEL, body)), key=OFFICE.public, plan=PLAN
            ),
            (encode(_release()),),
        ),
    )
    yield (
        "attack audit",
        Decoder(
            lambda body: open_attack_audits(
                [Signed(body=body, signature=KEYS["health"].sign(ATTACK_AUDIT_LABEL, body))],
                plan=PLAN,
                keys={"health": KEYS["health"].public},
            ),
            (encode(_attack_audit()),),
        ),
    )
    yield "update", Decoder(lambda data: FROZEN["read"]("update", data), (_good("update"),))
    yield "reveal", Decoder(lambda data: FROZEN["read"]("reveal", data), (_good("reveal"),), share=2_000)
    yield (
        "foreign roster",
        Decoder(
            lambda data: open_roster(decode(data, Signed), roster_key=OFFICE.public, newest=ROSTER), (_good("roster"),)
        ),
    )


def _resigning(reader: str, label: str, key: IdentityKey) -> Callable[[bytes], None]:
    """Sign the body and read it as the side that gets it would."""
    return lambda body: FROZEN["read"](reader, encode(Signed(body=body, signature=key.sign(label, body))))


# --- journals ----------------------------------------------------------------------------------------------


def _journal_bodies() -> Iterator[tuple[type[Record], Record]]:
    """The body of every entry kind."""
    run, closed = bytes(32), sign_record(OFFICE, "round-closed", _closed())
    charge = PlanCharge(
        run=run,
        dataset="reports",
        unit="record",
        event=event_of(PRIVACY, 1),
        attempts=3,
        delta=1e-4,
        accountant=PRIVACY.accountant,
        public_size=100,
    )
    budgets = Budgets(run=PRIVACY.budget, lifetime=PRIVACY.budget)
    hashes = {"request_hash": bytes(32), "reply_hash": bytes(32)}
    bodies: list[Record] = [
        client_records.RosterSeen(roster=_frozen_signed("roster")),
        client_records.KeyApproved(department="health", key=bytes(32), means="fingerprint"),
        client_records.EpochOpened(run=run, epoch=1),
        client_records.StepAnswered(run=run, round=1, step="update", **hashes),
        client_records.RoundFinished(run=run, round=1, closed=closed),
        client_records.HeadsSeen(heads={"health": 3}, adverts={"health": _frozen_signed("advert")}),
        client_records.JournalRestored(sequence=3, newest=9),
        client_records.Refused(step="update", status="refused", code="sid-mismatch", message="No."),
        client_records.Approved(digest=run, person="ann", role="steward", author=False),
        server_records.RunOpened(run=run, plan_digest=run, cohort=NAMES),
        server_records.EpochReady(run=run, epoch=1, members=NAMES, adverts={"health": _frozen_signed("advert")}),
        server_records.DepartmentMissing(run=run, round=1, step="update", department="health", status="no-answer"),
        server_records.RoundDone(
            run=run, round=1, sid=run, survivors=NAMES, model_hash=run, receipts={"health": _frozen_signed("receipt")}
        ),
        server_records.Countersigned(run=run, round=1, receipts={"health": _frozen_signed("receipt")}),
        server_records.RoundFailed(run=run, round=1, code="below-threshold", message="Too few."),
        server_records.ModelReleased(
            run=run, file_sha256="0" * 64, recipients=NAMES, audited_by=("health",), approved_by="ann"
        ),
        server_records.RunEnded(run=run, status="completed", rounds=2),
        ChargeReserved(charge=charge, budgets=budgets, closes_lifetime=False),
        AttemptBurned(run=run, round=1),
        RunSettled(run=run),
        ChargeRestored(charge=charge),
        LedgerClosed(reason="restore-plan-unknown"),
    ]
    yield from ((type(body), body) for body in bodies)


# --- numbers, texts, files ---------------------------------------------------------------------------------


def _vectors() -> dict[str, Decoder]:
    model = np.ones(LAYOUT.size, dtype="<f4").tobytes()
    return {
        "model vector": Decoder(lambda data: vector_from_bytes(data, LAYOUT), (model,), mutate_bytes),
        "share": Decoder(share_from_bytes, (bytes(32), b"\x7f" * 32), mutate_bytes),
    }


def _texts() -> dict[str, Decoder]:
    """TOML and YAML."""
    key = bytes(32).hex()
    config = ClientConfig(
        department="health", roster_key=key, authority_key=key, policy_owner_key=key, members={"health": key}
    )
    policy = complete(
        department_policy("health"),
        dataset="reports",
        contract_hash="0" * 64,
        plan_key_fingerprint=fingerprint(OFFICE.public),
        roster_key_fingerprint=fingerprint(OFFICE.public),
    )

    def toml(record: type[Any]) -> Callable[[bytes], object]:
        return lambda data: load_toml(data.decode(errors="replace"), record, where="the file")

    scenario = (ROOT / "server" / "scenarios" / "emergency-triage.toml").read_bytes()
    contract = (ROOT / "shared" / "contracts" / "health" / "report-1.0.0.odcs.yaml").read_bytes()
    return {
        "client.toml": Decoder(
            toml(ClientConfig), (tomli_w.dumps(msgspec.to_builtins(config)).encode(),), mutate_text, share=8_000
        ),
        "policy": Decoder(lambda data: parse_policy(data, "the policy"), (policy.encode(),), mutate_text, share=8_000),
        "binding": Decoder(toml(Binding), ((MESSAGES / "health.toml").read_bytes(),), mutate_text, share=8_000),
        "scenario": Decoder(toml(Scenario), (scenario,), mutate_text, share=8_000),
        "contract": Decoder(
            lambda data: agreement_hash(load_contract(data.decode(errors="replace"))),
            (contract,),
            mutate_text,
            share=4_000,
        ),
    }


def _files(folder: Path) -> dict[str, Decoder]:
    """What is read from a file by its path."""
    folder.mkdir(parents=True, exist_ok=True)

    def through(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = folder / name

        def written(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return written

    cached = safetensors.numpy.save({"keys": np.zeros((2, 32), np.uint8), "features": np.ones((2, 3), np.float32)})
    told = receipt_line("head-receipt", sign_record(KEYS["health"], "head-receipt", _head_receipt()), run=bytes(32))
    signed = msgspec.json.encode(told) + b"\n"
    lines = signed + msgspec.json.encode(ReceiptLine(owner="health", sequence=4, digest="")) + b"\n"
    return {
        "model file": Decoder(
            through("model.safetensors", lambda path: read_model(path, LAYOUT)),
            (_model_file(folder / "seed.safetensors"),),
            mutate_safetensors,
        ),
        "feature cache": Decoder(
            through("features.safetensors", lambda path: FeatureCache(path).features([bytes(32)], _no_features)),
            (cached,),
            mutate_safetensors,
        ),
        "receipts": Decoder(through("receipts", lambda path: read_receipts(path, "health")), (lines,), mutate_text),
        "signed receipts": Decoder(through("signed-receipts", _verify_receipts), (signed,), mutate_text),
        "declaration": Decoder(
            through(declaration_path(folder / "health.toml").name, lambda _: load_declaration(folder / "health.toml")),
            (msgspec.json.format(msgspec.json.encode(_declaration())),),
            mutate_text,
        ),
        "encoder config": Decoder(
            through("config.json", lambda path: read_config(path.parent)), (_ENCODER.encode(),), mutate_text
        ),
        "journal view": Decoder(
            lambda body: list(view_entries(iter([_entry(body)]))), (encode(_closed()), encode(PLAN))
        ),
        "journal file": Decoder(
            through("read.sqlite", lambda path: verify_journal(path, owner="health")),
            (_journal_file(folder / "seed.sqlite"),),
            mutate_bytes,
            share=1_000,
        ),
    }


def _verify_receipts(path: Path) -> None:
    """Read receipts and verify each, as a restoration does."""
    for line in read_receipt_lines(path):
        verify_line(line, [KEYS["health"].public])


_ENCODER = """{
 "model_type": "bert", "vocab_size": 30, "hidden_size": 8,
 "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
 "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 16,
 "type_vocab_size": 2, "pad_token_id": 0
}"""


def _no_features(positions: Sequence[int]) -> Any:
    """Whoever is asked was not found in the file."""
    return np.zeros((len(positions), 3), dtype=np.float32)


def _declaration() -> Declaration:
    return Declaration(
        dataset="reports",
        contract_hash="0" * 64,
        binding_digest="0" * 64,
        public_size=90,
        rows_checked=96,
        rows_usable=93,
        unit="record",
        units=93,
        failures=(),
        checked_at=NOW,
    )


def _model_file(path: Path) -> bytes:
    write_model(path, np.ones(LAYOUT.size, dtype=np.float32), PLAN)
    return path.read_bytes()


def _journal_file(path: Path) -> bytes:
    with Journal.open(path, owner="health") as journal:
        for _ in range(3):
            journal.append(
                EntryKind.COUNTERSIGNED, server_records.RunEnded(run=bytes(32), status="", rounds=1), now=NOW
            )
    return path.read_bytes()


def _entry(body: bytes) -> JournalEntry:
    return JournalEntry(
        sequence=1, kind="decision", time="", salt=bytes(16), body=body, previous=bytes(32), digest=bytes(32)
    )
