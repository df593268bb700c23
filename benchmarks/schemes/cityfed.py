"""CityFed: the real protocol with real messages, and the floor beside it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from schemes.least import chunks, client_floor, server_floor
from schemes.measuring import BOUND, Memory, Meter, Row, timed

from shared.codec import encode
from shared.crypto.stream import RING_DTYPE
from shared.identity import IdentityKey, Roster
from shared.messages import MaskedUpdate, decode_reply
from shared.parameters import model_hash
from shared.plan import default_aggregation
from shared.secagg import masking
from shared.secagg.epoch import EpochContext, open_epoch
from shared.secagg.ring import RingSum, fraction_bits
from shared.secagg.server import EpochCollector, RoundCollector
from shared.secagg.terms import RoundTerms


class MeteredHash:
    """The hash of a masked vector; tells its CPU seconds apart, in whichever thread it runs."""

    start = staticmethod(masking.vector_hash)
    cpu_s = 0.0

    def __init__(self) -> None:
        self._hash = self.start()

    def update(self, data: memoryview, /) -> None:
        start = time.thread_time()
        self._hash.update(data)
        MeteredHash.cpu_s += time.thread_time() - start

    def digest(self) -> bytes:
        return self._hash.digest()

    @classmethod
    def take(cls) -> float:
        """Return the seconds since the last time this was asked."""
        spent, cls.cpu_s = cls.cpu_s, 0.0
        return spent


masking.vector_hash = MeteredHash  # type: ignore[assignment]  # it does all that the loops ask of a hash


class City:
    """Departments with one standing epoch; rounds of any size follow one another."""

    def __init__(self, count: int) -> None:
        self.names = tuple(f"department-{number:02}" for number in range(count))
        self.keys = {name: IdentityKey.generate() for name in self.names}
        members = {name: key.public for name, key in self.keys.items()}
        self.roster = Roster(city="Riverton", serial=1, members=members)
        self.limits = default_aggregation(count, bound=BOUND)
        self.round = 0
        epoch = EpochCollector(bytes(32), 1, self.names, self.roster)
        advertised, sealed = {}, {}
        for name in self.names:
            advertised[name], advert = open_epoch(self._context(name), self.keys[name])
            epoch.receive_advert(name, advert)
        for name, request in epoch.seal_requests().items():
            sealed[name], seals = advertised[name].receive(request)
            epoch.receive_seals(name, seals)
        self.ready = {name: state.receive(epoch.seals_for()) for name, state in sealed.items()}
        self.epoch_id = epoch.epoch_id

    def _context(self, name: str) -> EpochContext:
        return EpochContext(
            run=bytes(32),
            epoch=1,
            department=name,
            cohort=self.names,
            roster=self.roster,
            policy_hash=bytes(32),
            heads_seen={},
            own_sequence=0,
        )

    def terms(self, size: int) -> RoundTerms:
        """Return the terms of the next round."""
        self.round += 1
        digests = dict.fromkeys(("run", "plan_digest", "model_hash", "layout_digest", "privacy_digest"), bytes(32))
        return RoundTerms(
            **digests,
            package_digest="sha256:0",
            epoch_id=self.epoch_id,
            round=self.round,
            participants=self.names,
            dimension=size,
            ring_bits=32,
            fraction_bits=fraction_bits(len(self.names), BOUND),
            bound=BOUND,
            threshold=self.limits.threshold,
            min_contributors=self.limits.min_contributors,
            max_colluders=self.limits.max_colluders,
        )


@dataclass
class Costs:
    """What repeated rounds cost, and the floor beside each step, so that a busy machine slows both down."""

    client: list[float] = field(default_factory=list)
    client_digest: list[float] = field(default_factory=list)
    client_floor: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    server_digest: list[float] = field(default_factory=list)
    server_floor: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    client_bytes: int = 0


def play(city: City, memory: Memory, dropped: int, costs: Costs) -> NDArray[np.float64]:
    """Run one round through real messages and return the decoded sum."""
    terms, staying = city.terms(memory.size), len(city.names) - dropped
    collector = RoundCollector(terms, city.roster)
    server, hashing = Meter(), 0.0
    states: dict[str, Any] = {}
    for index, name in enumerate(city.names):
        sent = upload(city, index, terms=terms, memory=memory, states=states, costs=costs)
        costs.client_bytes = max(costs.client_bytes, len(sent))
        if index < staying:
            received = decode_reply(sent)
            assert isinstance(received, MaskedUpdate)
            lying = received.words
            with server:
                collector.receive_update(name, received)
            hashing += MeteredHash.take()
    unmasked = settle(collector, states, server)
    costs.server.append(server.total - hashing)
    costs.server_digest.append(hashing)
    with (least := Meter()):
        server_floor(lying, staying, staying * (1 + dropped))
    costs.server_floor.append(least.total)
    with (decoding := Meter()):
        for part in chunks(memory.size):
            memory.decoded[part] = unmasked[part]
    costs.decode.append(decoding.total)
    return memory.decoded


def upload(city: City, index: int, *, terms: RoundTerms, memory: Memory, states: dict[str, Any], costs: Costs) -> bytes:
    """Mask one department's update and return its message."""
    name, vector = city.names[index], memory.draw(index)
    with (client := Meter()):
        city.ready[name], keyed = city.ready[name].begin(terms)
        states[name], update = keyed.mask(
            vector, identity=city.keys[name], ledger_sequence=1, ledger_head=bytes(32), out=vector.view(RING_DTYPE)
        )
    hashing = MeteredHash.take()
    costs.client.append(client.total - hashing)
    costs.client_digest.append(hashing)
    sent = encode(update)
    memory.draw(index)  # the words have taken the update's place, as they do at a department
    with (least := Meter()):
        client_floor(memory, len(city.names))
    costs.client_floor.append(least.total)
    return sent


def settle(collector: RoundCollector, states: dict[str, Any], server: Meter) -> RingSum:
    """Confirm, reveal and unmask; the meter runs while the coordinator works."""
    with server:
        questions = collector.confirm_requests()
    for name, question in questions.items():
        states[name], answer = states[name].confirm(question)
        with server:
            collector.receive_confirmation(name, answer)
    with server:
        asked = collector.reveal_requests()
    for name, request in asked.items():
        _, reveal = states[name].reveal(request, heads_seen={})
        with server:
            collector.receive_reveal(name, reveal)
    with server:
        return collector.unmask()


def rows(city: City, memory: Memory, dropped: int) -> list[Row]:
    """Measure the floor and CityFed: several rounds, or one where a round takes long."""
    count, costs = len(city.names), Costs()
    for _ in range(min(max(500_000_000 // (count * memory.size), 1), 7)):
        found = play(city, memory, dropped, costs)
    common: dict[str, Any] = {"n": count, "parameters": memory.size, "bits": 32, "dropped": dropped}
    least = Row(
        **common,
        scheme="floor",
        client_cpu_s=statistics.median(costs.client_floor),
        server_cpu_s=statistics.median(costs.server_floor),
        client_bytes=4 * memory.size,
    )
    ours = Row(
        **common,
        scheme="cityfed",
        client_cpu_s=statistics.median(costs.client),
        server_cpu_s=statistics.median(costs.server),
        digest_cpu_s=statistics.median(costs.client_digest) + timed(lambda: model_hash(memory.update), 3),
        server_digest_cpu_s=statistics.median(costs.server_digest),
        decode_cpu_s=statistics.median(costs.decode),
        client_bytes=costs.client_bytes,
        max_error=memory.error(found, count - dropped),
    )
    return [least, ours]
