"""Shared noise through real rounds: exact sums, drop-outs, equal bytes, and departments that say no (privacy 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from clients.records import Refused
from clients.training.noise import CtrStream, UnsafeSeededSource
from shared.codec import decode
from shared.errors import ConfigError, JournalError, RoundAbortedError
from shared.identity import DepartmentId
from shared.journal import EntryKind
from shared.plan import LocalOptimizer, ServerOptimizerSpec
from shared.privacy.accountant import epsilon, filter_epsilon
from shared.privacy.shared_noise import ring_range, share_stddev
from shared.secagg.ring import fraction_bits
from simulation.network import Fault, InMemoryTransport
from simulation.scenario import ArmOptimizers, PrivacyAsk, Scenario
from tests.city import FOUR, City, open_city, small_scenario
from tests.clients.test_neighbours import FAULTS, NEIGHBOURS, ROUNDS, Founded, Seen, found
from tests.eavesdropper import Eavesdropper
from tests.ledger_history import history

ASK = PrivacyAsk(mechanism="shared-noise", epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=1, max_grad_norm=1.0)
RATE = 8.0
GONE = Fault(department="police", step="update", kind="drop-request", round=1, until=1)


def shared_scenario(folder: Path, **changes: object) -> Scenario:
    folder.mkdir(parents=True, exist_ok=True)
    rate = LocalOptimizer(learning_rate=1.0)
    settings: dict[str, object] = {
        "privacy": ASK,
        "optimizer": ArmOptimizers(federated=rate, local=rate, pooled=rate),
        "server_optimizer": ServerOptimizerSpec(learning_rate=RATE),
        "rounds": 1,
    }
    return small_scenario(folder, **(settings | changes))


class NoteTaking(UnsafeSeededSource):
    """Seeded randomness that remembers the noise it gave and what it was asked for."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.noises: list[NDArray[np.int64]] = []
        self.stddevs: list[float] = []

    def fork_step(self) -> CtrStream:
        stream, notes = super().fork_step(), self

        class Noting(CtrStream):
            def __init__(self) -> None:
                """Draw from the stream of the step."""

            def coins(self, count: int, rate: float) -> NDArray[np.bool_]:
                return stream.coins(count, rate)

            def discrete_gaussian(self, size: int, stddev: float) -> NDArray[np.int64]:
                drawn = stream.discrete_gaussian(size, stddev)
                notes.noises.append(drawn)
                notes.stddevs.append(stddev)
                return drawn

        return Noting()


def run_once(folder: Path, faults: Sequence[Fault] = ()) -> tuple[City, dict[str, NoteTaking], NDArray[np.float32]]:
    sources = {name: NoteTaking(index) for index, name in enumerate(FOUR)}
    with open_city(folder, shared_scenario(folder), source=lambda name: sources[name]) as city:
        return city, sources, city.run(faults).model


@pytest.mark.parametrize(("faults", "survivors"), [((), FOUR), ((GONE,), ("environment", "health", "transport"))])
def test_p3_the_model_moves_by_the_survivors_shares_over_their_public_denominators(
    tmp_path: Path, faults: tuple[Fault, ...], survivors: tuple[str, ...]
) -> None:
    """With the same coins and without noise, what remains is exactly the noise of the survivors."""
    city, sources, noisy = run_once(tmp_path / "noisy", faults)
    quiet_folder = tmp_path / "quiet"
    seeds = {name: index for index, name in enumerate(FOUR)}
    with open_city(
        quiet_folder,
        shared_scenario(quiet_folder),
        source=lambda name: UnsafeSeededSource(seeds[name], noise=False),
    ) as quiet_city:
        quiet = quiet_city.run(faults).model
    plan = city.world.plan
    size = plan.layout.size
    bits = fraction_bits(4, ring_range(plan.privacy, bound=plan.aggregation.bound, participants=4, dimension=size))
    divisor = sum(plan.denominator(DepartmentId(name)) for name in survivors)
    noise = sum((sources[name].noises[0] for name in survivors), np.zeros(size, dtype=np.int64))
    np.testing.assert_allclose(noisy - quiet, -RATE * noise * 2.0**-bits / divisor, rtol=1e-4, atol=1e-5)
    assert np.abs(quiet).max() > 1e-3


def test_p3_every_share_has_the_noise_that_the_plan_says_whoever_drops_out(tmp_path: Path) -> None:
    city, sources, _ = run_once(tmp_path, (GONE,))
    plan = city.world.plan
    assert plan.privacy.noise_shares == 2
    bits = fraction_bits(
        4, ring_range(plan.privacy, bound=plan.aggregation.bound, participants=4, dimension=plan.layout.size)
    )
    expected = share_stddev(plan.privacy, dimension=plan.layout.size, bits=bits)
    asked = [sources[name].stddevs for name in FOUR if name != "police"]
    assert asked == [[expected]] * 3
    # Without one curious survivor, and without the one who dropped out, h = 2 shares remain.
    assert np.sqrt(2) * expected * 2.0**-bits >= plan.privacy.noise_multiplier * plan.privacy.max_grad_norm


def test_p2_two_drop_outs_leave_too_little_noise_and_no_sum(tmp_path: Path) -> None:
    second = msgspec.structs.replace(GONE, department="health")
    with (
        open_city(tmp_path, shared_scenario(tmp_path, spare_attempts=0)) as city,
        pytest.raises(RoundAbortedError),
    ):
        city.run((GONE, second))


def test_p3_the_ledger_keeps_both_numbers_and_a_clean_end_settles_them(tmp_path: Path) -> None:
    with open_city(tmp_path, shared_scenario(tmp_path)) as city:
        city.run()
        plan = city.world.plan
        for participant in city.world.participants.values():
            (line,) = participant.ledger.export()
            assert (line.mechanism, line.noise_shares) == ("shared-noise", 2)
            (event,) = history(participant.ledger, participant.department.declaration.dataset)
            assert (event.noise_multiplier, event.steps) == (plan.privacy.noise_multiplier, 1)
            quote = participant.ledger.quote(participant.department.charge(plan), participant.department.budgets())
            assert quote.epsilon_run <= plan.privacy.budget.epsilon < quote.epsilon_lone_share
            assert quote.lone_share_after == filter_epsilon([event.times(2).lone_share()], 1e-4)
            assert quote.epsilon_lone_share == epsilon([event.times(2).lone_share()], 1e-4)


# --- who says no ---------------------------------------------------------------------------------------------


def reasons(city: City) -> dict[str, str]:
    """Each department's last refusal."""
    found = {}
    for name, participant in city.world.participants.items():
        entries = participant.memory.journal.entries(EntryKind.REFUSAL)
        texts = [decode(entry.body, Refused, error=JournalError).message for entry in entries]
        found[str(name)] = texts[-1] if texts else ""
    return found


def with_policy(folder: Path, old: str, new: str) -> Scenario:
    scenario = shared_scenario(folder)
    for department in scenario.departments.values():
        path = Path(department.policy)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return scenario


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epsilon_lone_share = 18.0", "# no cap on lone shares"),
        ("epsilon_lifetime = 12.0", "epsilon_lifetime = 4.2 #"),
    ],
    ids=["no cap", "a cap below a lone share"],
)
def test_p3_a_department_refuses_lone_shares_that_it_does_not_allow(tmp_path: Path, old: str, new: str) -> None:
    """A lone share of this plan counts 4.5 or so: more than a cap of 4.2, which the sum itself stays below."""
    scenario = with_policy(tmp_path, old, new)
    if "lifetime" in old:
        for department in scenario.departments.values():
            path = Path(department.policy)
            path.write_text(path.read_text().replace("epsilon_lone_share = 18.0", "epsilon_lone_share = 4.2"))
    with open_city(tmp_path, scenario) as city:
        with pytest.raises(RoundAbortedError):
            city.run()
        assert all("lone" in text for text in reasons(city).values())


# --- what the coordinator sees -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Founded:
    folder = tmp_path_factory.mktemp("shared")
    return found(folder, shared_scenario(folder, rounds=ROUNDS))


@pytest.fixture(scope="module", params=["nobody drops out", "the changed one drops out"])
def usual(founded: Founded, request: pytest.FixtureRequest) -> tuple[tuple[Fault, ...], Seen]:
    faults = FAULTS[request.param]
    return faults, founded.run(lambda rows: rows, faults)


@pytest.mark.parametrize("name", ["one row more", "no row", "every row malformed", "every text and label another"])
def test_p3_neighbouring_data_sets_give_equal_bytes_outside_the_vector_and_no_refusal(
    founded: Founded, usual: tuple[tuple[Fault, ...], Seen], name: str
) -> None:
    faults, before = usual
    after = founded.run(NEIGHBOURS[name], faults)
    assert after.public() == before.public()
    assert after.vectors != before.vectors
    assert not after.failures


def test_p1_a_share_is_as_long_as_its_layout_and_hides_its_words(tmp_path: Path) -> None:
    """The uploaded words are uniform, share or update: a department's noised sum is never on the wire by itself."""
    ear = Eavesdropper()
    with open_city(tmp_path, shared_scenario(tmp_path)) as city:
        peers: Mapping[DepartmentId, Callable[[bytes], bytes]] = ear.listen(city.peers)
        city.coordinator(InMemoryTransport(peers)).run(city.basis.initial)
        size = city.world.plan.layout.size
    sent = [item.answered.words for item in ear.updates(1)]
    assert len(sent) == 4
    for words in sent:
        assert len(words) == 4 * size
        top = np.frombuffer(words, dtype="<u4") >> 24
        assert len(np.unique(top)) > 100  # 257 uniform bytes hit 163 values on average, unmasked ones few


def test_a_bound_that_the_ring_cannot_hold_is_the_plans_mistake(tmp_path: Path) -> None:
    scenario = shared_scenario(tmp_path, bound=1e6, privacy=msgspec.structs.replace(ASK, max_grad_norm=1e-5))
    with pytest.raises(ConfigError, match="ring") as caught, open_city(tmp_path, scenario):
        pass
    assert caught.value.code == "plan-impossible"
