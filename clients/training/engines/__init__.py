"""Engines: ways to the sum of clipped per-unit gradients, behind one interface (privacy 2).

``head`` trains heads on fixed features, in closed form. For encoder layers ``bookkeeping`` never forms a per-unit
gradient and is the faster one; ``opacus`` knows more layers. All clip to the same norm over the same parameters, and
the preflight (:mod:`clients.training.preflight`) holds each of them against a loop over single units.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from clients.training.clipping import ClippedSum
from clients.training.engines import bookkeeping, head, opacus

EngineName = Literal["head", "opacus", "bookkeeping"]


@dataclass(frozen=True)
class Engine:
    """One way to the sum of clipped gradients.

    Attributes:
        name: what a setting calls it.
        knows: whether it has a rule for a trainable layer, with the options that the layer has.
        attach: gives the engine's sum for the time of a training round and leaves the model clean. The model stays
            the caller's: it is not wrapped, and its modes are not changed.
    """

    name: EngineName
    knows: Callable[[nn.Module], bool]
    attach: Callable[[nn.Module], AbstractContextManager[ClippedSum]]


BOOKKEEPING = Engine("bookkeeping", bookkeeping.knows, bookkeeping.attach)
OPACUS = Engine("opacus", opacus.knows, opacus.attach)
HEAD = Engine("head", head.knows, head.attach)

CANDIDATES: dict[str, tuple[Engine, ...]] = {
    "auto": (BOOKKEEPING, OPACUS),
    "bookkeeping": (BOOKKEEPING,),
    "opacus": (OPACUS,),
}
"""The engines for encoder layers that a setting allows, in the order in which they are tried."""
