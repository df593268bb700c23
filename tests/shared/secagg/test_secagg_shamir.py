import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.secagg.shamir import PRIME, combine, share_from_bytes, share_to_bytes, split

SECRETS = st.integers(min_value=0, max_value=PRIME - 1)


@given(secret=SECRETS, data=st.data())
def test_any_threshold_of_the_shares_gives_the_secret(secret: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 9))
    threshold = data.draw(st.integers(1, count))
    shares = split(secret, threshold, range(1, count + 1), os.urandom)
    chosen = data.draw(st.permutations(range(1, count + 1)))[: data.draw(st.integers(threshold, count))]
    assert combine({x: shares[x] for x in chosen}) == secret


@given(secret=SECRETS, claimed=SECRETS, data=st.data())
def test_one_share_less_fits_every_secret(secret: int, claimed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 7))
    threshold = data.draw(st.integers(2, count))
    shares = split(secret, threshold, range(1, count + 1), os.urandom)
    known = {x: shares[x] for x in range(1, threshold)}
    # For whatever secret is claimed there is a last share that makes the known ones give it.
    others = {**known, threshold: 0}
    base = combine(others)
    weight = (combine({**known, threshold: 1}) - base) % PRIME
    last = (claimed - base) * pow(weight, -1, PRIME) % PRIME
    assert combine({**known, threshold: last}) == claimed


def test_one_share_less_gives_another_number() -> None:
    secret = int.from_bytes(os.urandom(31), "little")
    shares = split(secret, 3, [1, 2, 3, 4], os.urandom)
    assert combine({x: shares[x] for x in (1, 2)}) != secret


def test_coefficients_come_from_the_entropy_source() -> None:
    shares = split(5, 2, [1, 2], lambda count: b"\x01" + bytes(count - 1))
    assert shares == {1: 6, 2: 7}


@pytest.mark.parametrize(
    ("secret", "threshold", "xs"),
    [(PRIME, 1, [1]), (-1, 1, [1]), (1, 0, [1]), (1, 3, [1, 2]), (1, 1, [0]), (1, 1, [PRIME]), (1, 2, [1, 1])],
)
def test_splitting_refuses_bad_arguments(secret: int, threshold: int, xs: list[int]) -> None:
    with pytest.raises(ValueError):
        split(secret, threshold, xs, os.urandom)


@pytest.mark.parametrize("shares", [{}, {0: 5}, {PRIME: 5}])
def test_combining_refuses_no_shares_and_the_point_zero(shares: dict[int, int]) -> None:
    with pytest.raises(ValueError):
        combine(shares)


@given(SECRETS)
def test_shares_survive_the_wire(share: int) -> None:
    assert share_from_bytes(share_to_bytes(share)) == share


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33), PRIME.to_bytes(32, "little"), b"\xff" * 32])
def test_a_malformed_share_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        share_from_bytes(raw)
    assert caught.value.code == "share-malformed"
