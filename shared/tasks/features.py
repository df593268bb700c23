"""Features of a text that need no torch: hashed words, and the department's cache of encoder features."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shared.codec import sha256
from shared.errors import ModelError, SetupError

HASHED_WORDS = b"hashed-words: lower-cased words, keyed BLAKE2b, 256 signed buckets, unit length"
HASHED_WORDS_SHA256 = hashlib.sha256(HASHED_WORDS).hexdigest()
"""What a plan states as ``base_weights_sha256`` for the architecture without pretrained weights."""

BUCKETS = 256

Features = NDArray[np.float32]
"""One row a text, shape (n, width), each of unit length (or zero for a text without words)."""


def hashed_words(texts: Sequence[str]) -> Features:
    """Hash the lower-cased words of each text into 256 signed buckets and scale to unit length.

    The hash is keyed by a public constant: every department computes the same features and none is fitted.

    Returns:
        Shape (n, 256); a text without words is the zero row.
    """
    counts = np.zeros((len(texts), BUCKETS), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            bucket, sign = _bucket(word)
            row[bucket] += sign
    norms = np.linalg.norm(counts, axis=1, keepdims=True)
    counts /= np.where(norms > 0, norms, 1)
    return counts


@lru_cache(maxsize=1 << 16)
def _bucket(word: str) -> tuple[int, int]:
    """Return the bucket and the sign of a word."""
    digest = hashlib.blake2b(word.encode(), key=HASHED_WORDS[:12], digest_size=2).digest()
    return digest[0], 1 - 2 * (digest[1] & 1)


def feature_key(text: str, *, weights_sha256: str, max_tokens: int) -> bytes:
    """Return the key of a text's features, which depend on the weights, on where it is cut and on no other text."""
    return sha256(b"feature-alone", weights_sha256.encode(), str(max_tokens).encode(), text.encode())


class FeatureCache:
    """Encoder features in one safetensors file inside the department's own folder.

    The file holds hashes of texts and their features, is readable by its owner only and is replaced as a whole,
    so a crash leaves the old one or the new one.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[bytes, Features] | None = None

    def features(self, keys: Sequence[bytes], compute: Callable[[Sequence[int]], Features]) -> Features:
        """Return one row a key; rows that are missing are computed together, once, and written.

        Args:
            keys: from :func:`feature_key`, in the order of the texts.
            compute: gets positions in ``keys`` and returns their rows, shape (positions, width).

        Raises:
            ModelError: ``feature-cache-corrupt``.
            SetupError: ``feature-cache-write``.
        """
        rows = self._load()
        first_position = {key: position for position, key in reversed(list(enumerate(keys))) if key not in rows}
        missing = sorted(first_position.values())
        if missing:
            rows.update(zip((keys[position] for position in missing), compute(missing), strict=True))
            self._write(rows)
        return np.stack([rows[key] for key in keys])

    def _load(self) -> dict[bytes, Features]:
        """Read the file on first use."""
        if self._rows is None:
            self._rows = _read_rows(self._path) if self._path.exists() else {}
        return self._rows

    def _write(self, rows: dict[bytes, Features]) -> None:
        """Write all rows."""
        keys = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 32)
        data = save({"keys": keys, "features": np.stack(list(rows.values()))})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._path, data)
        except OSError as cause:
            raise SetupError("feature-cache-write", f"The feature cache {self._path} cannot be written.") from cause

    def __repr__(self) -> str:
        return f"FeatureCache({str(self._path)!r})"


def _read_rows(path: Path) -> dict[bytes, Features]:
    """Read keys and features of a cache file, strictly."""
    message = f"The feature cache {path} cannot be read; delete it and its features are computed again."
    try:
        tensors = load_file(path)
        keys, features = tensors["keys"], tensors["features"]
    except (SafetensorError, OSError, KeyError) as cause:
        raise ModelError("feature-cache-corrupt", message) from cause
    keyed = keys.dtype == np.uint8 and keys.shape == (len(features), 32)
    if not (keyed and features.dtype == np.float32 and features.ndim == 2 and np.isfinite(features).all()):
        raise ModelError("feature-cache-corrupt", message)
    return {key.tobytes(): row for key, row in zip(keys, features, strict=True)}


def _replace(path: Path, data: bytes) -> None:
    """Replace a file atomically; the temporary file of ``tempfile`` has mode 0600."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
