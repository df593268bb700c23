"""What travels from the authority's shelf: a listing, and one published thing for each call.

Both methods carry one transfer of :mod:`shared.channel` down and nothing up: what is asked for stands in the call's
metadata. No sockets and no clock here.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from shared.codec import Record
from shared.model_file import MODEL_FILE
from shared.release import CARD_FILE, RECORD_FILE

SERVICE: Final = "cityfed.Shelf"
LIST: Final = "List"
FETCH: Final = "Fetch"

ITEM_KEY: Final = "cityfed-item-bin"
"""Key of the gRPC metadata under which :data:`FETCH` names an :class:`Item`."""

MAX_LISTING_BYTES: Final = 1 << 20
GRACE_S: Final = 20.0
"""Time that a download may take on top of what the slowest rate explains, in seconds."""

MIN_BYTES_PER_S: Final = 64 * 1024.0
"""Slowest rate of a download; with the length it fixes the download's deadline."""

Kind = Literal["roster", "plan", "model", "model-record", "model-card"]
Name = Annotated[str, Meta(max_length=64, pattern=r"\A(?:[0-9a-f]{64})?\Z")]
Digits = Annotated[str, Meta(max_length=64, pattern=r"\A[0-9a-f]{64}\Z")]


MODEL_FILES: Final[dict[Kind, str]] = {"model": MODEL_FILE, "model-record": RECORD_FILE, "model-card": CARD_FILE}
"""The three items of a released model, with the files that they are on both sides."""


class Item(Record, frozen=True, kw_only=True):
    """One thing on the shelf.

    Attributes:
        kind: what it is.
        name: a plan's digest, or the run of a model, in hex; empty for the roster.
    """

    kind: Kind
    name: Name = ""


class Listing(Record, frozen=True, kw_only=True):
    """What lies on the shelf: whether a roster does, plans by digest, models by run."""

    roster: bool
    plans: Annotated[tuple[Digits, ...], Meta(max_length=10_000)]
    models: Annotated[tuple[Digits, ...], Meta(max_length=10_000)]


def deadline_s(length: int) -> float:
    """Return how long a transfer of this many bytes may take, in seconds."""
    return GRACE_S + length / MIN_BYTES_PER_S
