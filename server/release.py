"""The released model: a safetensors file with the plan's digest, never a pickle."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import safetensors.numpy

from shared.model_file import file_digest
from shared.parameters import Vector
from shared.plan import Plan


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
