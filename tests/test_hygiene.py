"""No key, seed or clear update stands in a file, a message, a log, an exception or a printed object (protocol 8).

A whole small federation runs, with drop-outs and damaged messages, while every secret that it makes is noted; then
everything that it wrote or said is searched for each of them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clients.training.noise import OsRandomSource
from shared.audit import view_entries
from shared.errors import CityFedError
from shared.messages import MaskedUpdate, OpenEpoch, Refusal, Reveal, decode_reply
from shared.secagg.shamir import combine, share_from_bytes
from simulation.network import Fault, InMemoryTransport
from tests.city import City, open_city, small_scenario
from tests.eavesdropper import Eavesdropper
from tests.secret_watch import SecretWatch, leaks, printed_error, printed_objects, spellings

FAULTS = (
    Fault(department="police", step="update", kind="corrupt", round=1, until=1),
    Fault(department="health", step="update", kind="duplicate", round=2, until=2),
    Fault(department="transport", step="reveal", kind="drop-request", round=2, until=2),
    Fault(department="environment", step="seal", kind="corrupt", round=2, until=2),
)


@dataclass
class Evidence:
    """What a run left behind."""

    watch: SecretWatch
    ear: Eavesdropper
    identities: dict[str, bytes]
    places: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Ear(Eavesdropper):
    """Also asks every object that is alive to print itself, while the secrets are in use."""

    printed: set[str] = field(default_factory=set)

    def _wrap(self, name: Any, peer: Any) -> Any:
        inner = super()._wrap(name, peer)

        def answer(request: bytes) -> bytes:
            reply: bytes = inner(request)
            if name == "health" and not isinstance(decode_reply(reply), Refusal):
                self.printed |= printed_objects()
            return reply

        return answer


def run_and_annoy(city: City, ear: Ear) -> Iterator[CityFedError | None]:
    """Run the plan with faults, then send damaged requests; yield every error that a department or the run ended in."""
    try:
        city.coordinator(InMemoryTransport(ear.listen(city.peers), FAULTS)).run(city.basis.initial)
    except CityFedError as error:
        yield error
    yield from (participant.last_refusal for participant in city.world.participants.values())
    for exchange in list(ear.heard):
        for damaged in (exchange.request[:-1], exchange.request.replace(b"\xc4\x20", b"\xc4\x21", 1), exchange.reply):
            city.peers[exchange.department](damaged)
            yield city.world.participants[exchange.department].last_refusal


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = tmp_path_factory.mktemp("hygiene")
    ear, log, out = Ear(), io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    scenario = small_scenario(folder, rounds=2, spare_attempts=3)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            open_city(folder, scenario, source=lambda _: OsRandomSource()) as city,
        ):
            with SecretWatch().watching() as watch:
                errors = [printed_error(error) for error in run_and_annoy(city, ear)]
            found = Evidence(
                watch, ear, {name: city.world.departments[name].identity.private_bytes() for name in city.peers}
            )
            found.places |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            journals = [
                city.world.authority_journal,
                *(item.memory.journal for item in city.world.participants.values()),
            ]
            views = [msgspec.json.encode(entry) for journal in journals for entry in view_entries(journal.entries())]
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    found.places |= {f"message {at}": item.request + item.reply for at, item in enumerate(ear.heard)}
    found.places |= {
        "audit log": b"\n".join(views),
        "errors": b"\n".join(errors),
        "objects": "\n".join(ear.printed).encode(errors="replace"),
        "streams": out.getvalue().encode() + log.getvalue().encode(),
    }
    return found


def test_p2_no_secret_of_a_run_is_written_said_logged_or_printed(evidence: Evidence) -> None:
    assert leaks(evidence.watch.everything(), evidence.places) == set()


def test_p2_an_identity_key_stands_in_its_own_file_and_nowhere_else(evidence: Evidence) -> None:
    for name, private in evidence.identities.items():
        (place,) = leaks({private}, evidence.places)
        assert Path(place).parts[-2:] == (name, "identity.key")


def test_every_kind_of_secret_was_seen(evidence: Evidence) -> None:
    """Four departments, at least two epochs and two rounds."""
    seen = {kind: len(found) for kind, found in evidence.watch.secrets.items()}
    assert seen["HPKE key"] >= 2 * 4 * 2
    assert seen["epoch seed"] >= 2 * 4 * 3 - 6
    assert seen["root or key"] > 100
    assert seen["seed"] > 20
    assert seen["noise key"] >= 8
    assert seen["update"] >= 4
    for secrets in evidence.watch.secrets.values():
        assert all(len(secret) >= 32 for secret in secrets)


def test_the_seeds_that_the_shares_give_are_among_those_seen(evidence: Evidence) -> None:
    """The watch misses nothing: what the coordinator may reconstruct, it has noted at the department."""
    reveals = [item for item in evidence.ear.heard if isinstance(decode_reply(item.reply), Reveal)]
    names = sorted(evidence.identities)
    by_round: dict[bytes, dict[int, Reveal]] = {}
    for item in reveals:
        reveal = item.answered
        assert isinstance(reveal, Reveal)
        by_round.setdefault(reveal.sid, {})[1 + names.index(item.department)] = reveal
    complete = [found for found in by_round.values() if len(found) >= 3]
    assert complete
    for found in complete:
        first = dict(list(found.items())[:3])
        for name in next(iter(first.values())).self_shares:
            seed = combine({point: share_from_bytes(reveal.self_shares[name]) for point, reveal in first.items()})
            assert seed.to_bytes(32, "little") in evidence.watch.secrets["shared seed"]


def test_the_run_had_everything_in_it(evidence: Evidence) -> None:
    """Updates, confirmations, reveals, refusals, errors and printed states: otherwise the search would be idle."""
    replies = [type(decode_reply(item.reply)).__name__ for item in evidence.ear.heard]
    assert {"AdvertReply", "SealReply", "MaskedUpdate", "ConfirmReply", "Reveal", "CloseReply"} <= set(replies)
    assert b"KeyedRound" not in evidence.places["objects"]  # it lives within one call only
    for name in (b"ReadyEpoch", b"MaskedRound", b"ConfirmedRound", b"OneUse()", b"HeldShares()", b"IdentityKey("):
        assert name in evidence.places["objects"], name
    assert b"Traceback" in evidence.places["errors"]
    assert b"message-malformed" in evidence.places["errors"]
    assert any(path.endswith("journal.sqlite-wal") for path in evidence.places)
    assert sum(map(len, evidence.places.values())) > 1_000_000


@pytest.mark.parametrize("spelling", range(6))
def test_a_secret_that_leaked_would_be_found(evidence: Evidence, spelling: int) -> None:
    secret = next(iter(evidence.watch.secrets["HPKE key"]))
    form = sorted(spellings(secret))[spelling % len(spellings(secret))]
    leaked = {"clean": b"nothing here", "dirty": b"before " + form + b" after"}
    assert leaks({secret}, leaked) == {"dirty"}


def test_the_clear_update_is_not_what_is_sent(evidence: Evidence) -> None:
    """The masked vector takes the update's memory; the reply must not point into what it was before."""
    updates = [item.answered for item in evidence.ear.heard if isinstance(decode_reply(item.reply), MaskedUpdate)]
    starts = {bytes(update.words[:64]) for update in updates if isinstance(update, MaskedUpdate)}
    assert starts
    assert not starts & evidence.watch.secrets["update"]


def test_live_states_can_be_neither_pickled_nor_copied(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        ear = Eavesdropper()
        coordinator = city.coordinator(InMemoryTransport(ear.listen(city.peers)))
        coordinator.run_round(1, city.basis.initial, final=False)
        offered = ear.first(OpenEpoch)
        assert offered.reply
        session = city.world.participants[offered.department]._session
        assert session is not None
        for state in (session.epoch, session):
            for duplicate in (pickle.dumps, copy.deepcopy):
                with pytest.raises(TypeError):
                    duplicate(state)
