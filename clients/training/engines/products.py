"""Large float32 products by the fastest library that torch ships.

torch gives float32 products on x86 to MKL, which can be half as fast as oneDNN, that torch ships too, on processors of
another maker. Both multiply in full float32. Where oneDNN is not there, on CUDA, in other types and for small products
it is torch's own product.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1 << 20
"""Multiplications from which on oneDNN's start-up of some microseconds does not count."""


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right, shape (p, d), for shapes (rows, p) and (rows, d)."""
    if _suits(left, left.shape[0] * left.shape[1] * right.shape[1]):
        return _times_transposed(left.t(), right.t())
    return left.t() @ right


def gram(rows: Tensor) -> Tensor:
    """Return the products of a unit's rows with one another, shape (units, rows, rows).

    Args:
        rows: shape (units, rows, width).
    """
    if _suits(rows, rows.shape[1] * rows.shape[1] * rows.shape[2]):
        return torch.stack([_times_transposed(unit, unit) for unit in rows])
    return rows @ rows.mT


def _suits(value: Tensor, multiplications: int) -> bool:
    """Return whether oneDNN is there for a tensor and the product is large enough."""
    if value.device.type != "cpu" or value.dtype != torch.float32 or multiplications < LARGE:
        return False
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]  # torch does not annotate it


def _times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """Return left right^T by oneDNN."""
    # The only name under which torch exports oneDNN's product of dense tensors; its version is pinned exactly.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")  # noqa: SLF001
    return product
