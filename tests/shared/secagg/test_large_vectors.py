"""Memory and precision at a size where a needless copy shows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from shared.codec import encode
from shared.crypto.stream import CHUNK_WORDS, RING_DTYPE
from shared.errors import ProtocolError
from shared.messages import MaskedUpdate
from shared.secagg.masking import add_hashed, vector_hash
from shared.secagg.ring import encode_vector, project
from shared.secagg.server import RoundCollector

DIMENSION = 5_000_003  # ends in the middle of a segment
RING_BYTES = 4 * DIMENSION
MIB = 1 << 20
SLACK = 4 * MIB  # streams, chunks and messages; far below one vector


class Peak:
    """Bytes that were allocated on top of what stood at the start: at the highest point, and at the end."""

    highest = left = 0


@contextmanager
def allocated() -> Generator[Peak]:
    tracemalloc.start()
    try:
        before, peak = tracemalloc.get_traced_memory()[0], Peak()
        yield peak
        left, highest = tracemalloc.get_traced_memory()
        peak.left, peak.highest = left - before, highest - before
    finally:
        tracemalloc.stop()


def vector_of(number: int, dimension: int = DIMENSION) -> Any:
    """An update whose norm is just below 1."""
    drawn = np.random.default_rng(number).random(dimension, dtype=np.float32)
    return (drawn - np.float32(0.5)) * np.float32(3 / dimension**0.5)


def identity(city: Any, name: str) -> dict[str, Any]:
    return {"identity": city.keys[name], "ledger_sequence": 7, "ledger_head": b"h" * 32}


def arrive(update: MaskedUpdate) -> MaskedUpdate:
    """Send an update: what arrives points into the message, and is aligned there."""
    received: MaskedUpdate = msgspec.msgpack.decode(encode(update), type=MaskedUpdate)
    assert np.frombuffer(received.words, dtype=RING_DTYPE).flags.aligned
    return received


class Play:
    """One round of four departments; the coordinator's memory is watched."""

    def __init__(self, city: Any, dimension: int = DIMENSION) -> None:
        ready = city.ready()
        self.city = city
        self.terms = city.terms(next(iter(ready.values())).epoch_id, dimension=dimension)
        self.keyed = {name: state.begin(self.terms)[1] for name, state in ready.items()}
        self.masked: dict[str, Any] = {}

    def mask(self, name: str, vector: Any) -> MaskedUpdate:
        update: MaskedUpdate
        self.masked[name], update = self.keyed[name].mask(
            vector, **identity(self.city, name), out=vector.view(RING_DTYPE)
        )
        return update

    def finish(self, collector: RoundCollector) -> None:
        states = dict(self.masked)
        for name, question in collector.confirm_requests().items():
            states[name], answer = states[name].confirm(question)
            collector.receive_confirmation(name, answer)
        for name, request in collector.reveal_requests().items():
            collector.receive_reveal(name, states[name].reveal(request, heads_seen={})[1])


@pytest.mark.parametrize("in_place", [True, False])
def test_a_client_masks_in_the_memory_of_its_update_or_in_one_vector_more(
    four_departments: Any, in_place: bool
) -> None:
    play, name, vector = Play(four_departments), "health", vector_of(0)
    out = vector.view(RING_DTYPE) if in_place else None
    with allocated() as memory:
        _, update = play.keyed[name].mask(vector, **identity(four_departments, name), out=out)
    assert memory.highest < (0 if in_place else RING_BYTES) + SLACK
    assert np.shares_memory(vector, np.frombuffer(update.words, dtype=RING_DTYPE)) == in_place


def test_projecting_costs_one_vector_and_no_wider_copy() -> None:
    vector = vector_of(0) * np.float32(3)
    with allocated() as memory:
        projected = project(vector, 1.0)
    assert memory.highest < RING_BYTES + SLACK
    whole = vector.astype(np.float64)
    assert np.allclose(projected, whole / np.linalg.norm(whole), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_server_keeps_one_ring_sum_and_no_upload_and_the_sum_is_exact(four_departments: Any, dropped: int) -> None:
    play, exact = Play(four_departments), np.zeros(DIMENSION)
    ring = np.zeros(DIMENSION, dtype=RING_DTYPE)
    names = play.terms.participants[: 4 - dropped]
    bits = play.terms.fraction_bits
    with allocated() as memory:
        collector = RoundCollector(play.terms, four_departments.roster)
    assert memory.highest < RING_BYTES + SLACK
    for number, name in enumerate(names):
        vector = vector_of(number)
        exact += vector
        ring += encode_vector(vector, bits=bits, bound=1.0)
        received = arrive(play.mask(name, vector))
        with allocated() as memory:
            collector.receive_update(name, received)
        assert memory.highest < SLACK
    play.finish(collector)
    with allocated() as memory:
        found = collector.unmask()
    assert memory.highest < SLACK
    assert np.array_equal(found.words, ring)
    assert np.abs(found[:] - exact).max() <= len(names) * 2.0 ** -(bits + 1)


def test_a_server_lets_go_of_an_upload_once_it_is_added(four_departments: Any) -> None:
    play = Play(four_departments)
    collector = RoundCollector(play.terms, four_departments.roster)
    update = play.mask("health", vector_of(0))
    with allocated() as memory:
        collector.receive_update("health", arrive(update))
    assert memory.left < SLACK
    assert memory.highest > RING_BYTES


@pytest.mark.parametrize("broken_at", [0, 2])
def test_an_upload_that_is_not_the_signed_one_leaves_no_trace_in_the_sum(four_departments: Any, broken_at: int) -> None:
    dimension = CHUNK_WORDS + 5
    play = Play(four_departments, dimension)
    collector = RoundCollector(play.terms, four_departments.roster)
    ring = np.zeros(dimension, dtype=RING_DTYPE)
    for number, name in enumerate(play.terms.participants):
        vector = vector_of(number, dimension)
        ring += encode_vector(vector, bits=play.terms.fraction_bits, bound=1.0)
        update = arrive(play.mask(name, vector))
        if number == broken_at:
            other = bytearray(update.words)
            other[-1] ^= 1
            with pytest.raises(ProtocolError) as caught:
                collector.receive_update(name, msgspec.structs.replace(update, words=memoryview(other)))
            assert caught.value.code == "vector-digest-mismatch"
        collector.receive_update(name, update)
    play.finish(collector)
    assert np.array_equal(collector.unmask().words, ring)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dimension", [1, CHUNK_WORDS, CHUNK_WORDS + 1, 9 * CHUNK_WORDS + 3])
def test_the_digest_of_the_one_pass_is_that_of_the_whole_and_unaligned_words_add_up_too(
    dimension: int, offset: int, entropy: Callable[[int], bytes]
) -> None:
    raw = memoryview(entropy(4 * dimension + offset))[offset:]
    whole, total = vector_hash(), np.ones(dimension, dtype=RING_DTYPE)
    whole.update(raw)
    words = np.frombuffer(raw, dtype=RING_DTYPE)
    assert words.flags.aligned == (offset == 0)
    assert add_hashed(total, raw, first=False) == whole.digest()
    assert np.array_equal(total - np.uint32(1), words)
    assert add_hashed(total, raw, first=True) == whole.digest()
    assert np.array_equal(total, words)
