"""What a lying coordinator tries with a department in a round; each try ends in its own refusal."""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from shared.identity import IdentityKey, Signed, sign_record
from shared.messages import ConfirmedSet, Receipt, RevealRequest
from shared.secagg.receipts import CONFIRMATION_LABEL, RECEIPT_LABEL, envelope_hash
from tests.refusals import code_of
from tests.shared.secagg.bent_bytes import flip

replace = msgspec.structs.replace


# --- mask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "code"), [(np.nan, "update-not-finite"), (2.0, "update-beyond-bound")])
def test_a_bad_update_is_refused_and_uses_the_round_up(city_of: Any, story_of: Any, value: float, code: str) -> None:
    story = story_of(city_of(3))
    vector = story.vectors["health"].copy()
    vector[-1] = value
    assert code_of(lambda: story.city.mask(story.keyed["health"], "health", vector)) == code
    with pytest.raises(RuntimeError, match="used already"):
        story.upload("health")


def test_an_update_is_never_masked_twice(full: Any) -> None:
    with pytest.raises(RuntimeError, match="used already"):
        full.upload("health")


def test_the_callers_mistakes_use_nothing_up(city_of: Any, story_of: Any) -> None:
    story = story_of(city_of(3))
    keyed, key, vector = story.keyed["health"], story.city.keys["health"], story.vectors["health"]
    good: dict[str, Any] = {"identity": key, "ledger_sequence": 1, "ledger_head": bytes(32)}
    for bad_vector, changes in (
        (vector[:-1], {}),
        (vector.astype(np.float64), {}),
        (np.repeat(vector, 2)[::2], {}),
        (vector, {"identity": IdentityKey.generate()}),
        (vector, {"ledger_head": b""}),
        (vector, {"out": np.zeros(len(vector), dtype=np.int64)}),
        (vector, {"out": np.zeros(len(vector) + 1, dtype=np.uint32)}),
        (vector, {"out": np.zeros(2 * len(vector), dtype=np.uint32)[::2]}),
        (vector[:-1], {"out": np.zeros(len(vector) - 1, dtype=np.uint32)}),
    ):
        with pytest.raises(ValueError):
            keyed.mask(bad_vector, **(good | changes))
    story.upload("health")


# --- confirm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": b"x" * 32}, "round-mismatch"),
        ({"round": 2}, "round-mismatch"),
        ({"sid": b"x" * 32}, "sid-mismatch"),
        ({"survivors": ("environment", "environment", "health", "parks", "transport")}, "survivor-repeated"),
        ({"survivors": ("environment", "health", "parks", "sybil")}, "survivor-foreign"),
        ({"survivors": ("health", "environment", "parks", "transport")}, "survivors-unordered"),
        ({"survivors": ("environment", "health", "parks")}, "below-min-contributors"),
        ({"survivors": ("environment", "parks", "police", "transport")}, "not-a-survivor"),
        ({"survivors": ("environment", "health", "parks", "police", "transport")}, "nobody-dropped"),
    ],
)
def test_a_bad_confirm_request_is_refused(partial: Any, changes: dict[str, Any], code: str) -> None:
    request = partial.collector.confirm_requests()["health"]
    assert code_of(lambda: partial.masked["health"].confirm(replace(request, **changes))) == code
    partial.masked["health"].confirm(request)


def test_two_survivor_lists_are_never_confirmed(partial: Any) -> None:
    request = partial.collector.confirm_requests()["health"]
    confirmed, _ = partial.masked["health"].confirm(request)
    assert not hasattr(confirmed, "confirm")
    other = replace(request, survivors=("environment", "health", "parks", "police"))
    foreign = replace(request, sid=b"x" * 32)  # a used state does not even look at it, and signs nothing
    for again in (request, other, foreign):
        with pytest.raises(RuntimeError, match="used already"):
            partial.masked["health"].confirm(again)


def test_after_a_confirmation_no_other_list_is_revealed(partial: Any) -> None:
    confirmed = partial.confirm()["health"]
    request = partial.collector.reveal_requests()["health"]
    everybody = replace(request, survivors=partial.city.names)
    assert code_of(lambda: confirmed.reveal(everybody, heads_seen={})) == "survivors-changed"
    other = replace(request, survivors=("environment", "health", "police", "transport"))
    assert code_of(lambda: confirmed.reveal(other, heads_seen={})) == "survivors-changed"


def test_a_partial_list_is_not_revealed_without_a_confirmation_of_ours(partial: Any) -> None:
    partial.confirm(["environment", "parks", "transport"])
    states = dict(partial.masked)
    # The coordinator asks health all the same, with confirmations of the others.
    request = RevealRequest(
        run=partial.terms.run,
        round=1,
        sid=partial.terms.sid(),
        survivors=partial.collector.survivors,
        receipts=partial.collector.receipts,
        confirmations={},
        envelopes={name: partial.updates[name].envelopes["health"] for name in ("environment", "parks", "transport")},
    )
    assert code_of(lambda: states["health"].reveal(request, heads_seen={})) == "confirmation-missing"


# --- reveal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": b"x" * 32}, "round-mismatch"),
        ({"round": 2}, "round-mismatch"),
        ({"sid": b"x" * 32}, "sid-mismatch"),
        ({"survivors": ("environment", "environment", "health", "parks", "transport")}, "survivor-repeated"),
        ({"survivors": ("environment", "health", "parks", "sybil")}, "survivor-foreign"),
        ({"survivors": ("environment", "health")}, "below-min-contributors"),
        ({"survivors": ("environment", "parks", "police", "transport")}, "not-a-survivor"),
        ({"receipts": {}}, "receipts-incomplete"),
        ({"confirmations": {}}, "too-few-confirmations"),
        ({"envelopes": {}}, "envelopes-incomplete"),
    ],
)
def test_a_bad_reveal_request_is_refused(answers: Any, changes: dict[str, Any], code: str) -> None:
    state, request = answers
    assert code_of(lambda: state.reveal(replace(request, **changes), heads_seen={})) == code
    state.reveal(request, heads_seen={})


def test_shares_are_revealed_once(answers: Any) -> None:
    state, request = answers
    revealed, _ = state.reveal(request, heads_seen={})
    assert not hasattr(revealed, "reveal")
    with pytest.raises(RuntimeError, match="used already"):
        state.reveal(request, heads_seen={})


def test_no_department_has_both_kinds_of_share_revealed(answers: Any, partial: Any) -> None:
    state, request = answers
    _, reveal = state.reveal(request, heads_seen={})
    assert set(reveal.self_shares) == set(partial.collector.survivors) == set(reveal.pair_shares)
    assert all(set(row) == {"police"} for row in reveal.pair_shares.values())


def test_one_confirmation_too_few_is_refused(answers: Any) -> None:
    state, request = answers
    confirmations = {name: request.confirmations[name] for name in ("environment", "health", "parks")}
    fewer = replace(request, confirmations=confirmations)
    assert code_of(lambda: state.reveal(fewer, heads_seen={})) == "too-few-confirmations"


def test_a_confirmation_counts_only_for_this_round_this_list_and_its_signer(answers: Any, partial: Any) -> None:
    state, request = answers
    keys, sid, survivors = partial.city.keys, partial.terms.sid(), partial.collector.survivors
    other = ("environment", "health", "parks", "police")

    def bent(name: str, signer: IdentityKey, of: bytes, who: tuple[str, ...]) -> Any:
        signed = sign_record(signer, CONFIRMATION_LABEL, ConfirmedSet(sid=of, survivors=who))
        return replace(request, confirmations=request.confirmations | {name: signed})

    for lie, code in (
        (bent("parks", keys["parks"], b"x" * 32, survivors), "sid-mismatch"),
        (bent("parks", keys["parks"], sid, other), "survivors-changed"),
        (bent("parks", keys["health"], sid, survivors), "signature-invalid"),
        (bent("police", keys["police"], sid, survivors), "confirmation-foreign"),
        (bent("sybil", IdentityKey.generate(), sid, survivors), "confirmation-foreign"),
    ):
        assert code_of(lambda lie=lie: state.reveal(lie, heads_seen={})) == code  # type: ignore[misc]  # default binds the loop value


def receipt_lies(story: Any) -> Iterator[tuple[dict[str, Any], str]]:
    receipt = msgspec.msgpack.decode(story.updates["parks"].receipt.body, type=Receipt)
    yield {"sid": b"x" * 32}, "sid-mismatch"
    yield {"department": "environment"}, "receipt-foreign"
    yield {"pair_commitments": {}}, "receipt-incomplete"
    yield {"envelope_hashes": receipt.envelope_hashes | {"sybil": b"x" * 32}}, "receipt-incomplete"
    yield {"self_commitment": b"short"}, "message-malformed"
    yield {"ledger_sequence": -1}, "message-malformed"
    yield {"pair_commitments": receipt.pair_commitments | {"health": b"x" * 32}}, "pair-commitment-mismatch"
    yield {"pair_commitments": receipt.pair_commitments | {"transport": b"x" * 32}}, "pair-commitment-mismatch"
    yield {"envelope_hashes": receipt.envelope_hashes | {"health": b"x" * 32}}, "envelope-mismatch"


def test_a_bent_receipt_is_refused_even_with_its_owners_signature(answers: Any, partial: Any) -> None:
    state, request = answers
    for changes, code in receipt_lies(partial):
        bent = partial.city.resign("parks", RECEIPT_LABEL, request.receipts["parks"], Receipt, **changes)
        lie = replace(request, receipts=request.receipts | {"parks": bent})
        assert code_of(lambda lie=lie: state.reveal(lie, heads_seen={})) == code  # type: ignore[misc]  # default binds the loop value


def test_a_receipt_that_its_owner_did_not_sign_is_refused(answers: Any) -> None:
    state, request = answers
    forged = Signed(body=flip(request.receipts["parks"].body), signature=request.receipts["parks"].signature)
    lie = replace(request, receipts=request.receipts | {"parks": forged})
    assert code_of(lambda: state.reveal(lie, heads_seen={})) == "signature-invalid"


def test_the_own_receipt_must_be_the_one_that_was_sent(answers: Any, partial: Any) -> None:
    state, request = answers
    bent = partial.city.resign("health", RECEIPT_LABEL, request.receipts["health"], Receipt, ledger_sequence=8)
    lie = replace(request, receipts=request.receipts | {"health": bent})
    assert code_of(lambda: state.reveal(lie, heads_seen={})) == "own-receipt-changed"


def test_a_ledger_that_has_not_moved_on_is_refused(answers: Any) -> None:
    state, request = answers
    assert code_of(lambda: state.reveal(request, heads_seen={"parks": 7})) == "journal-rolled-back"
    revealed, _ = state.reveal(request, heads_seen={"parks": 6, "health": 99})
    assert revealed.ledger_heads == dict.fromkeys(("environment", "parks", "transport"), (7, b"h" * 32))


@pytest.mark.parametrize("at", [0, 12, -1])
def test_a_bit_flip_in_an_envelope_is_found(answers: Any, at: int) -> None:
    state, request = answers
    envelopes = request.envelopes | {"parks": flip(request.envelopes["parks"], at)}
    assert code_of(lambda: state.reveal(replace(request, envelopes=envelopes), heads_seen={})) == "envelope-mismatch"


def test_swapped_truncated_or_foreign_envelopes_are_refused(answers: Any, partial: Any) -> None:
    state, request = answers
    for envelopes in (
        request.envelopes | {"parks": request.envelopes["transport"]},
        request.envelopes | {"parks": request.envelopes["parks"][:-1]},
        request.envelopes | {"parks": partial.updates["parks"].envelopes["transport"]},
    ):
        lie = replace(request, envelopes=envelopes)
        assert code_of(lambda lie=lie: state.reveal(lie, heads_seen={})) == "envelope-mismatch"  # type: ignore[misc]  # default binds the loop value


def test_an_envelope_replayed_from_another_round_is_refused(full: Any, story_of: Any) -> None:
    request = full.collector.reveal_requests()["health"]
    other = story_of(full.city).upload("parks")
    envelopes = request.envelopes | {"parks": other.updates["parks"].envelopes["health"]}
    lie = replace(request, envelopes=envelopes)
    assert code_of(lambda: full.masked["health"].reveal(lie, heads_seen={})) == "envelope-mismatch"


def test_an_envelope_that_its_sender_signed_but_that_does_not_open_is_refused(answers: Any, partial: Any) -> None:
    state, request = answers
    receipt = msgspec.msgpack.decode(request.receipts["parks"].body, type=Receipt)
    size = len(request.envelopes["parks"])
    for garbage, code in ((bytes(size), "envelope-invalid"), (bytes(size + 1), "envelope-mismatch")):
        hashed = envelope_hash(partial.terms.sid(), "parks", "health", garbage)
        hashes = receipt.envelope_hashes | {"health": hashed}
        bent = partial.city.resign("parks", RECEIPT_LABEL, request.receipts["parks"], Receipt, envelope_hashes=hashes)
        lie = replace(
            request, receipts=request.receipts | {"parks": bent}, envelopes=request.envelopes | {"parks": garbage}
        )
        assert code_of(lambda lie=lie: state.reveal(lie, heads_seen={})) == code  # type: ignore[misc]  # default binds the loop value
