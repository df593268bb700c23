"""Whatever bytes come in, every reader takes them or refuses them with a CityFedError, and allocates nothing on a promise."""

from __future__ import annotations

import os
import tracemalloc
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import decode
from shared.identity import Roster, Signed
from shared.messages import decode_reply, decode_request
from shared.plan import Plan
from tests.decoders.decoder import Decoder
from tests.decoders.every import every_decoder
from tests.mutations import LENGTHS

SLOW = ("contract", "journal file", "journal view", "reveal signed")
SOAK_INPUTS = 1_000_000


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    return every_decoder(tmp_path_factory.mktemp("decoders"))


def test_every_reader_reads_what_is_right(decoders: dict[str, Decoder]) -> None:
    for name, decoder in decoders.items():
        assert not any(decoder.refuses(seed) for seed in decoder.seeds), name


def test_every_reader_refuses_something_and_not_everything(decoders: dict[str, Decoder]) -> None:
    """Otherwise the mutations would be too tame, or too wild to get anywhere."""
    refused = taken = 0
    for name, decoder in decoders.items():
        inputs, count = decoder.inputs(Random(name)), 5 if name in SLOW else 40
        verdicts = [decoder.refuses(next(inputs)) for _ in range(count)]
        refused, taken = refused + sum(verdicts), taken + verdicts.count(False)
    assert refused > taken > 50


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_only_a_cityfed_error_ever_comes_out(decoders: dict[str, Decoder], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in decoders if name not in SLOW]))
    inputs = decoders[name].inputs(data.draw(st.randoms(use_true_random=True)))
    for _ in range(10):
        decoders[name].assert_taken_or_refused(next(inputs))


@pytest.mark.parametrize("name", SLOW)
def test_only_a_cityfed_error_comes_out_of_a_slow_reader(decoders: dict[str, Decoder], name: str) -> None:
    inputs = decoders[name].inputs(Random(os.urandom(8)))
    for _ in range(40):
        decoders[name].assert_taken_or_refused(next(inputs))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.data())
def test_any_bytes_at_all_are_taken_or_refused(decoders: dict[str, Decoder], data: bytes, draw: st.DataObject) -> None:
    decoders[draw.draw(st.sampled_from(sorted(decoders)))].assert_taken_or_refused(data)


def test_anything_else_than_a_cityfed_error_would_be_seen() -> None:
    with pytest.raises(AssertionError, match="UnicodeDecodeError from"):
        Decoder(lambda data: data.decode(), (b"",)).assert_taken_or_refused(b"\xff")


def test_a_promised_length_allocates_nothing(decoders: dict[str, Decoder]) -> None:
    """A few bytes that promise 4 Gi items, anywhere in a message, cost less than a mebibyte."""
    readers = [
        decode_request,
        decode_reply,
        *(lambda data, kind=kind: decode(data, kind) for kind in (Plan, Roster, Signed)),
    ]
    seeds = [seed for name in ("request", "reply", "Plan", "Roster", "Signed") for seed in decoders[name].seeds]
    random = Random(1)
    tracemalloc.start()
    try:
        for _ in range(300):
            seed = random.choice(seeds)
            data = seed[: random.randrange(min(400, len(seed)))] + random.choice(LENGTHS)
            reader = Decoder(random.choice(readers), (seed,))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            reader.refuses(data)
            assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.soak
def test_only_a_cityfed_error_comes_out_of_a_million_inputs(decoders: dict[str, Decoder]) -> None:
    """Figures stand in docs/protocol.md; a failure names the reader, the seed and the input."""
    assert sum(decoder.share for decoder in decoders.values()) >= SOAK_INPUTS
    for name, decoder in decoders.items():
        seed = os.urandom(8)
        inputs = decoder.inputs(Random(seed))
        for number in range(decoder.share):
            try:
                decoder.assert_taken_or_refused(next(inputs))
            except AssertionError as error:
                raise AssertionError(f"{name}, seed {seed.hex()}, input {number}: {error}") from error
