"""Where tensors live: one code path for CPU and CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from shared.errors import SetupError

DeviceName = Literal["auto", "cpu", "cuda"]


def resolve_device(name: DeviceName) -> torch.device:
    """Return the device that a setting names; ``auto`` is CUDA where there is one.

    Float32 products are set to full precision, because the clip bound does not hold under TF32 (privacy 3).

    Raises:
        SetupError: ``cuda-missing`` when ``cuda`` is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise SetupError("cuda-missing", 'Device "cuda" is asked for, but torch finds no CUDA device here.')
    torch.set_float32_matmul_precision("highest")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@contextmanager
def one_thread(*, when: bool) -> Iterator[None]:
    """Run torch on one thread for a while, if ``when`` holds.

    A step of a head is so little work that waking other threads takes longer than the step itself, many times
    longer on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if when else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
