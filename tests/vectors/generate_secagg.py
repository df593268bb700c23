"""Write ``secagg_v1.json``: one epoch and one round, frozen byte for byte.

Run ``python tests/vectors/generate_secagg.py`` only when the protocol version changes; the file is what an older or
foreign implementation agrees with. Four departments, ``police`` drops at upload. HPKE draws its own randomness, so
the sealed seeds are the one thing that cannot be computed again: they are stored and opened.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from shared.codec import encode
from shared.identity import IdentityKey, Roster, Signed
from shared.messages import SealRequest
from shared.secagg.epoch import EpochContext, open_epoch
from shared.secagg.ring import fraction_bits
from shared.secagg.server import RoundCollector
from shared.secagg.terms import RoundTerms

FILE = Path(__file__).with_name("secagg_v1.json")
NAMES = ("environment", "health", "police", "transport")
UPLOADING = ("environment", "health", "transport")
VECTORS = {
    "environment": [0.5, -0.25, 0.125, 1.5, -1.5],
    "health": [0.1, 0.2, -0.3, 0.0, 1.0],
    "police": [0.0, 0.0, 0.0, 0.0, 0.0],
    "transport": [-1.0, 0.75, 0.3333333, -0.0, 1e-7],
}


class UnsafeEntropy:
    """SHAKE-256 of a name and a counter: the same bytes every time."""

    def __init__(self, name: str) -> None:
        self._name, self._calls = name, 0

    def __call__(self, count: int) -> bytes:
        self._calls += 1
        return hashlib.shake_256(f"{self._name}/{self._calls}".encode()).digest(count)


def play(stored_seals: dict[str, dict[str, str]] | None = None) -> dict[str, Any]:
    """Run the epoch and the round; with stored seals, everything comes out the same again."""
    keys = {name: IdentityKey.from_private_bytes(UnsafeEntropy(f"identity/{name}")(32)) for name in NAMES}
    roster = Roster(city="Riverton", serial=1, members={name: key.public for name, key in keys.items()})
    adverts, seals, ready = _epoch(keys, roster, stored_seals)
    terms = _terms(next(iter(ready.values())).epoch_id)
    collector = RoundCollector(terms, roster)
    masked, updates = {}, {}
    for name in UPLOADING:
        _, keyed = ready[name].begin(terms)
        vector = np.array(VECTORS[name], dtype=np.float32)
        masked[name], updates[name] = keyed.mask(vector, identity=keys[name], ledger_sequence=3, ledger_head=bytes(32))
        collector.receive_update(name, updates[name])
    confirmed, confirmations, reveals = {}, {}, {}
    for name, ask in collector.confirm_requests().items():
        confirmed[name], confirmations[name] = masked[name].confirm(ask)
        collector.receive_confirmation(name, confirmations[name])
    for name, request in collector.reveal_requests().items():
        _, reveals[name] = confirmed[name].reveal(request, heads_seen={})
        collector.receive_reveal(name, reveals[name])
    return {
        "adverts": {name: _hex(signed) for name, signed in adverts.items()},
        "seals": {name: _hex(signed) for name, signed in seals.items()},
        "epoch_id": terms.epoch_id.hex(),
        "terms": encode(terms).hex(),
        "sid": terms.sid().hex(),
        "updates": {name: encode(update).hex() for name, update in updates.items()},
        "confirmations": {name: encode(reply).hex() for name, reply in confirmations.items()},
        "reveals": {name: encode(reply).hex() for name, reply in reveals.items()},
        "sum": collector.unmask()[:].tolist(),
    }


def _epoch(keys: dict[str, IdentityKey], roster: Roster, stored: dict[str, dict[str, str]] | None) -> Any:
    """E1 to E3."""
    states, adverts, seals = {}, {}, {}
    for name, key in keys.items():
        context = EpochContext(
            run=b"r" * 32,
            epoch=1,
            department=name,
            cohort=NAMES,
            roster=roster,
            policy_hash=b"p" * 32,
            heads_seen={},
            own_sequence=0,
        )
        states[name], reply = open_epoch(context, key, entropy=UnsafeEntropy(name))
        adverts[name] = reply.advert
    request = SealRequest(run=b"r" * 32, epoch=1, adverts=adverts)
    answers = {name: state.receive(request) for name, state in states.items()}
    for name, (_, sealed) in answers.items():
        seals[name] = sealed.seals if stored is None else _signed(stored[name])
    return adverts, seals, {name: state.receive(seals) for name, (state, _) in answers.items()}


def _terms(epoch_id: bytes) -> RoundTerms:
    """The round's terms: number 2, so that the ratchet moves."""
    return RoundTerms(
        run=b"r" * 32,
        plan_digest=b"d" * 32,
        package_digest="sha256:0",
        epoch_id=epoch_id,
        round=2,
        participants=NAMES,
        model_hash=b"m" * 32,
        layout_digest=b"l" * 32,
        dimension=5,
        ring_bits=32,
        fraction_bits=fraction_bits(4, 1.5),
        bound=1.5,
        threshold=3,
        min_contributors=3,
        max_colluders=1,
        privacy_digest=b"v" * 32,
    )


def _hex(signed: Signed) -> dict[str, str]:
    return {"body": signed.body.hex(), "signature": signed.signature.hex()}


def _signed(stored: dict[str, str]) -> Signed:
    return Signed(body=bytes.fromhex(stored["body"]), signature=bytes.fromhex(stored["signature"]))


if __name__ == "__main__":
    FILE.write_text(json.dumps(play(), indent=1) + "\n", encoding="utf-8")
