"""The released model: a safetensors file with the plan's digest, never a pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from shared.parameters import Vector
from shared.plan import Plan
from shared.private_files import replacing_private_file


def write_model(path: Path, vector: Vector, plan: Plan) -> str:
    """Write the model (mode 0600) whole or not at all; once this has returned, it survives a power cut.

    Args:
        path: target file.
        vector: shape (layout.size,), dtype float32, finite.
        plan: names tensors and shapes; its digest goes into the file's metadata.

    Returns:
        SHA-256 of the file's bytes in hex.
    """
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in plan.layout.unflatten(vector).items()}
    metadata = {"plan_digest": plan.digest().hex(), "layout_digest": plan.layout.digest().hex()}
    with replacing_private_file(path) as partial:
        return write_tensors(partial, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Vector], metadata: dict[str, str] | None = None) -> str:
    """Write a safetensors file; no tensor is copied in memory, for each may be a whole model.

    Returns:
        SHA-256 of the file's bytes in hex.
    """
    safetensors.numpy.save_file(dict(tensors), path, metadata=metadata)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
