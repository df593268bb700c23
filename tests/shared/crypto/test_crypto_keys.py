import copy
import hashlib
import hmac
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto.keys import OneUse, advance, commit, context, expand, extract, seed_bytes, to_seed

PARTS = st.lists(st.binary(max_size=6), max_size=4)


@given(PARTS, PARTS)
def test_different_parts_give_different_contexts(one: list[bytes], other: list[bytes]) -> None:
    assert (context("label", *one) == context("label", *other)) == (one == other)


def test_expand_is_hkdf_expand_of_rfc_5869_over_the_labelled_context() -> None:
    key = bytes(range(32))
    info = b"\x00\x00\x00\x0fcityfed/1/label\x00\x00\x00\x03abc\x00\x00\x00\x017"
    assert expand(key, "label", b"abc", 7) == hmac.new(key, info + b"\x01", hashlib.sha256).digest()


def test_extract_is_hkdf_of_rfc_5869() -> None:
    pseudorandom = hmac.new(b"salt", b"material", hashlib.sha256).digest()
    assert extract(b"material", b"salt", "root", "a") == expand(pseudorandom, "root", "a")


def test_a_root_moves_forward_step_by_step() -> None:
    root = os.urandom(32)
    assert advance(root, 0) == root
    assert advance(advance(root, 2), 3) == advance(root, 5) != root


@given(st.binary(min_size=32, max_size=32))
def test_a_seed_has_254_bits_and_keeps_them(raw: bytes) -> None:
    seed = to_seed(raw)
    assert seed < 2**254
    assert to_seed(seed_bytes(seed)) == seed


def test_commitments_under_different_labels_differ() -> None:
    assert commit("self-commitment", 5, "a") != commit("pair-commitment", 5, "a")


def test_secrets_leave_once() -> None:
    holder = OneUse("secret")
    assert holder.peek() == holder.take() == "secret"
    with pytest.raises(RuntimeError, match="used already"):
        holder.peek()
    with pytest.raises(RuntimeError, match="used already"):
        holder.take()


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_secrets_are_not_copied(duplicate: object) -> None:
    assert callable(duplicate)
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        duplicate(OneUse("secret"))
