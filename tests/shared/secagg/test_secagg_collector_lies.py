"""What broken departments and unequal models do to a collector of a round; each try ends in its own refusal."""

from typing import Any

import msgspec
import numpy as np
import pytest

from shared.errors import ProtocolError
from shared.messages import ConfirmRequest, MaskedUpdate, Receipt, Reveal
from shared.secagg.receipts import RECEIPT_LABEL, check_pair_commitments
from shared.secagg.ring import encode_vector
from shared.secagg.server import RoundCollector
from tests.refusals import code_of
from tests.shared.secagg.bent_bytes import flip

replace = msgspec.structs.replace


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
    assert code_of(lambda: collector.receive_update("police", updates["police"])) == "sid-mismatch"
    # A coordinator that looks away gains nothing: the commitments differ, and so do the masks.
    receipts = {name: msgspec.msgpack.decode(update.receipt.body, type=Receipt) for name, update in updates.items()}
    assert code_of(lambda: check_pair_commitments(receipts)) == "pair-commitment-mismatch"


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
        assert code_of(lambda lie=lie: collector.receive_update("police", lie)) == code  # type: ignore[misc]  # default binds the loop value
    assert code_of(lambda: collector.receive_update("sybil", update)) == "participant-foreign"
    collector.receive_update("police", update)
    assert code_of(lambda: collector.receive_update("police", update)) == "update-repeated"
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
    assert code_of(lambda: partial.collector.receive_update("police", update)) == "update-late"


def test_the_collector_refuses_bad_confirmations(partial: Any) -> None:
    collector = partial.collector
    assert code_of(lambda: collector.receive_confirmation("health", None)) == "confirmation-early"
    requests: dict[str, ConfirmRequest] = collector.confirm_requests()
    _, reply = partial.masked["health"].confirm(requests["health"])
    assert code_of(lambda: collector.receive_confirmation("parks", reply)) == "signature-invalid"
    assert code_of(lambda: collector.receive_confirmation("police", reply)) == "confirmation-foreign"
    collector.receive_confirmation("health", reply)
    assert code_of(lambda: collector.receive_confirmation("health", reply)) == "confirmation-repeated"


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
        assert code_of(lambda lie=lie: collector.receive_reveal("health", lie)) == code  # type: ignore[misc]  # default binds the loop value
    assert code_of(lambda: collector.receive_reveal("police", reveal)) == "reveal-foreign"
    collector.receive_reveal("health", reveal)
    assert code_of(lambda: collector.receive_reveal("health", reveal)) == "reveal-repeated"


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
    assert code_of(full.collector.unmask) == "shares-inconsistent"
