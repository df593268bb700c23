"""The released model of a run: what the authority signs about it, and what everybody checks before using it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shared.attack_audit import Audits
from shared.codec import Hash, Number, Record
from shared.errors import ModelError, ProtocolError
from shared.identity import Signed, open_signed
from shared.model_file import file_digest, model_of
from shared.parameters import Label, Vector, model_hash
from shared.plan import Plan, ReleaseTerms
from shared.privacy.statement import PrivacyStatement

RELEASE_LABEL = "model-release"
RECORD_FILE = "model.json"
CARD_FILE = "MODEL_CARD.md"


class ModelRelease(Record, frozen=True, kw_only=True):
    """What the authority says about a run's model; signed with the plan key under the label ``model-release``.

    Attributes:
        contributors: how many departments are in the sum of each finished round, in order.
        model_hash: of the vector, as in the signed account of the last round.
        file_sha256: of the safetensors file, in hex.
        card_sha256: of the card's file, in hex.
        terms: who receives it, and what there has to be, as in the plan that the departments approved.
        audits: attack audits that departments signed.
        approved_by: who at the authority released it; empty if nobody's name was asked for.
    """

    run: Hash
    plan_digest: Hash
    layout_digest: Hash
    initial_model_sha256: Label
    base_weights_sha256: Label
    contributors: Annotated[tuple[Number, ...], Meta(max_length=10_000)]
    model_hash: Hash
    file_sha256: Label
    card_sha256: Label
    privacy: PrivacyStatement
    terms: ReleaseTerms
    audits: Audits = ()
    approved_by: Label = ""


def open_release(signed: Signed, *, key: bytes, plan: Plan) -> ModelRelease:
    """Verify what was signed about the model of a plan.

    Args:
        signed: the record.
        key: the authority's plan key.
        plan: the plan that the model has to come from.

    Raises:
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``release-foreign``.
    """
    release = open_signed(key, RELEASE_LABEL, signed, ModelRelease)
    digests = (release.run, release.plan_digest, release.layout_digest, release.initial_model_sha256)
    said = (*digests, release.base_weights_sha256, release.terms, len(release.contributors))
    known = (plan.run_id(), plan.digest(), plan.layout.digest(), plan.initial_model_sha256)
    if said != (*known, plan.model.base_weights_sha256, plan.release, plan.rounds):
        raise ProtocolError("release-foreign", f"The signed record is not about the model of the plan {plan.name}.")
    return release


def require_card(data: bytes, release: ModelRelease, *, where: str) -> None:
    """Refuse a card that is not the one that was signed.

    Raises:
        ModelError: ``card-changed``.
    """
    if file_digest(data) != release.card_sha256:
        raise ModelError("card-changed", f"{where} is not the card that the authority signed.")


def released_vector(data: bytes, release: ModelRelease, plan: Plan, *, where: str) -> Vector:
    """Return the model from the bytes of its file, which must be the one that was signed.

    Raises:
        ModelError: ``model-changed``, ``model-corrupt``, then those of :meth:`Layout.flatten` and :meth:`Layout.check`.
    """
    if file_digest(data) != release.file_sha256:
        raise ModelError("model-changed", f"{where} is not the file that the authority signed.")
    vector = model_of(data, plan.layout, where=where)
    if model_hash(vector) != release.model_hash:
        raise ModelError("model-changed", f"{where} does not hold the model that the authority signed.")
    return vector
