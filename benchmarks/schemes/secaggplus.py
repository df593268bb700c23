"""Flower's SecAgg+: its own functions, in the order in which its client and its server call them."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation import ndarrays_arithmetic as flower
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives import asymmetric
from numpy.typing import NDArray
from schemes.measuring import BOUND, Memory, Meter, Row

from shared.parameters import Vector
from shared.plan import default_aggregation

FLOWER_RANGE, RING = 1 << 22, 1 << 32  # Flower's defaults: 22 bits of a coordinate in a ring of 32


class FlowerCohort:
    """Key pairs and seeds of a SecAgg+ cohort in which everybody is everybody's neighbour."""

    def __init__(self, count: int) -> None:
        self.nodes = range(count)
        self.threshold = default_aggregation(count, bound=BOUND).threshold
        self.first = [asymmetric.generate_key_pairs() for _ in self.nodes]
        self.second = [asymmetric.generate_key_pairs() for _ in self.nodes]
        self.seed_shares: dict[int, list[bytes]] = {}
        self.key_shares: dict[int, list[bytes]] = {}

    def share(self, node: int) -> bytes:
        """Share a fresh seed and the first private key, encrypted for each neighbour; as `_share_keys`."""
        seed, key = os.urandom(32), asymmetric.private_key_to_bytes(self.first[node][0])
        self.seed_shares[node] = create_shares(seed, self.threshold, len(self.nodes))
        self.key_shares[node] = create_shares(key, self.threshold, len(self.nodes))
        for other in self.nodes:
            if other != node:
                shared_key = generate_shared_key(self.second[node][0], self.second[other][1])
                pieces = self.seed_shares[node][other], self.key_shares[node][other]
                encrypt(shared_key, share_keys_plaintext_concat(node, other, *pieces))
        return seed

    def mask(self, node: int, vector: Vector, seed: bytes) -> list[NDArray[Any]]:
        """Quantise and mask; as `_collect_masked_vectors` with the greatest weight."""
        scaled = flower.parameters_multiply([vector], 1.0)
        masked = flower.factor_combine(FLOWER_RANGE, quantize(scaled, BOUND, FLOWER_RANGE))
        shapes = flower.get_parameters_shape(masked)
        masked = flower.parameters_addition(masked, pseudo_rand_gen(seed, RING, shapes))
        masked = self.pairwise(node, masked, [other for other in self.nodes if other != node])
        return flower.parameters_mod(masked, RING)

    def pairwise(self, node: int, masked: list[NDArray[Any]], others: Sequence[int]) -> list[NDArray[Any]]:
        """Put a node's pairwise masks on."""
        for other in others:
            key = generate_shared_key(self.first[node][0], self.first[other][1])
            mask = pseudo_rand_gen(key, RING, flower.get_parameters_shape(masked))
            apply = flower.parameters_addition if node > other else flower.parameters_subtraction
            masked = apply(masked, mask)
        return masked

    def unmask(self, total: list[NDArray[Any]], dropped: int) -> NDArray[np.float64]:
        """Rebuild the seeds, take the masks off and dequantise the sum; as the `unmask` stage."""
        staying, gone = self.nodes[: len(self.nodes) - dropped], self.nodes[len(self.nodes) - dropped :]
        total = flower.parameters_mod(total, RING)
        for node in staying:
            mask = pseudo_rand_gen(self._rebuild(self.seed_shares[node]), RING, flower.get_parameters_shape(total))
            total = flower.parameters_subtraction(total, mask)
        for node in gone:
            self._rebuild(self.key_shares[node])
            total = self.pairwise(node, total, staying)
        _, plain = flower.factor_extract(flower.parameters_mod(total, RING))
        (decoded,) = dequantize(plain, BOUND, FLOWER_RANGE)
        decoded += -(len(staying) - 1) * BOUND
        result: NDArray[np.float64] = decoded
        return result

    def _rebuild(self, shares: list[bytes]) -> bytes:
        return combine_shares(shares[: self.threshold])


def rows(count: int, memory: Memory, drops: Sequence[int]) -> list[Row]:
    """Measure Flower: the clients once, the server without the last ones' uploads and then with them."""
    cohort, found = FlowerCohort(count), []
    total: list[NDArray[Any]] = []
    clients, adding = [Meter() for _ in cohort.nodes], Meter()
    seeds = []
    for node in cohort.nodes:
        with clients[node]:
            seeds.append(cohort.share(node))
    for node in cohort.nodes:
        vector = memory.draw(node)
        with clients[node]:
            masked = cohort.mask(node, vector, seeds[node])
        with adding:
            total = flower.parameters_addition(total, masked) if total else masked
        dropped = count - node - 1
        if dropped in drops:
            with (unmasking := Meter()):
                unmasked = cohort.unmask(total, dropped)
            row = Row(
                scheme="flower",
                n=count,
                parameters=memory.size,
                bits=32,
                dropped=dropped,
                client_cpu_s=0.0,
                server_cpu_s=adding.total + unmasking.total,
                client_bytes=sum(len(ndarray_to_bytes(part)) for part in masked),
                max_error=memory.error(unmasked, count - dropped),
            )
            found.append(row)
    median = statistics.median(client.total for client in clients)
    return [dataclasses.replace(row, client_cpu_s=median) for row in reversed(found)]
