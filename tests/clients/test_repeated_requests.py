"""A round is answered and paid for once: not again on request, after a restart, or after a failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.config import load_department, open_journal
from clients.enrol import CONFIG_FILE
from clients.participant import Participant
from clients.training.noise import OsRandomSource
from shared.codec import decode, encode
from shared.errors import RoundAbortedError
from shared.identity import DepartmentId
from shared.journal import EntryKind
from shared.messages import (
    CloseRound,
    OpenEpoch,
    RevealRequest,
    SealRequest,
    UpdateRequest,
)
from shared.parameters import vector_from_bytes, vector_to_bytes
from shared.privacy.ledger import AttemptBurned
from simulation.network import InMemoryTransport
from simulation.world import World, now
from tests.city import FOUR, City
from tests.clients.participant_city import (
    POLICE,
    REFUSED,
    UNAVAILABLE,
    first_round,
    kinds,
    reasons,
)
from tests.ledger_history import history


@contextmanager
def restarted(world: World) -> Iterator[dict[DepartmentId, Participant]]:
    """Every department's process ends and begins again from what is on its disk."""
    with ExitStack() as stack:
        again: dict[DepartmentId, Participant] = {}
        for name, participant in world.participants.items():
            participant.memory.journal.close()
            config = world.folder / name / CONFIG_FILE
            journal = stack.enter_context(open_journal(config))
            again[name] = Participant(load_department(config), journal=journal, source=OsRandomSource(), clock=now)
        yield again


# --- an update is never masked twice -------------------------------------------------------------------------


def test_the_byte_identical_request_gets_the_byte_identical_reply_and_costs_nothing(city: City) -> None:
    _, ear = first_round(city)
    police = city.world.participants[POLICE]
    before = kinds(police)
    for kind in (OpenEpoch, SealRequest, UpdateRequest, RevealRequest, CloseRound):
        heard = ear.first(kind)
        assert police.handle(heard.request) == heard.reply
    assert kinds(police) == before
    assert before.count(EntryKind.BURNED) == 1


def test_p3_another_request_for_the_same_round_is_refused_and_trains_nothing(city: City) -> None:
    _, ear = first_round(city)
    police = city.world.participants[POLICE]
    asked = ear.first(UpdateRequest).asked
    assert isinstance(asked, UpdateRequest)
    other_model = vector_to_bytes(vector_from_bytes(asked.model, city.world.plan.layout) + np.float32(0.5))
    for other in (
        msgspec.structs.replace(asked, model=other_model),
        msgspec.structs.replace(asked, participants=asked.participants[:3]),
        msgspec.structs.replace(asked, seals={}),
    ):
        assert police.handle(encode(other)) == REFUSED
    assert reasons(police) == ["step-already-answered"] * 3
    assert kinds(police).count(EntryKind.BURNED) == 1


def test_p3_after_a_restart_an_answered_round_stays_closed_even_in_a_new_epoch(city: City) -> None:
    _, ear = first_round(city)
    with restarted(city.world) as again:
        assert again[POLICE].handle(ear.first(UpdateRequest).request) == REFUSED
        assert again[POLICE].handle(ear.first(OpenEpoch).request) == REFUSED
        assert reasons(again[POLICE]) == ["epoch-unknown", "epoch-not-new"]
        peers = {name: participant.handle for name, participant in again.items()}
        coordinator = replace(city.coordinator(InMemoryTransport(peers)), _epoch_number=1)
        with pytest.raises(RoundAbortedError):
            coordinator.run_round(1, city.basis.initial, final=False)
        assert {(step, status) for _, step, _, status in city.watcher.gone} == {("update", "refused")}
        for name, participant in again.items():
            assert reasons(participant)[-1] == "step-already-answered", name
            assert kinds(participant).count(EntryKind.BURNED) == 1


def test_after_a_restart_the_run_goes_on_with_the_next_round_on_the_same_reservation(city: City) -> None:
    coordinator, _ = first_round(city)
    model = city.watcher.results[0].model
    with restarted(city.world) as again:
        peers = {name: participant.handle for name, participant in again.items()}
        goes_on = replace(coordinator, transport=InMemoryTransport(peers), _epoch_number=1, _epoch=None)
        result = goes_on.run_round(2, model, final=True)
        assert result.survivors == FOUR
        for participant in again.values():
            assert kinds(participant).count(EntryKind.RESERVED) == 1
            assert kinds(participant).count(EntryKind.BURNED) == 2
            assert kinds(participant)[-1] == EntryKind.SETTLED


# --- the charge comes first ----------------------------------------------------------------------------------


def test_p3_a_crash_before_the_end_leaves_the_full_charge(city: City) -> None:
    first_round(city)
    with restarted(city.world) as again:
        for participant in again.values():
            (event,) = history(participant.ledger, participant.department.declaration.dataset)
            assert event.steps == city.world.plan.attempts * city.world.plan.privacy.steps


def test_p3_the_charge_is_on_disk_before_a_row_is_read(city: City) -> None:
    """A department whose rows have gone cannot train, and has paid all the same."""
    Path(city.world.departments[POLICE].binding.source.path).write_text("another,header\n1,2\n")
    first_round(city)
    police = city.world.participants[POLICE]
    assert city.watcher.gone == [(1, "update", "police", "unavailable")]
    assert reasons(police) == ["column-missing"]
    (burned,) = police.memory.journal.entries(EntryKind.BURNED)
    assert decode(burned.body, AttemptBurned).round == 1
    assert not list(police.memory.journal.entries(EntryKind.ANSWERED))


def test_p3_after_a_failed_training_the_round_is_over_for_this_department(city: City) -> None:
    Path(city.world.departments[POLICE].binding.source.path).write_text("another,header\n1,2\n")
    _, ear = first_round(city)
    police = city.world.participants[POLICE]
    assert ear.first(UpdateRequest).reply == UNAVAILABLE
    assert police.handle(ear.first(UpdateRequest).request) == REFUSED
    assert reasons(police) == ["column-missing", "round-not-newer"]
    assert kinds(police).count(EntryKind.BURNED) == 1
