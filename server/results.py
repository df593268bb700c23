"""What a run shows while it goes on and when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from server.records import RoundSummary
from shared.errors import RoundAbortedError
from shared.parameters import Vector
from shared.privacy.extras import NoisedMetric


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What a finished round shows: nothing but the sum's consequences and who took part."""

    summary: RoundSummary
    model: Vector

    @property
    def round(self) -> int:
        """The round's number."""
        return self.summary.round

    @property
    def survivors(self) -> tuple[str, ...]:
        """Who is in the sum."""
        return self.summary.survivors

    @property
    def dropouts(self) -> tuple[str, ...]:
        """Who was in the epoch and is not in the sum."""
        return self.summary.dropouts

    @property
    def metrics(self) -> tuple[NoisedMetric, ...]:
        """The extra coordinates of the sum, about the model that the round started from."""
        return self.summary.metrics


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The released model and the rounds that led to it."""

    model: Vector
    rounds: tuple[RoundSummary, ...]


class RunObserver(Protocol):
    """Hears what happens in a run; must not change it."""

    def phase(self, round_number: int, phase: str) -> None:
        """A step of a round begins."""

    def missing(self, round_number: int, step: str, department: str, status: str) -> None:
        """A department gave no usable answer."""

    def closed(self, result: RoundResult) -> None:
        """A round is finished."""

    def failed(self, round_number: int, error: RoundAbortedError) -> None:
        """A round ended without a sum."""


class SilentObserver:
    """The null observer."""

    def phase(self, round_number: int, phase: str) -> None:
        """Ignore."""

    def missing(self, round_number: int, step: str, department: str, status: str) -> None:
        """Ignore."""

    def closed(self, result: RoundResult) -> None:
        """Ignore."""

    def failed(self, round_number: int, error: RoundAbortedError) -> None:
        """Ignore."""
