"""Readers of what is signed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shared.attack_audit import ATTACK_AUDIT_LABEL, AttackAudit, AuditedClaim, open_attack_audits
from shared.codec import decode, encode
from shared.identity import IdentityKey, Signed, sign_record
from shared.plan import accept_plan
from shared.privacy.statement import privacy_statement
from shared.release import RELEASE_LABEL, ModelRelease, open_release
from shared.roster import open_roster
from tests.decoders.decoder import Decoder, use
from tests.decoders.messages import FROZEN, KEYS, OFFICE, PLAN, ROSTER, frozen_signed, good


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


def signed_decoders() -> Iterator[tuple[str, Decoder]]:
    """Bodies that are changed and then signed again, so that what lies behind the signature is reached."""
    readers = {name: (label, signed, KEYS["health"]) for name, (label, signed, _) in FROZEN["SIGNED"].items()}
    readers["roster"] = ("roster", frozen_signed("roster"), OFFICE)
    for name, (label, signed, key) in readers.items():
        yield name, Decoder(_resigning(name, label, key), (signed.body,))
    yield (
        "plan",
        Decoder(
            lambda body: use(accept_plan(Signed(body=body, signature=OFFICE.sign("plan", body)), OFFICE.public)),
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
    yield "update", Decoder(lambda data: FROZEN["read"]("update", data), (good("update"),))
    yield "reveal", Decoder(lambda data: FROZEN["read"]("reveal", data), (good("reveal"),), share=2_000)
    yield (
        "foreign roster",
        Decoder(
            lambda data: open_roster(decode(data, Signed), roster_key=OFFICE.public, newest=ROSTER), (good("roster"),)
        ),
    )


def _resigning(reader: str, label: str, key: IdentityKey) -> Callable[[bytes], None]:
    """Sign the body and read it as the side that gets it would."""
    return lambda body: FROZEN["read"](reader, encode(Signed(body=body, signature=key.sign(label, body))))
