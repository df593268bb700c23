"""What a department holds while it answers one round of a large model, and what it keeps of it.

Everything is the production path but the trainer, whose own memory is another matter: it returns an update at once.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.department import outgoing_facts
from clients.participant import Participant
from clients.training.train import DpUpdate, Trainer
from server.asks import ModelBasis
from shared.identity import DepartmentId
from shared.messages import MaskedUpdate, UpdateRequest, decode_reply, decode_request
from shared.parameters import Layout, TensorSpec, Vector, model_hash, vector_from_bytes, vector_to_bytes
from shared.tasks.features import HASHED_WORDS_SHA256
from simulation.network import InMemoryTransport
from tests.city import City, open_city, small_scenario

POLICE = DepartmentId("police")
SIZE = 3_000_001
VECTOR = 4 * SIZE
SLACK = 4 << 20  # chunks, streams, the journal, the small messages; far below one vector
OVERHANG = 0.5  # of a vector: address space that msgspec sets aside beyond a long message and never touches
LAYOUT = Layout(tensors=(TensorSpec(name="head.weight", shape=(SIZE,)),))


class InstantTrainer(Trainer):
    """Returns an update that lies outside the plan's norm ball, so that it is projected."""

    def __init__(self) -> None:
        pass

    def train(self, parameters: Vector, *_: Any, **__: Any) -> DpUpdate:
        delta = np.full(parameters.size, 1.0, dtype=np.float32)
        delta.flags.writeable = False
        return DpUpdate(delta=delta, steps=1, engine="instant")

    def extras(self, *_: Any) -> Vector:
        return np.zeros(0, dtype=np.float32)


@dataclass
class Peak:
    """Vectors that were allocated on top of what stood before a call: at the highest point, and after it."""

    highest: float = 0.0
    left: float = 0.0


@contextmanager
def vectors(peak: Peak) -> Generator[None]:
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    yield
    left, highest = tracemalloc.get_traced_memory()
    peak.highest, peak.left = (highest - before) / VECTOR, (left - before) / VECTOR


@dataclass
class Watched:
    """A department's front door: gives it the instant trainer, and watches its memory in the update step."""

    participant: Participant
    updates: list[Peak] = field(default_factory=list)

    def handle(self, request: bytes) -> bytes:
        if not isinstance(decode_request(request), UpdateRequest):
            return self.participant.handle(request)
        session, peak = self.participant._session, Peak()
        assert session is not None
        session.trainer = InstantTrainer()
        with vectors(peak):
            reply = self.participant.handle(request)
        assert isinstance(decode_reply(reply), MaskedUpdate), self.participant.last_refusal
        self.updates.append(peak)
        return reply


def run_large(folder: Path, watch: Callable[[City], dict[DepartmentId, Watched]]) -> list[Peak]:
    """Run two rounds of a large model; returns what one department held in its update steps."""
    spec = small_scenario(folder).model.spec(HASHED_WORDS_SHA256)
    basis = ModelBasis(spec=spec, layout=LAYOUT, initial=np.zeros(SIZE, dtype=np.float32), weights_dir=None)
    with open_city(folder / "city", basis=basis) as city:
        doors = watch(city)
        tracemalloc.start()
        try:
            city.coordinator(InMemoryTransport({name: door.handle for name, door in doors.items()})).run(basis.initial)
        finally:
            tracemalloc.stop()
        assert city.watcher.gone == []
        return doors[POLICE].updates


def test_an_update_holds_the_request_the_update_and_one_vector_more(tmp_path: Path) -> None:
    first, second = run_large(
        tmp_path, lambda city: {name: Watched(participant) for name, participant in city.world.participants.items()}
    )
    # The model is in the request, which lies there before and is read where it lies.
    assert first.highest < 2 + OVERHANG + SLACK / VECTOR
    assert 1 <= first.left < 1 + OVERHANG + SLACK / VECTOR  # the reply, which may be asked for again
    # The answer of the round before is given up for the new one.
    assert second.highest < 1 + OVERHANG + SLACK / VECTOR
    assert abs(second.left) < SLACK / VECTOR


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        (model_hash, 0),
        (vector_to_bytes, 0),
        (lambda vector: vector_from_bytes(memoryview(b"x" + vector_to_bytes(vector))[1:], LAYOUT), 1),  # the message
    ],
    ids=["hash", "bytes", "unaligned"],
)
def test_a_model_is_read_where_it_lies(what: Callable[[Vector], object], limit: int) -> None:
    vector, peak = np.ones(SIZE, dtype=np.float32), Peak()
    tracemalloc.start()
    try:
        with vectors(peak):
            what(vector)
    finally:
        tracemalloc.stop()
    assert peak.highest < limit + SLACK / VECTOR


def test_an_outgoing_update_is_described_without_a_copy(tmp_path: Path) -> None:
    vector, peak = np.full(SIZE, 0.5, dtype=np.float32), Peak()
    spec = small_scenario(tmp_path).model.spec(HASHED_WORDS_SHA256)
    basis = ModelBasis(spec=spec, layout=LAYOUT, initial=np.zeros(SIZE, dtype=np.float32), weights_dir=None)
    with open_city(tmp_path / "city", basis=basis) as city:
        tracemalloc.start()
        try:
            with vectors(peak):
                facts = outgoing_facts(city.world.plan, vector)
        finally:
            tracemalloc.stop()
    assert peak.highest < SLACK / VECTOR
    assert facts.finite
    assert facts.norm == pytest.approx(0.5 * SIZE**0.5)
