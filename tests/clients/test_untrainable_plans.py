"""A plan that cannot be trained here burns nothing: everything but the rows is tried before the reservation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.asks import ModelBasis
from server.coordinator import Coordinator
from server.plans import sign_plan
from shared.errors import RoundAbortedError
from shared.parameters import Layout, TensorSpec
from shared.plan import Plan, TaskSpec
from simulation.network import InMemoryTransport
from tests.city import City, open_city, small_scenario
from tests.clients.participant_city import approved_plan, reasons
from tests.fixtures.tiny_bert import CONFIG, tiny_spec, write_tiny_bert


def run(city: City, **changes: Any) -> bytes:
    """Run an approved plan that aborts; returns its run id."""
    opening = approved_plan(city, **changes)
    plan: Plan = msgspec.structs.replace(city.world.plan, **changes)
    world = replace(city.world, plan=plan, signed_plan=sign_plan(plan, city.world.authority))
    coordinator: Coordinator = replace(city, world=world).coordinator(InMemoryTransport(city.peers))
    with pytest.raises(RoundAbortedError):
        coordinator.run(city.basis.initial)
    assert plan.run_id() == opening.run
    return opening.run


def assert_nothing_burned(city: City, run_id: bytes, *codes: str) -> None:
    """Nobody reserved anything for the run, and all of them say why."""
    for participant in city.world.participants.values():
        assert participant.ledger.reservation(run_id) is None
        assert set(reasons(participant)) == set(codes)


def test_a_model_that_does_not_fit_the_layout_burns_nothing(city: City) -> None:
    (weight, bias) = city.world.plan.layout.tensors
    names = Layout(tensors=(TensorSpec(name="head.other", shape=weight.shape), bias))
    assert_nothing_burned(city, run(city, layout=names), "layout-mismatch")


def test_columns_that_no_department_mapped_burn_nothing(city: City) -> None:
    assert_nothing_burned(city, run(city, task=TaskSpec(features=("diary",))), "feature-not-allowed")


def test_base_weights_that_no_department_names_burn_nothing(city: City) -> None:
    spec = msgspec.structs.replace(city.world.plan.model, architecture="minilm")
    assert_nothing_burned(city, run(city, model=spec), "weights-missing")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"base_weights_sha256": "0" * 64}, "base-weights-mismatch"),
        ({"max_tokens": CONFIG["max_position_embeddings"] + 1}, "max-tokens"),
        ({"trainable": "last-n", "last_n": CONFIG["num_hidden_layers"] + 1}, "last-n"),
        ({"trainable": "lora", "lora_rank": CONFIG["hidden_size"] + 1}, "lora-rank"),
    ],
)
def test_a_model_that_these_weights_do_not_make_burns_nothing(
    tmp_path: Path, change: dict[str, object], code: str
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    basis = ModelBasis.load(tiny_spec(write_tiny_bert(weights)), weights)
    with open_city(tmp_path / "city", small_scenario(tmp_path), basis=basis) as city:
        assert_nothing_burned(city, run(city, model=msgspec.structs.replace(basis.spec, **change)), code)
