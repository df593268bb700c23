"""The released model: a safetensors file with the plan's digest, never a pickle."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from shared.errors import ModelError
from shared.parameters import Layout, Vector
from shared.plan import Plan

MODEL_FILE = "model.safetensors"


def write_model(path: Path, vector: Vector, plan: Plan) -> str:
    """Write the model atomically and durably.

    Args:
        path: target file.
        vector: shape (layout.size,), dtype float32, finite.
        plan: names tensors and shapes; its digest goes into the file's metadata.

    Returns:
        SHA-256 of the file's bytes in hex.
    """
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in plan.layout.unflatten(vector).items()}
    metadata = {"plan_digest": plan.digest().hex(), "layout_digest": plan.layout.digest().hex()}
    data = safetensors.numpy.save(tensors, metadata=metadata)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return file_digest(data)


def read_model(path: Path, layout: Layout) -> Vector:
    """Read a model file strictly.

    Raises:
        ModelError: ``model-missing``, ``model-corrupt``, then those of :meth:`Layout.flatten` and :meth:`Layout.check`.
    """
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except OSError as cause:
        raise ModelError("model-missing", f"{path} cannot be read.") from cause
    except (safetensors.SafetensorError, ValueError, KeyError) as cause:
        raise ModelError("model-corrupt", f"{path} is not a valid safetensors file.") from cause
    vector = layout.flatten(tensors)
    layout.check(vector)
    return vector


def file_digest(data: bytes) -> str:
    """Return plain SHA-256 in hex, the figure that `sha256sum` prints."""
    return hashlib.sha256(data).hexdigest()
