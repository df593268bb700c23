"""The file of a model: safetensors, never a pickle."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import safetensors.numpy

from shared.errors import ModelError
from shared.parameters import Layout, Vector

MODEL_FILE = "model.safetensors"


def read_model(path: Path, layout: Layout) -> Vector:
    """Read a model file strictly.

    Raises:
        ModelError: ``model-missing``, then those of :func:`model_of`.
    """
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise ModelError("model-missing", f"{path} cannot be read.") from cause
    return model_of(data, layout, where=str(path))


def model_of(data: bytes, layout: Layout, *, where: str) -> Vector:
    """Read a model from the bytes of its file.

    Raises:
        ModelError: ``model-corrupt``, then those of :meth:`Layout.flatten` and :meth:`Layout.check`.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as cause:
        raise ModelError("model-corrupt", f"{where} is not a valid safetensors file.") from cause
    vector = layout.flatten(tensors)
    layout.check(vector)
    return vector


def file_digest(data: bytes) -> str:
    """Return plain SHA-256 in hex, the figure that `sha256sum` prints."""
    return hashlib.sha256(data).hexdigest()
