"""The parameter layout: which tensors travel, in which order, as one float32 vector.

The layout is pinned by the signed plan and hashed into every round, so no side can slip in another
architecture (protocol 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from shared.codec import Encoded, Record, encode, sha256
from shared.errors import ModelError

Vector = NDArray[np.float32]
"""A flat parameter or update vector, shape (layout.size,), dtype float32."""


MAX_COORDINATES = 1 << 28
"""Most coordinates of a layout: a vector of them is as long as the longest message."""

Label = Annotated[str, Meta(max_length=200)]


class TensorSpec(Record, frozen=True, kw_only=True):
    """Name and shape of one tensor."""

    name: Label
    shape: Annotated[tuple[int, ...], Meta(max_length=8)]

    def __post_init__(self) -> None:
        if not self.name or any(dim < 1 for dim in self.shape):
            raise ValueError("a tensor has a name and positive dimensions")

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


class ExtraSpec(Record, frozen=True, kw_only=True):
    """One declared extra coordinate: a noised sum over units, released once a round (protocol 4).

    Attributes:
        name: what is summed; see :data:`shared.privacy.extras.KNOWN`.
        unit_bound: each unit's value is clamped to [0, unit_bound], so one unit moves the sum by at most this.
        sample_rate: Poisson rate at which units are drawn for this sum alone; 1 takes all of them.
        noise_multiplier: the noise's standard deviation over ``unit_bound``; 0 is refused by every department.
        max_abs: the noised sum is clamped to [-max_abs, max_abs].
        scale: what the clamped sum is multiplied with before it is encoded.
        releases: how often a round.
    """

    name: Label
    unit_bound: float
    sample_rate: float
    noise_multiplier: float
    max_abs: float
    scale: float
    releases: Literal[1] = 1

    def __post_init__(self) -> None:
        if not (0 < self.unit_bound <= 1e6 and 0 < self.sample_rate <= 1 and 0 <= self.noise_multiplier <= 1e6):
            raise ValueError(
                "`unit_bound` lies in (0, 1000000], `sample_rate` in (0, 1] and `noise_multiplier` in [0, 1000000]"
            )
        if not (0 < self.max_abs <= 1e12 and 0 < self.scale <= 1e12):
            raise ValueError("`max_abs` and `scale` lie in (0, 1e12]")

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on the sum, in the value's own unit."""
        return self.noise_multiplier * self.unit_bound


class Layout(Record, frozen=True, kw_only=True):
    """The tensors of an update in order, then the declared extra coordinates."""

    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=10_000)]
    extras: Annotated[tuple[ExtraSpec, ...], Meta(max_length=1000)] = ()

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors] + [extra.name for extra in self.extras]
        if not self.tensors or len(set(names)) != len(names):
            raise ValueError("a layout has at least one tensor and no name twice")
        if self.total_size > MAX_COORDINATES:
            raise ValueError(f"a layout has at most {MAX_COORDINATES} coordinates")

    @property
    def size(self) -> int:
        """Number of coordinates of the model part."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def total_size(self) -> int:
        """Number of coordinates with the extras."""
        return self.size + len(self.extras)

    def model_part(self) -> Layout:
        """Return the layout of the model alone."""
        return Layout(tensors=self.tensors)

    def digest(self) -> bytes:
        """Return the hash that enters the round's ``sid``."""
        return sha256(b"layout", encode(self))

    def flatten(self, tensors: Mapping[str, NDArray[np.float32]]) -> Vector:
        """Concatenate named tensors into one vector.

        Args:
            tensors: exactly the tensors of the layout, each with its shape and dtype float32.

        Raises:
            ModelError: ``tensor-names``, ``tensor-shape``.
        """
        if set(tensors) != {tensor.name for tensor in self.tensors}:
            raise ModelError("tensor-names", f"Tensors are {sorted(tensors)}, the layout has {self._names()}.")
        for spec in self.tensors:
            if tensors[spec.name].shape != spec.shape or tensors[spec.name].dtype != np.float32:
                raise ModelError("tensor-shape", f"Tensor {spec.name} must be float32 of shape {spec.shape}.")
        return np.concatenate([tensors[spec.name].reshape(-1) for spec in self.tensors])

    def unflatten(self, vector: Vector) -> dict[str, NDArray[np.float32]]:
        """Cut a vector of shape (size,) into named tensors (views, not copies).

        Raises:
            ModelError: ``vector-shape``, ``vector-not-finite``.
        """
        self.check(vector)
        cuts = np.cumsum([0, *(spec.size for spec in self.tensors)])
        return {
            spec.name: vector[start:stop].reshape(spec.shape)
            for spec, start, stop in zip(self.tensors, cuts[:-1], cuts[1:], strict=True)
        }

    def check(self, vector: Vector) -> None:
        """Refuse a vector of another shape or dtype, or one with NaN or infinity.

        Raises:
            ModelError: ``vector-shape``, ``vector-not-finite``.
        """
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise ModelError("vector-shape", f"The vector must be float32 of shape ({self.size},).")
        if not is_finite(vector):
            raise ModelError("vector-not-finite", "The vector holds NaN or infinity.")

    def _names(self) -> list[str]:
        """Sorted tensor names, for messages."""
        return sorted(tensor.name for tensor in self.tensors)


def with_extras(vector: Vector, extras: Vector) -> Vector:
    """Return the model's part with the extra coordinates behind it; without any, the vector itself and no copy."""
    return np.concatenate([vector, extras]) if extras.size else vector


def is_finite(vector: Vector) -> bool:
    """Return whether there is neither NaN nor infinity, without memory for an answer per coordinate.

    Args:
        vector: shape (size,) with a size of at least 1.
    """
    return math.isfinite(vector.min()) and math.isfinite(vector.max())  # both are NaN when one coordinate is


def vector_to_bytes(vector: Vector) -> memoryview:
    """Return a view of a vector's little-endian float32 bytes, the only form in which a model travels."""
    return np.ascontiguousarray(vector, dtype="<f4").view(np.uint8).data.toreadonly()


def vector_from_bytes(data: Encoded, layout: Layout) -> Vector:
    """Read a model vector strictly.

    Returns:
        A read-only view of ``data``, which need not be aligned.

    Raises:
        ModelError: ``vector-bytes`` when the length is wrong, ``vector-not-finite``.
    """
    if len(data) != 4 * layout.size:
        raise ModelError("vector-bytes", f"The model has {len(data)} bytes, the layout needs {4 * layout.size}.")
    vector = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    vector.flags.writeable = False
    layout.check(vector)
    return vector


def model_hash(vector: Vector) -> bytes:
    """Return the hash of a model that enters the round's ``sid``."""
    return sha256(b"model", vector_to_bytes(vector))
