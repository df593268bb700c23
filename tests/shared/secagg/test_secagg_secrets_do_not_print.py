"""Types with keys, seeds, shares or raw updates are formatted here, each of them."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shared.crypto.keys import OneUse
from shared.crypto.seal import SealingKey
from shared.crypto.stream import KeyStream, Scratch
from shared.messages import SealRequest
from shared.secagg.epoch import open_epoch
from shared.secagg.reveal import HeldShares
from shared.secagg.ring import Encoder
from shared.secagg.round import RoundKeys


def secrets_in(value: Any) -> Iterator[str]:
    """Every byte string, number and array inside, as it would be printed."""
    if isinstance(value, dict):
        for item in value.values():
            yield from secrets_in(item)
    elif isinstance(value, bytes):
        yield from (repr(value)[2:-1], value.hex())
    elif isinstance(value, int):
        yield from (str(value), f"{value:x}")


def assert_prints_none(state: Any, *secrets: Any) -> None:
    found = [text for secret in secrets for text in secrets_in(secret)]
    assert found
    for form in (repr(state), str(state), f"{state}", f"{state!r:>4}", str([state])):
        assert type(state).__name__ in form
        assert not any(text in form for text in found)
        assert len(form) < 700


def test_no_state_of_an_epoch_or_a_round_prints_a_secret(city_of: Any, story_of: Any) -> None:
    city = city_of(4)
    advertised, adverts = {}, {}
    for name in city.names:
        advertised[name], reply = open_epoch(city.context(name), city.keys[name])
        adverts[name] = reply.advert
    request = SealRequest(run=city.context("police").run, epoch=1, adverts=adverts)
    private = {name: key.private_bytes() for name, key in city.keys.items()}
    assert_prints_none(advertised["police"], private)
    sealed, _ = advertised["police"].receive(request)
    assert_prints_none(sealed, private, sealed._secrets.peek()[1])

    story = story_of(city)
    ready, keyed = story.ready["police"], story.keyed["police"]
    keys: RoundKeys = keyed._keys.peek()
    assert_prints_none(ready, private, ready._roots.peek())
    assert_prints_none(keyed, private, keys.pair_seeds, keys.incoming, keys.outgoing)
    assert_prints_none(keys, keys.pair_seeds, keys.incoming, keys.outgoing)
    story.upload("environment", "parks", "police")
    masked = story.masked["police"]
    held: HeldShares = masked._held.peek()
    assert_prints_none(masked, private, held.incoming, held.own)
    assert_prints_none(held, held.incoming, held.own)
    states = story.confirm()
    assert_prints_none(states["police"], private, held.incoming, held.own)
    revealed, reveal = states["police"].reveal(story.collector.reveal_requests()["police"], heads_seen={})
    assert_prints_none(revealed, private, held.incoming, held.own)
    assert_prints_none(reveal, reveal.self_shares, reveal.pair_shares)


def test_no_helper_prints_a_secret() -> None:
    secret = os.urandom(32)
    key = SealingKey.generate(os.urandom)
    for holder in (OneUse(secret), key, KeyStream(secret, Scratch()), Scratch(), Encoder(bits=5, bound=1.0)):
        assert_prints_none(holder, secret)


def test_a_masked_update_prints_no_vector(city_of: Any, story_of: Any) -> None:
    story = story_of(city_of(3, dimension=1000)).upload("parks")
    assert repr(bytes(story.updates["parks"].words))[2:-1] not in repr(story.updates["parks"])
    assert isinstance(story.updates["parks"].words, memoryview)


@pytest.mark.parametrize("attribute", ["vector", "_update", "x"])
def test_a_masked_round_keeps_no_update(city_of: Any, story_of: Any, attribute: str) -> None:
    story = story_of(city_of(3)).upload("parks")
    masked = story.masked["parks"]
    assert not hasattr(masked, attribute)
    assert not any(isinstance(getattr(masked, name), np.ndarray) for name in masked.__slots__)
