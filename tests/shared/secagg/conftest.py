"""A small city that runs the real protocol in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from shared.identity import IdentityKey, Roster, Signed, sign_record
from shared.messages import MaskedUpdate
from shared.plan import default_aggregation
from shared.secagg.epoch import EpochContext, ReadyEpoch, open_epoch
from shared.secagg.ring import fraction_bits
from shared.secagg.round import KeyedRound, MaskedRound
from shared.secagg.server import EpochCollector, RoundCollector
from shared.secagg.terms import RoundTerms

NAMES = ("environment", "health", "parks", "police", "transport", "water")
RUN = b"r" * 32
HEAD = b"h" * 32


class City:
    """``count`` departments with identities and one roster."""

    def __init__(self, count: int, *, dimension: int = 5, bound: float = 1.0) -> None:
        self.names = NAMES[:count]
        self.keys = {name: IdentityKey.generate() for name in self.names}
        members = {name: key.public for name, key in self.keys.items()}
        self.roster = Roster(city="Riverton", serial=1, members=members)
        self.limits = default_aggregation(count, bound=bound)
        self.dimension = dimension
        self.bound = bound

    def context(self, name: str, **changes: Any) -> EpochContext:
        values: dict[str, Any] = {
            "run": RUN,
            "epoch": 1,
            "department": name,
            "cohort": self.names,
            "roster": self.roster,
            "policy_hash": b"p" * 32,
            "heads_seen": {},
            "own_sequence": 0,
        }
        return EpochContext(**(values | changes))

    def ready(self) -> dict[str, ReadyEpoch]:
        """Run E1 to E3 with an honest coordinator."""
        collector = EpochCollector(RUN, 1, self.names, self.roster)
        advertised, sealed = {}, {}
        for name in self.names:
            advertised[name], reply = open_epoch(self.context(name), self.keys[name])
            collector.receive_advert(name, reply)
        for name, request in collector.seal_requests().items():
            sealed[name], sealing = advertised[name].receive(request)
            collector.receive_seals(name, sealing)
        states = {name: state.receive(collector.seals_for()) for name, state in sealed.items()}
        assert {state.epoch_id for state in states.values()} == {collector.epoch_id}
        return states

    def terms(self, epoch_id: bytes, *, round_number: int = 1, **changes: Any) -> RoundTerms:
        participants = changes.pop("participants", self.names)
        values: dict[str, Any] = {
            "run": RUN,
            "plan_digest": b"d" * 32,
            "package_digest": "sha256:0",
            "epoch_id": epoch_id,
            "round": round_number,
            "participants": participants,
            "model_hash": b"m" * 32,
            "layout_digest": b"l" * 32,
            "dimension": self.dimension,
            "ring_bits": 32,
            "fraction_bits": fraction_bits(len(participants), self.bound),
            "bound": self.bound,
            "threshold": self.limits.threshold,
            "min_contributors": self.limits.min_contributors,
            "max_colluders": self.limits.max_colluders,
            "privacy_digest": b"v" * 32,
        }
        return RoundTerms(**(values | changes))

    def mask(self, state: KeyedRound, name: str, vector: Any, *, sequence: int = 7) -> tuple[MaskedRound, MaskedUpdate]:
        return state.mask(vector, identity=self.keys[name], ledger_sequence=sequence, ledger_head=HEAD)

    def resign(self, name: str, label: str, signed: Signed, record_type: Any, **changes: Any) -> Signed:
        """What ``name`` could have signed instead."""
        record = msgspec.msgpack.decode(signed.body, type=record_type)
        return sign_record(self.keys[name], label, msgspec.structs.replace(record, **changes))


class Story:
    """One round, driven step by step, that tests bend where they like."""

    def __init__(
        self, city: City, *, vectors: Mapping[str, Any] | None = None, terms: RoundTerms | None = None
    ) -> None:
        self.city = city
        ready = city.ready()
        self.terms = terms or city.terms(next(iter(ready.values())).epoch_id)
        self.ready: dict[str, ReadyEpoch] = {}
        self.keyed: dict[str, KeyedRound] = {}
        for name, state in ready.items():
            self.ready[name], self.keyed[name] = state.begin(self.terms)
        generator = np.random.default_rng(0)
        self.vectors: dict[str, Any] = dict(vectors or {}) or {
            name: generator.uniform(-1, 1, city.dimension).astype(np.float32) for name in city.names
        }
        self.collector = RoundCollector(self.terms, city.roster)
        self.masked: dict[str, MaskedRound] = {}
        self.updates: dict[str, MaskedUpdate] = {}

    def upload(self, *names: str) -> Story:
        for name in names:
            self.masked[name], self.updates[name] = self.city.mask(self.keyed[name], name, self.vectors[name])
            self.collector.receive_update(name, self.updates[name])
        return self

    def confirm(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Confirm where asked; returns the states by name."""
        states: dict[str, Any] = dict(self.masked)
        for name, request in self.collector.confirm_requests().items():
            if names is None or name in names:
                states[name], reply = self.masked[name].confirm(request)
                self.collector.receive_confirmation(name, reply)
        return states

    def reveal(self, states: Mapping[str, Any], names: Sequence[str] | None = None) -> Story:
        for name, request in self.collector.reveal_requests().items():
            if names is None or name in names:
                _, reply = states[name].reveal(request, heads_seen={})
                self.collector.receive_reveal(name, reply)
        return self


@pytest.fixture(scope="session")
def city_of() -> Callable[..., City]:
    return City


@pytest.fixture(scope="session")
def story_of() -> Callable[..., Story]:
    return Story


@pytest.fixture(scope="session")
def four_departments() -> City:
    return City(4)


@pytest.fixture
def entropy() -> Callable[[int], bytes]:
    return os.urandom


@pytest.fixture
def full() -> Story:
    """Four departments, everybody uploaded."""
    city = City(4)
    return Story(city).upload(*city.names)


@pytest.fixture
def partial() -> Story:
    """Five departments with c = 2; police dropped, the others uploaded."""
    city = City(5)
    return Story(city).upload("environment", "health", "parks", "transport")


@pytest.fixture
def answers(partial: Story) -> tuple[Any, Any]:
    """A department that confirmed, and the honest request for its shares."""
    states = partial.confirm()
    return states["health"], partial.collector.reveal_requests()["health"]
