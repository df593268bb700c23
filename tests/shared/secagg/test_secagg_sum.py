"""The sum comes out exactly, whoever drops; one masked vector says nothing."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import decode, encode
from shared.crypto.stream import CHUNK_WORDS
from shared.errors import RoundAbortedError
from shared.messages import Reply
from shared.plan import default_aggregation
from shared.secagg.ring import decode_sum, encode_vector

COUNTS = st.integers(3, 6)


def plain_sum(story: Any, survivors: Any) -> Any:
    """The same sum in plain integers."""
    bits, bound = story.terms.fraction_bits, story.terms.bound
    encoded = [
        encode_vector(story.vectors[name], bits=bits, bound=bound).view("<i4").astype(object) for name in survivors
    ]
    return np.array([float(sum(column)) * 2.0**-bits for column in zip(*encoded, strict=True)])


@settings(max_examples=12, deadline=None)
@given(count=COUNTS, data=st.data())
def test_the_sum_is_exact_whoever_drops_at_upload_confirm_or_reveal(
    city_of: Any, story_of: Any, count: int, data: Any
) -> None:
    city = city_of(count)
    needed = city.limits.threshold

    def some(names: Any) -> list[str]:
        kept = data.draw(st.permutations(names))[: data.draw(st.integers(needed, len(names)))]
        return sorted(kept)

    story = story_of(city)
    survivors = some(city.names)
    story.upload(*data.draw(st.permutations(survivors)))
    confirmed = some(survivors)
    states = story.confirm(confirmed)
    revealing = some(confirmed if len(survivors) < count else survivors)
    story.reveal(states, revealing)
    assert np.array_equal(story.collector.unmask()[:], plain_sum(story, survivors))
    assert story.collector.survivors == tuple(survivors)


@pytest.mark.parametrize("dimension", [1, CHUNK_WORDS, CHUNK_WORDS + 1, 4 * CHUNK_WORDS + 3])
def test_masks_cancel_at_every_chunk_and_segment_border(city_of: Any, story_of: Any, dimension: int) -> None:
    city = city_of(3, dimension=dimension)
    story = story_of(city).upload(*city.names)
    story.reveal(story.masked)
    total = sum(
        encode_vector(story.vectors[name], bits=story.terms.fraction_bits, bound=1.0).view("<i4").astype(np.int64)
        for name in city.names
    )
    assert np.array_equal(story.collector.unmask()[:], total * 2.0**-story.terms.fraction_bits)


def test_without_the_reveal_the_sum_of_all_uploads_is_still_masked(city_of: Any, story_of: Any) -> None:
    story = story_of(city_of(4, dimension=1000)).upload("environment", "health", "parks", "police")
    total = sum(np.frombuffer(update.words, dtype="<u4") for update in story.updates.values())
    decoded = decode_sum(np.asarray(total, dtype="<u4"), bits=story.terms.fraction_bits)
    assert np.abs(decoded - plain_sum(story, story.masked)).mean() > 0.1


def test_a_masked_vector_looks_uniform_even_for_a_constant_update(city_of: Any, story_of: Any) -> None:
    city = city_of(3, dimension=100_000)
    zeros = {name: np.zeros(100_000, dtype=np.float32) for name in city.names}
    story = story_of(city, vectors=zeros).upload("parks")
    counts = np.bincount(np.frombuffer(story.updates["parks"].words, dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    # Chi-squared with 255 degrees of freedom: above 400 with chance below 1e-8.
    assert ((counts - expected) ** 2 / expected).sum() < 400


def test_messages_survive_the_wire(city_of: Any, story_of: Any) -> None:
    story = story_of(city_of(3)).upload("environment", "health")
    story.masked["parks"], update = story.city.mask(story.keyed["parks"], "parks", story.vectors["parks"])
    arrived: Any = decode(encode(update), Reply)  # type: ignore[arg-type]  # a union is a type for msgspec
    story.collector.receive_update("parks", arrived)
    story.reveal(story.masked)
    assert np.array_equal(story.collector.unmask()[:], plain_sum(story, story.city.names))


def test_masking_in_place_erases_the_update_and_gives_the_same_sum(city_of: Any, story_of: Any) -> None:
    story = story_of(city_of(3)).upload("environment", "health")
    vector = story.vectors["parks"].copy()
    story.masked["parks"], update = story.keyed["parks"].mask(
        vector,
        identity=story.city.keys["parks"],
        ledger_sequence=1,
        ledger_head=bytes(32),
        out=vector.view(np.uint32),
    )
    assert bytes(update.words) == vector.tobytes()
    assert not np.array_equal(vector, story.vectors["parks"])
    story.collector.receive_update("parks", update)
    story.reveal(story.masked)
    assert np.array_equal(story.collector.unmask()[:], plain_sum(story, story.city.names))


def test_two_rounds_of_one_epoch_use_different_masks(city_of: Any) -> None:
    city = city_of(3)
    states = city.ready()
    vector = np.zeros(city.dimension, dtype=np.float32)
    seen = []
    for number in (1, 2):
        terms = city.terms(states["health"].epoch_id, round_number=number)
        states["health"], keyed = states["health"].begin(terms)
        seen.append(bytes(city.mask(keyed, "health", vector)[1].words))
    assert seen[0] != seen[1]


def test_a_participant_subset_of_the_epoch_can_run_a_round(city_of: Any) -> None:
    city = city_of(5)
    states = city.ready()
    some = city.names[:4]
    terms = city.terms(states["health"].epoch_id, participants=some)
    keys = {name: states[name].begin(terms)[1]._keys.peek() for name in some}
    assert all(set(keys[name].pair_seeds) == set(some) - {name} for name in some)


def test_fewer_than_the_threshold_cannot_upload_or_reveal(city_of: Any, story_of: Any) -> None:
    story = story_of(city_of(4)).upload("environment", "health")
    with pytest.raises(RoundAbortedError) as caught:
        story.collector.confirm_requests()
    assert caught.value.code == "below-threshold"
    story = story_of(city_of(4)).upload("environment", "health", "parks", "police")
    story.reveal(story.masked, ["environment", "health"])
    with pytest.raises(RoundAbortedError) as caught:
        story.collector.unmask()
    assert caught.value.code == "too-few-reveals"


def test_fewer_confirmations_than_the_threshold_abort_the_round(city_of: Any, story_of: Any) -> None:
    story = story_of(city_of(4)).upload("environment", "health", "parks")
    story.confirm(["environment", "health"])
    with pytest.raises(RoundAbortedError) as caught:
        story.collector.reveal_requests()
    assert caught.value.code == "too-few-confirmations"


@pytest.mark.parametrize("count", [4, 5, 6])
def test_every_choice_of_threshold_reveals_gives_the_same_sum(city_of: Any, story_of: Any, count: int) -> None:
    city = city_of(count)
    names = city.names[1:]
    for chosen in itertools.islice(itertools.combinations(names, city.limits.threshold), 3):
        story = story_of(city).upload(*names)
        story.reveal(story.confirm(), chosen)
        assert np.array_equal(story.collector.unmask()[:], plain_sum(story, names))


def test_the_defaults_for_three_departments_need_everybody() -> None:
    assert default_aggregation(3, bound=1.0).threshold == 3


def test_ring_words_that_are_ready_are_masked_as_they_are_and_wrap(city_of: Any, story_of: Any) -> None:
    """Shared noise fills the whole ring in each share; the sum is right modulo 2^32 (privacy 4.3)."""
    city = city_of(4, dimension=CHUNK_WORDS + 3)
    generator = np.random.default_rng(3)
    words = {name: generator.integers(0, 2**32, city.dimension, dtype="<u4") for name in city.names}
    kept = {name: value.copy() for name, value in words.items()}
    story = story_of(city, vectors=words).upload(*city.names)
    assert all(np.array_equal(words[name], kept[name]) for name in city.names)
    assert not np.array_equal(np.frombuffer(story.updates["health"].words, dtype="<u4"), words["health"])
    story.reveal(story.masked)
    expected = np.sum(list(kept.values()), axis=0, dtype=np.uint32)
    assert np.array_equal(story.collector.unmask()[:], decode_sum(expected, bits=story.terms.fraction_bits))
