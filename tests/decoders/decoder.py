"""One reader of bytes from outside, and readers of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from shared.codec import Record, decode, encode
from shared.errors import CityFedError
from shared.identity import Roster
from shared.plan import Plan
from shared.secagg.terms import RoundTerms
from tests.mutations import Mutation, mutate_tree


@dataclass(frozen=True)
class Decoder:
    """One reader.

    Attributes:
        read: takes bytes.
        seeds: inputs that it reads without complaint.
        mutate: how an input is changed.
        share: how many inputs of a million it gets; slow readers get fewer.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    mutate: Mutation = field(default=mutate_tree, repr=False)
    share: int = 20_000

    def refuses(self, data: bytes) -> bool:
        """Read; anything but a CityFedError falls through."""
        try:
            self.read(data)
        except CityFedError:
            return True
        return False

    def assert_taken_or_refused(self, data: bytes) -> None:
        """Read; anything but a CityFedError is a failure that tells the input."""
        try:
            self.refuses(data)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} from {data[:500]!r}") from error

    def inputs(self, random: Random) -> Iterator[bytes]:
        """Yield mutated inputs without end."""
        while True:
            yield self.mutate(random.choice(self.seeds), random)


def record_decoder(record: type[Any], seed: Record, error: type[CityFedError] | None = None) -> Decoder:
    """A record by itself, and what is computed from it."""
    options: dict[str, Any] = {} if error is None else {"error": error}
    return Decoder(lambda data: use(decode(data, record, **options)), (encode(seed),))


def use(value: object) -> None:
    """Everything that a decoded record can be asked."""
    if isinstance(value, Plan):
        value.digest(), value.run_id(), value.cohort, value.attempts, value.layout.total_size
        value.aggregation.admissible_for(value.roster_size)
    elif isinstance(value, Roster):
        value.digest(), value.ordered()
    elif isinstance(value, RoundTerms):
        value.sid(), value.points()
    repr(value)
    if isinstance(value, msgspec.Struct):
        encode(value)
