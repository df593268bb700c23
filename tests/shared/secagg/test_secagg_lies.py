"""What a lying coordinator or a broken department tries in a round; each try ends in its own refusal."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import IdentityKey, Signed, sign_record
from shared.messages import ConfirmedSet, ConfirmRequest, MaskedUpdate, Receipt, Reveal, RevealRequest
from shared.secagg.receipts import CONFIRMATION_LABEL, RECEIPT_LABEL, check_pair_commitments, envelope_hash
from shared.secagg.ring import encode_vector
from shared.secagg.server import RoundCollector

replace = msgspec.structs.replace


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises((ProtocolError, RoundAbortedError)) as caught:
        action()
    code: str = caught.value.code
    return code


def flip(data: bytes, at: int = -1) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture
def full(city_of: Any, story_of: Any) -> Any:
    """Four departments, everybody uploaded."""
    city = city_of(4)
    return story_of(city).upload(*city.names)


@pytest.fixture
def partial(city_of: Any, story_of: Any) -> Any:
    """Five departments with c = 2, police dropped; the others confirmed."""
    city = city_of(5)
    return story_of(city).upload("environment", "health", "parks", "transport")


@pytest.fixture
def answers(partial: Any) -> tuple[Any, Any]:
    states = partial.confirm()
    return states["health"], partial.collector.reveal_requests()["health"]


# --- mask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "code"), [(np.nan, "update-not-finite"), (2.0, "update-beyond-bound")])
def test_a_bad_update_is_refused_and_uses_the_round_up(city_of: Any, story_of: Any, value: float, code: str) -> None:
    story = story_of(city_of(3))
    vector = story.vectors["health"].copy()
    vector[-1] = value
    assert refused(lambda: story.city.mask(story.keyed["health"], "health", vector)) == code
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
    assert refused(lambda: partial.masked["health"].confirm(replace(request, **changes))) == code
    partial.masked["health"].confirm(request)


def test_two_survivor_lists_are_never_confirmed(partial: Any) -> None:
    request = partial.collector.confirm_requests()["health"]
    confirmed, _ = partial.masked["health"].confirm(request)
    assert not hasattr(confirmed, "confirm")
    other = replace(request, survivors=("environment", "health", "parks", "police"))
    for again in (request, other):
        with pytest.raises(RuntimeError, match="used already"):
            partial.masked["health"].confirm(again)


def test_after_a_confirmation_no_other_list_is_revealed(partial: Any) -> None:
    confirmed = partial.confirm()["health"]
    request = partial.collector.reveal_requests()["health"]
    everybody = replace(request, survivors=partial.city.names)
    assert refused(lambda: confirmed.reveal(everybody, heads_seen={})) == "survivors-changed"
    other = replace(request, survivors=("environment", "health", "police", "transport"))
    assert refused(lambda: confirmed.reveal(other, heads_seen={})) == "survivors-changed"


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
    assert refused(lambda: states["health"].reveal(request, heads_seen={})) == "confirmation-missing"


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
    assert refused(lambda: state.reveal(replace(request, **changes), heads_seen={})) == code
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
    assert refused(lambda: state.reveal(fewer, heads_seen={})) == "too-few-confirmations"


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
        assert refused(lambda lie=lie: state.reveal(lie, heads_seen={})) == code  # type: ignore[misc]  # default binds the loop value


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
        assert refused(lambda lie=lie: state.reveal(lie, heads_seen={})) == code  # type: ignore[misc]  # default binds the loop value


def test_a_receipt_that_its_owner_did_not_sign_is_refused(answers: Any) -> None:
    state, request = answers
    forged = Signed(body=flip(request.receipts["parks"].body), signature=request.receipts["parks"].signature)
    lie = replace(request, receipts=request.receipts | {"parks": forged})
    assert refused(lambda: state.reveal(lie, heads_seen={})) == "signature-invalid"


def test_the_own_receipt_must_be_the_one_that_was_sent(answers: Any, partial: Any) -> None:
    state, request = answers
    bent = partial.city.resign("health", RECEIPT_LABEL, request.receipts["health"], Receipt, ledger_sequence=8)
    lie = replace(request, receipts=request.receipts | {"health": bent})
    assert refused(lambda: state.reveal(lie, heads_seen={})) == "own-receipt-changed"


def test_a_ledger_that_has_not_moved_on_is_refused(answers: Any) -> None:
    state, request = answers
    assert refused(lambda: state.reveal(request, heads_seen={"parks": 7})) == "journal-rolled-back"
    revealed, _ = state.reveal(request, heads_seen={"parks": 6, "health": 99})
    assert revealed.ledger_heads == dict.fromkeys(("environment", "parks", "transport"), (7, b"h" * 32))


@pytest.mark.parametrize("at", [0, 12, -1])
def test_a_bit_flip_in_an_envelope_is_found(answers: Any, at: int) -> None:
    state, request = answers
    envelopes = request.envelopes | {"parks": flip(request.envelopes["parks"], at)}
    assert refused(lambda: state.reveal(replace(request, envelopes=envelopes), heads_seen={})) == "envelope-mismatch"


def test_swapped_truncated_or_foreign_envelopes_are_refused(answers: Any, partial: Any) -> None:
    state, request = answers
    for envelopes in (
        request.envelopes | {"parks": request.envelopes["transport"]},
        request.envelopes | {"parks": request.envelopes["parks"][:-1]},
        request.envelopes | {"parks": partial.updates["parks"].envelopes["transport"]},
    ):
        lie = replace(request, envelopes=envelopes)
        assert refused(lambda lie=lie: state.reveal(lie, heads_seen={})) == "envelope-mismatch"  # type: ignore[misc]  # default binds the loop value


def test_an_envelope_replayed_from_another_round_is_refused(full: Any, story_of: Any) -> None:
    request = full.collector.reveal_requests()["health"]
    other = story_of(full.city).upload("parks")
    envelopes = request.envelopes | {"parks": other.updates["parks"].envelopes["health"]}
    lie = replace(request, envelopes=envelopes)
    assert refused(lambda: full.masked["health"].reveal(lie, heads_seen={})) == "envelope-mismatch"


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
        assert refused(lambda lie=lie: state.reveal(lie, heads_seen={})) == code  # type: ignore[misc]  # default binds the loop value


# --- unequal models --------------------------------------------------------------------------------------


def test_unequal_models_show_before_anything_is_revealed(full: Any) -> None:
    """The coordinator shows police another model than the rest, so police computes another sid."""
    city, ready = full.city, full.city.ready()
    common = city.terms(ready["police"].epoch_id)
    keyed = {
        name: state.begin(replace(common, model_hash=b"x" * 32) if name == "police" else common)[1]
        for name, state in ready.items()
    }
    collector = RoundCollector(common, city.roster)
    updates = {name: city.mask(state, name, full.vectors[name])[1] for name, state in keyed.items()}
    for name in common.peers("police"):
        collector.receive_update(name, updates[name])
    assert refused(lambda: collector.receive_update("police", updates["police"])) == "sid-mismatch"
    # A coordinator that looks away gains nothing: the commitments differ, and so do the masks.
    receipts = {name: msgspec.msgpack.decode(update.receipt.body, type=Receipt) for name, update in updates.items()}
    assert refused(lambda: check_pair_commitments(receipts)) == "pair-commitment-mismatch"


def test_the_collector_names_the_pair_whose_commitments_differ(full: Any, story_of: Any) -> None:
    story = story_of(full.city).upload("environment", "health", "parks")
    _, update = full.city.mask(story.keyed["police"], "police", story.vectors["police"])
    commitments = msgspec.msgpack.decode(update.receipt.body, type=Receipt).pair_commitments
    bent = full.city.resign(
        "police", RECEIPT_LABEL, update.receipt, Receipt, pair_commitments=commitments | {"parks": b"x" * 32}
    )
    story.collector.receive_update("police", replace(update, receipt=bent))
    for step in (
        story.collector.check_commitments,
        story.collector.confirm_requests,
        story.collector.reveal_requests,
    ):
        with pytest.raises(ProtocolError, match="parks and police") as caught:
            step()
        assert caught.value.code == "pair-commitment-mismatch"


# --- the collector ---------------------------------------------------------------------------------------


def test_the_collector_refuses_a_bad_upload_and_takes_the_good_one_after_it(full: Any, story_of: Any) -> None:
    story = story_of(full.city).upload("environment", "health", "parks")
    collector = story.collector
    story.masked["police"], update = full.city.mask(story.keyed["police"], "police", story.vectors["police"])
    swapped = {"environment": update.envelopes["health"], "health": update.envelopes["environment"]}
    lies: list[tuple[MaskedUpdate, str]] = [
        (replace(update, sid=b"x" * 32), "sid-mismatch"),
        (replace(update, receipt=story.updates["parks"].receipt), "signature-invalid"),
        (replace(update, words=update.words[:-4]), "vector-length"),
        (replace(update, words=memoryview(flip(bytes(update.words)))), "vector-digest-mismatch"),
        (replace(update, envelopes={}), "envelopes-incomplete"),
        (replace(update, envelopes=update.envelopes | swapped), "envelope-mismatch"),
        (replace(update, envelopes=update.envelopes | {"parks": b""}), "envelope-mismatch"),
    ]
    for lie, code in lies:
        assert refused(lambda lie=lie: collector.receive_update("police", lie)) == code  # type: ignore[misc]  # default binds the loop value
    assert refused(lambda: collector.receive_update("sybil", update)) == "participant-foreign"
    collector.receive_update("police", update)
    assert refused(lambda: collector.receive_update("police", update)) == "update-repeated"
    story.reveal(story.masked)
    bits = story.terms.fraction_bits
    encoded = [
        encode_vector(vector, bits=bits, bound=1.0).view("<i4").astype(np.int64) for vector in story.vectors.values()
    ]
    assert np.array_equal(collector.unmask()[:], sum(encoded) * 2.0**-bits)
    with pytest.raises(RuntimeError, match="unmasked already"):
        collector.unmask()


def test_a_collector_needs_everybody_on_the_roster(full: Any, city_of: Any) -> None:
    with pytest.raises(ValueError, match="roster"):
        RoundCollector(full.terms, city_of(3).roster)


def test_a_late_upload_does_not_change_the_survivors(partial: Any) -> None:
    partial.collector.confirm_requests()
    _, update = partial.city.mask(partial.keyed["police"], "police", partial.vectors["police"])
    assert refused(lambda: partial.collector.receive_update("police", update)) == "update-late"


def test_the_collector_refuses_bad_confirmations(partial: Any) -> None:
    collector = partial.collector
    assert refused(lambda: collector.receive_confirmation("health", None)) == "confirmation-early"
    requests: dict[str, ConfirmRequest] = collector.confirm_requests()
    _, reply = partial.masked["health"].confirm(requests["health"])
    assert refused(lambda: collector.receive_confirmation("parks", reply)) == "signature-invalid"
    assert refused(lambda: collector.receive_confirmation("police", reply)) == "confirmation-foreign"
    collector.receive_confirmation("health", reply)
    assert refused(lambda: collector.receive_confirmation("health", reply)) == "confirmation-repeated"


def test_the_collector_refuses_bad_reveals(partial: Any) -> None:
    collector, states = partial.collector, partial.confirm()
    requests = collector.reveal_requests()
    _, reveal = states["health"].reveal(requests["health"], heads_seen={})
    lies: list[tuple[Reveal, str]] = [
        (replace(reveal, sid=b"x" * 32), "sid-mismatch"),
        (replace(reveal, self_shares={}), "reveal-incomplete"),
        (replace(reveal, pair_shares={}), "reveal-incomplete"),
        (replace(reveal, pair_shares=reveal.pair_shares | {"health": {}}), "reveal-incomplete"),
        (replace(reveal, self_shares=reveal.self_shares | {"health": b"\xff" * 32}), "share-malformed"),
    ]
    for lie, code in lies:
        assert refused(lambda lie=lie: collector.receive_reveal("health", lie)) == code  # type: ignore[misc]  # default binds the loop value
    assert refused(lambda: collector.receive_reveal("police", reveal)) == "reveal-foreign"
    collector.receive_reveal("health", reveal)
    assert refused(lambda: collector.receive_reveal("health", reveal)) == "reveal-repeated"


def test_one_wrong_share_among_enough_answers_does_not_stop_the_round(full: Any) -> None:
    requests = full.collector.reveal_requests()
    for name, request in requests.items():
        _, reveal = full.masked[name].reveal(request, heads_seen={})
        if name == "environment":
            reveal = replace(reveal, self_shares=dict.fromkeys(reveal.self_shares, bytes(32)))
        full.collector.receive_reveal(name, reveal)
    assert np.abs(full.collector.unmask()[:] - sum(full.vectors.values())).max() < 1e-6


def test_wrong_shares_without_enough_right_ones_abort_the_round(full: Any) -> None:
    for name, request in full.collector.reveal_requests().items():
        _, reveal = full.masked[name].reveal(request, heads_seen={})
        if name in {"environment", "health"}:
            reveal = replace(reveal, self_shares=dict.fromkeys(reveal.self_shares, bytes(32)))
        full.collector.receive_reveal(name, reveal)
    assert refused(full.collector.unmask) == "shares-inconsistent"
