"""The frozen epoch and round of ``tests/vectors`` come out byte for byte, and an independent reading agrees."""

import hmac
import json
import math
import runpy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from shared.messages import MaskedUpdate, Reveal

VECTORS = Path(__file__).parents[2] / "vectors"
PRIME = 2**255 - 19


@pytest.fixture(scope="module")
def frozen() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / "secagg_v1.json").read_text(encoding="utf-8"))
    return loaded


def test_the_frozen_epoch_and_round_come_out_byte_for_byte(frozen: dict[str, Any]) -> None:
    again = runpy.run_path(str(VECTORS / "generate_secagg.py"))["play"](frozen["seals"])
    assert list(again) == list(frozen)
    for part, value in again.items():
        assert json.loads(json.dumps(value)) == frozen[part], part


def lengthy(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def expand(key: bytes, *parts: bytes) -> bytes:
    """HKDF-Expand of one block, from the standard library alone."""

    return hmac.digest(key, lengthy(*parts) + b"\x01", "sha256")


def lagrange(shares: dict[int, int]) -> bytes:
    total = 0
    for x, y in shares.items():
        weights = [other * pow(other - x, -1, PRIME) for other in shares.keys() - {x}]
        total += y * math.prod(weights)
    return (total % PRIME).to_bytes(32, "little")


def stream(key: bytes, words: int) -> Any:
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(15) + b"\x02")).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * words)), dtype="<u4").astype(np.int64)


def test_an_independent_reading_of_the_frozen_messages_gives_the_sum(frozen: dict[str, Any]) -> None:
    sid, names = bytes.fromhex(frozen["sid"]), sorted(frozen["adverts"])
    reveals = {
        names.index(name) + 1: msgspec.msgpack.decode(bytes.fromhex(raw), type=Reveal)
        for name, raw in frozen["reveals"].items()
    }
    total = np.zeros(5, dtype=np.int64)
    plain = np.zeros(5)
    for name, raw in frozen["updates"].items():
        update = msgspec.msgpack.decode(bytes.fromhex(raw), type=MaskedUpdate)
        total += np.frombuffer(update.words, dtype="<u4")
        mine = {x: int.from_bytes(reveal.self_shares[name], "little") for x, reveal in reveals.items()}
        total -= stream(expand(lagrange(mine), b"cityfed/1/self-stream", sid, name.encode()), 5)
        pair = {x: int.from_bytes(reveal.pair_shares[name]["police"], "little") for x, reveal in reveals.items()}
        low, high = sorted((name, "police"))
        key = expand(lagrange(pair), b"cityfed/1/pair-stream", sid, low.encode(), high.encode())
        total -= stream(key, 5) if name == low else -stream(key, 5)
        plain += np.array(runpy.run_path(str(VECTORS / "generate_secagg.py"))["VECTORS"][name])
    signed = (total + 2**31) % 2**32 - 2**31
    assert (signed * 2.0**-28).tolist() == frozen["sum"]
    assert np.abs(plain - frozen["sum"]).max() < 1e-7
