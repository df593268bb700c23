"""Every primitive, as it is used through the installed ``cryptography`` wheel, agrees with published vectors.

Published: SHA-256 (FIPS 180-4), Ed25519 (RFC 8032), X25519 (RFC 7748), HKDF (RFC 5869), ChaCha20-Poly1305 (RFC 8439),
AES-CTR (SP 800-38A), AES-GCM (the mode of SP 800-38D), ML-KEM-768 with X25519 (the X-Wing draft), HPKE's key schedule
(RFC 9180). No published vector has our whole HPKE suite, so what it must give is computed here from the two published
halves. All of them stand in ``tests/vectors/primitives.json``. Shamir's sharing, our own, is in ``secagg_v1.json``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from shared.codec import sha256
from shared.crypto.keys import context, expand, extract
from shared.crypto.seal import SealingKey, close_envelope, open_envelope, seal
from shared.crypto.stream import KeyStream, Scratch, ctr_segment, gcm_segment
from shared.errors import ProtocolError
from shared.identity import IdentityKey

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "primitives.json").read_text())


def cases(primitive: str) -> list[Any]:
    """The vectors of a primitive, each with its bytes read from hex."""

    def read(case: dict[str, Any]) -> dict[str, Any]:
        return {name: bytes.fromhex(value) if isinstance(value, str) else value for name, value in case.items()}

    return [pytest.param(read(case), id=f"{primitive}-{at}") for at, case in enumerate(VECTORS[primitive]["cases"])]


def only(primitive: str) -> dict[str, Any]:
    """The one vector of a primitive."""
    (case,) = cases(primitive)
    found: dict[str, Any] = case.values[0]
    return found


def test_every_vector_says_where_it_comes_from() -> None:
    assert all(entry["source"] and entry["kind"].startswith("published") for entry in VECTORS.values())


@pytest.mark.parametrize("case", cases("sha256"))
def test_sha_256(case: dict[str, bytes]) -> None:
    assert hashlib.sha256(case["message"]).digest() == case["digest"]
    prefixed = len(case["message"]).to_bytes(8, "big") + case["message"]
    assert sha256(case["message"]) == hashlib.sha256(prefixed).digest()


@pytest.mark.parametrize("case", cases("ed25519"))
def test_ed25519(case: dict[str, bytes]) -> None:
    private = Ed25519PrivateKey.from_private_bytes(case["private"])
    assert private.sign(case["message"]) == case["signature"]
    ours = IdentityKey.from_private_bytes(case["private"])
    assert ours.public == case["public"]
    assert ours.sign("note", case["message"]) == private.sign(b"cityfed/1/note\x00" + case["message"])


@pytest.mark.parametrize("case", cases("x25519"))
def test_x25519(case: dict[str, bytes]) -> None:
    private = X25519PrivateKey.from_private_bytes(case["private"])
    assert private.exchange(X25519PublicKey.from_public_bytes(case["peer"])) == case["shared"]


@pytest.mark.parametrize("case", cases("hkdf_sha256"))
def test_hkdf(case: dict[str, bytes]) -> None:
    length = len(case["okm"])
    whole = HKDF(algorithm=SHA256(), length=length, salt=case["salt"], info=case["info"])
    assert whole.derive(case["material"]) == case["okm"]
    assert HKDFExpand(algorithm=SHA256(), length=length, info=case["info"]).derive(case["prk"]) == case["okm"]
    # Ours adds the label and takes 32 bytes; the extracted key in the middle is the published one.
    assert extract(case["material"], case["salt"], "root", "a") == expand(case["prk"], "root", "a")
    info = context("root", "a")
    assert expand(case["prk"], "root", "a") == hmac.digest(case["prk"], info + b"\x01", "sha256")


@pytest.mark.parametrize("case", cases("chacha20_poly1305"))
def test_chacha20_poly1305(case: dict[str, bytes]) -> None:
    def nonce(count: int) -> bytes:
        assert count == len(case["nonce"])
        return case["nonce"]

    envelope = close_envelope(case["key"], case["plaintext"], case["associated"], entropy=nonce)
    assert envelope == case["nonce"] + case["sealed"]
    assert open_envelope(case["key"], envelope, case["associated"]) == case["plaintext"]


@pytest.mark.parametrize("case", cases("aes_256_ctr"))
def test_aes_256_ctr(case: dict[str, bytes]) -> None:
    cipher = Cipher(algorithms.AES(case["key"]), modes.CTR(case["counter"])).encryptor()
    assert cipher.update(case["plaintext"]) == case["ciphertext"]


@pytest.mark.parametrize("case", cases("aes_256_gcm"))
def test_aes_256_gcm(case: dict[str, bytes]) -> None:
    cipher = Cipher(algorithms.AES(case["key"]), modes.GCM(case["nonce"])).encryptor()
    assert cipher.update(case["plaintext"]) + cipher.finalize() == case["ciphertext"]
    assert cipher.tag == case["tag"]
    segment = int.from_bytes(case["nonce"], "big")
    stream = bytes(one ^ other for one, other in zip(case["plaintext"], case["ciphertext"], strict=True))
    assert gcm_segment(case["key"], segment).update(bytes(len(stream))) == stream
    assert ctr_segment(case["key"], segment).update(bytes(len(stream))) == stream


def test_the_mask_stream_begins_with_the_published_bits() -> None:
    case = cases("aes_256_gcm")[1].values[0]
    assert KeyStream(case["key"], Scratch()).read(4).tobytes() == case["ciphertext"]


# --- ML-KEM-768 with X25519, and HPKE over it --------------------------------------------------------------


def halves(seed: bytes) -> tuple[bytes, bytes]:
    """The draft's expansion of a seed: 64 bytes for ML-KEM-768, 32 for X25519."""
    expanded = hashlib.shake_256(seed).digest(96)
    return expanded[:64], expanded[64:]


def sealing_key(seed: bytes) -> SealingKey:
    parts = iter(halves(seed))
    return SealingKey.generate(lambda _count: next(parts))


def shared_secret(seed: bytes, encapsulation: bytes) -> bytes:
    """The draft's decapsulation from the two primitives: SHA3-256(ss_M || ss_X || ct_X || pk_X || label)."""
    mlkem, x25519 = halves(seed)
    lattice = MLKEM768PrivateKey.from_seed_bytes(mlkem).decapsulate(encapsulation[:1088])
    curve = X25519PrivateKey.from_private_bytes(x25519)
    point = encapsulation[1088:]
    agreed = curve.exchange(X25519PublicKey.from_public_bytes(point))
    return hashlib.sha3_256(lattice + agreed + point + curve.public_key().public_bytes_raw() + b"\\.//^\\").digest()


def key_schedule(kem: int, shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of RFC 9180, section 5.1: base mode, HKDF-SHA256, ChaCha20-Poly1305."""
    suite = b"HPKE" + kem.to_bytes(2, "big") + b"\x00\x01\x00\x03"

    def labeled_extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")

    def labeled_expand(key: bytes, label: bytes, about: bytes, length: int) -> bytes:
        labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + about
        return hmac.digest(key, labeled + b"\x01", "sha256")[:length]

    about = b"\x00" + labeled_extract(b"", b"psk_id_hash", b"") + labeled_extract(b"", b"info_hash", info)
    secret = labeled_extract(shared, b"secret", b"")
    return labeled_expand(secret, b"key", about, 32), labeled_expand(secret, b"base_nonce", about, 12)


XWING = 0x647A


def test_the_key_schedule_of_this_test_is_rfc_9180s() -> None:
    case = only("hpke_schedule")
    assert key_schedule(case["kem"], case["shared"], case["info"]) == (case["key"], case["nonce"])


def test_the_hybrid_key_pair_is_the_published_one() -> None:
    case = only("ml_kem_768_x25519")
    assert hashlib.sha256(sealing_key(case["seed"]).public).digest() == case["public_sha256"]
    assert shared_secret(case["seed"], case["encapsulation"]) == case["shared"]


def test_a_seal_to_the_published_key_pair_opens() -> None:
    """What an independent sender would seal with the published encapsulation."""
    case = only("ml_kem_768_x25519")
    key, nonce = key_schedule(XWING, case["shared"], b"info")
    sealed = case["encapsulation"] + ChaCha20Poly1305(key).encrypt(nonce, b"seed", b"")
    ours = sealing_key(case["seed"])
    assert ours.open(sealed, b"info") == b"seed"
    with pytest.raises(ProtocolError):
        ours.open(sealed, b"other")


def test_an_independent_receiver_opens_our_seals() -> None:
    seed = os.urandom(32)
    sealed = seal(sealing_key(seed).public, b"seed", b"info")
    encapsulation, ciphertext = sealed[:1120], sealed[1120:]
    key, nonce = key_schedule(XWING, shared_secret(seed, encapsulation), b"info")
    assert ChaCha20Poly1305(key).decrypt(nonce, ciphertext, b"") == b"seed"
