import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.crypto.stream import CHUNK_WORDS
from shared.errors import ProtocolError
from shared.secagg.ring import Encoder, decode_sum, encode_vector, fraction_bits, project

COUNTS = st.integers(1, 200)
BOUNDS = st.floats(min_value=2.0**-40, max_value=1e6, width=32)
LARGEST = 2**31 - 1


@given(COUNTS, BOUNDS)
@example(4, float(np.float32(1.9999999985)))
@example(4, float(np.nextafter(np.float32(2), np.float32(0))))
def test_fraction_bits_is_the_largest_number_for_which_no_sum_wraps(count: int, bound: float) -> None:
    bits = fraction_bits(count, bound)
    assert count * math.ceil(Fraction(bound) * 2**bits) <= LARGEST
    assert count * math.ceil(Fraction(bound) * 2 ** (bits + 1)) > LARGEST


@given(st.integers(1, 50), BOUNDS)
@example(4, float(np.float32(1.9999999985)))
def test_a_sum_of_vectors_at_the_bound_does_not_wrap(count: int, bound: float) -> None:
    bits = fraction_bits(count, bound)
    vector = np.array([bound, -bound], dtype=np.float32)
    total = np.zeros(2, dtype=np.uint32)
    for _ in range(count):
        total += encode_vector(vector, bits=bits, bound=bound)
    decoded = decode_sum(total, bits=bits)
    assert np.all(np.abs(decoded - count * np.array([bound, -bound])) <= count * 2.0 ** -(bits + 1))


def test_the_known_trap_of_a_bound_just_below_two_is_avoided() -> None:
    # With R = 1.9999999985 and four departments floor(log2(.)) says 28, and float32 rounds R to 2: 28 wraps.
    assert fraction_bits(4, float(np.float32(1.9999999985))) == 27


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan, 0.1, 1e30, 2.0**31, 2.0**-90])
def test_fraction_bits_refuses_other_bounds(bound: float) -> None:
    with pytest.raises(ValueError):
        fraction_bits(4, bound)


def test_fraction_bits_needs_a_participant() -> None:
    with pytest.raises(ValueError, match="at least one participant"):
        fraction_bits(0, 1.0)


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-0.5, 0.5, width=32)), st.integers(1, 30))
def test_the_error_of_a_coordinate_is_at_most_half_a_step(vector: np.ndarray, count: int) -> None:
    bits = fraction_bits(count, 0.5)
    decoded = decode_sum(encode_vector(vector, bits=bits, bound=0.5), bits=bits)
    assert np.all(np.abs(decoded - vector.astype(np.float64)) <= 2.0 ** -(bits + 1))


@pytest.mark.parametrize("at", [0, CHUNK_WORDS - 1, CHUNK_WORDS, CHUNK_WORDS + 2])
@pytest.mark.parametrize(
    ("value", "code"),
    [
        (math.nan, "update-not-finite"),
        (math.inf, "update-not-finite"),
        (-math.inf, "update-not-finite"),
        (float(np.nextafter(np.float32(0.5), np.float32(1))), "update-beyond-bound"),
        (-3e38, "update-beyond-bound"),
    ],
)
def test_a_bad_coordinate_is_refused_wherever_it_stands(at: int, value: float, code: str) -> None:
    vector = np.zeros(CHUNK_WORDS + 3, dtype=np.float32)
    vector[at] = value
    with pytest.raises(ProtocolError) as caught:
        encode_vector(vector, bits=fraction_bits(4, 0.5), bound=0.5)
    assert caught.value.code == code


def test_too_many_fraction_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="wrap"):
        Encoder(bits=fraction_bits(1, 0.5) + 1, bound=0.5)


@given(
    arrays(np.float32, st.integers(1, 30), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.floats(min_value=2.0**-20, max_value=1e6, width=32),
)
def test_projection_ends_inside_the_ball_and_leaves_the_inside_alone(vector: np.ndarray, bound: float) -> None:
    projected = project(vector, bound)
    assert projected.dtype == np.float32
    assert np.linalg.norm(projected.astype(np.float64)) <= bound
    norm = np.linalg.norm(vector.astype(np.float64))
    if norm <= bound:
        assert np.array_equal(projected, vector)
    else:
        assert np.linalg.norm(projected.astype(np.float64)) >= bound * (1 - 2.0**-20)
    encode_vector(projected, bits=fraction_bits(3, bound), bound=bound)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_projection_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ProtocolError) as caught:
        project(np.array([0.0, value], dtype=np.float32), 1.0)
    assert caught.value.code == "update-not-finite"
