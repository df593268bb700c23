"""The Coordinator over a real small city: exact sums, drop-outs, aborts, what it writes down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pytest
from msgspec.structs import replace

from clients.department import Department
from clients.records import StepAnswered
from clients.training.noise import RandomSource, UnsafeSeededSource
from clients.training.train import settings_of, train_round
from server.config import Timeouts
from server.plans import sign_plan
from server.records import Countersigned, DepartmentMissing, RoundDone, RoundFailed, RunEnded
from shared.codec import decode, encode, sha256
from shared.crypto.stream import RING_DTYPE
from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import DepartmentId, open_signed, sign_record
from shared.journal import EntryKind, Journal
from shared.messages import (
    HeadReceipt,
    MaskedUpdate,
    Receipt,
    Reveal,
    RevealRequest,
    UpdateRequest,
    decode_request,
)
from shared.parameters import Vector
from shared.secagg.masking import vector_hash
from shared.secagg.receipts import RECEIPT_LABEL
from shared.secagg.ring import fraction_bits, project
from simulation.network import STEP_OF, Fault, InMemoryTransport
from tests.city import FOUR, City, open_city, permit, small_scenario
from tests.clients.participant_city import approved_plan
from tests.eavesdropper import Eavesdropper

T = TypeVar("T")

THREE = FOUR[:3]
HEALTH = "health"


def noiseless(name: DepartmentId) -> UnsafeSeededSource:
    return UnsafeSeededSource(sum(name.encode()), noise=False)


def bodies(journal: Journal, kind: EntryKind, record: type[T]) -> list[T]:
    return [decode(entry.body, record) for entry in journal.entries(kind)]


def plain_mean(
    city: City, model: Vector, sources: Mapping[DepartmentId, RandomSource], in_sum: Sequence[str]
) -> np.ndarray:
    """The same arithmetic without encryption: train, weigh, project, add up, divide by public weights."""
    plan, updates = city.world.plan, {}
    for name, source in sources.items():
        department = city.world.departments[name]
        update = train_round(
            settings=settings_of(plan, name),
            parameters=model,
            data=department.rows(plan),
            weights_dir=None,
            source=source,
            flags=department.performance,
        )
        updates[str(name)] = project(update.delta * plan.datasets[name].weight, plan.aggregation.bound)
    total = np.sum([updates[name].astype(np.float64) for name in in_sum], axis=0)
    mean: np.ndarray = total / sum(plan.datasets[name].weight for name in in_sum)
    return mean


def resolution(city: City, asked: int, in_sum: Sequence[str], model: Vector) -> float:
    """n 2^-(f + 1) over the sum of weights, and what float32 rounds off twice at this size of model."""
    weights = sum(city.world.plan.datasets[name].weight for name in in_sum)
    bits = fraction_bits(asked, city.world.plan.aggregation.bound)
    return float(len(in_sum) * 2.0 ** -(bits + 1) / weights + 2 * np.spacing(np.abs(model).max()))


# --- extra coordinates of the sum ----------------------------------------------------------------------------


def test_p2_only_the_mean_of_an_extra_is_read_over_the_public_sizes_of_the_survivors(tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path, extras=("train-loss-sum", "unit-count"), spare_attempts=0)
    for item in scenario.departments.values():
        permit(Path(item.policy), "train-loss-sum", "unit-count")
    fault = Fault(department=HEALTH, step="update", kind="drop-reply", round=2, until=2)
    with open_city(tmp_path, scenario, source=noiseless) as city:
        result = city.run([fault])
        plan, departments = city.world.plan, city.world.departments
        for item, survivors in zip(result.rounds, (FOUR, tuple(n for n in FOUR if n != HEALTH)), strict=True):
            assert item.survivors == survivors
            sizes = sum(plan.datasets[name].public_size for name in survivors)
            rows = sum(len(departments[DepartmentId(name)].rows(plan)) for name in survivors)
            loss, count = item.metrics
            assert (loss.name, count.name) == ("train-loss-sum", "unit-count")
            assert count.value == pytest.approx(rows / sizes, rel=1e-4)
            noise = plan.layout.extras[1].noise_multiplier
            assert count.noise_stddev == pytest.approx(noise * len(survivors) ** 0.5 / sizes)
            assert loss.noise_stddev == pytest.approx(2 * count.noise_stddev)
        first, second = (item.metrics[0].value for item in result.rounds)
        assert first == pytest.approx(np.log(2) * rows_share(city), rel=1e-3), "a head of zeros gives every unit log 2"
        assert second != pytest.approx(first, rel=1e-3)
        done = bodies(city.world.authority_journal, EntryKind.ROUND, RoundDone)
        assert [item.metrics for item in done] == [item.metrics for item in result.rounds]
        assert city.watcher.results[-1].model.size == plan.layout.size


def rows_share(city: City) -> float:
    """Usable rows over declared sizes, all departments."""
    plan = city.world.plan
    rows = sum(len(item.rows(plan)) for item in city.world.departments.values())
    return rows / sum(terms.public_size for terms in plan.datasets.values())


def test_without_declared_extras_there_is_no_metric(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        assert [item.metrics for item in city.run().rounds] == [(), ()]


# --- the sum -------------------------------------------------------------------------------------------------


def test_p2_without_noise_the_masked_arm_is_a_plain_loop_to_the_rings_resolution(tmp_path: Path) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, rounds=3, spare_attempts=0), source=noiseless) as city:
        city.run()
        sources = {name: noiseless(name) for name in city.world.departments}
        before = city.basis.initial
        for item in city.watcher.results:
            expected = before + plain_mean(city, before, sources, FOUR)
            assert np.abs(item.model - expected).max() <= resolution(city, 4, FOUR, item.model)
            before = item.model


def test_without_noise_a_plain_loop_left_alone_stays_with_the_masked_arm(tmp_path: Path) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, rounds=3, spare_attempts=0), source=noiseless) as city:
        result = city.run()
        sources = {name: noiseless(name) for name in city.world.departments}
        model = city.basis.initial
        for _ in range(3):
            model = (model + plain_mean(city, model, sources, FOUR)).astype(np.float32)
        # Each round may add its resolution and one step of the clipping grid (2^-20), times rate over denominator.
        grid = 2.0**-20 * 2.0 / min(city.world.plan.denominator(name) for name in sources)
        allowed = 3 * (resolution(city, 4, FOUR, model) + 2 * grid)
        assert np.abs(result.model - model).max() <= allowed
        assert np.abs(result.model).max() > 1e3 * allowed


@pytest.mark.parametrize("kind", ["drop-request", "drop-reply", "corrupt"])
def test_p2_a_department_that_drops_mid_round_leaves_the_exact_sum_of_the_others(tmp_path: Path, kind: str) -> None:
    fault = Fault(department=HEALTH, step="update", kind=kind, round=2, until=2)  # type: ignore[arg-type]  # three of the literal
    others = tuple(name for name in FOUR if name != HEALTH)
    with open_city(tmp_path, small_scenario(tmp_path, rounds=3, spare_attempts=0), source=noiseless) as city:
        result = city.run([fault])
        assert [item.survivors for item in result.rounds] == [FOUR, others, FOUR]
        assert result.rounds[1].dropouts == (HEALTH,)
        assert [(number, step, name) for number, step, name, _ in city.watcher.gone] == [(2, "update", HEALTH)]
        sources = {name: noiseless(name) for name in city.world.departments}
        first = city.watcher.results[0].model
        plain_mean(city, city.basis.initial, sources, FOUR)  # the first round moves every stream on
        if kind == "drop-request":
            del sources[DepartmentId(HEALTH)]
        expected = first + plain_mean(city, first, sources, others)
        assert np.abs(city.watcher.results[1].model - expected).max() <= resolution(city, 4, others, first)


@pytest.mark.parametrize("step", ["reveal", "close"])
def test_a_department_lost_after_its_update_is_still_in_the_sum(tmp_path: Path, step: str) -> None:
    faults = [Fault(department=HEALTH, step=step, kind="drop-reply")]  # type: ignore[arg-type]  # two of the literal
    with open_city(tmp_path / "lost") as city:
        lost = city.run(faults)
    with open_city(tmp_path / "whole") as city:
        whole = city.run()
    assert [item.survivors for item in lost.rounds] == [FOUR, FOUR]
    assert lost.model.tobytes() == whole.model.tobytes()


def test_a_duplicated_request_changes_nothing(tmp_path: Path) -> None:
    faults = [Fault(department=HEALTH, step=step, kind="duplicate") for step in ("advert", "update", "reveal", "close")]
    with open_city(tmp_path / "twice") as city:
        twice = city.run(faults)
        assert city.watcher.gone == []
    with open_city(tmp_path / "once") as city:
        assert city.run().model.tobytes() == twice.model.tobytes()


def test_a_department_that_misses_the_epoch_is_left_out_and_asked_again_in_the_next(tmp_path: Path) -> None:
    faults = [Fault(department=HEALTH, step="seal", round=1, until=1)]
    with open_city(tmp_path) as city:
        result = city.run(faults)
    others = tuple(name for name in FOUR if name != HEALTH)
    # The epoch of three has nobody missing, so it stands for the second round as well.
    assert [item.survivors for item in result.rounds] == [others, others]


# --- aborts --------------------------------------------------------------------------------------------------


def test_p2_below_the_threshold_the_run_aborts_says_so_and_nothing_is_revealed(tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path, THREE)
    with open_city(tmp_path, scenario) as city:
        ear = Eavesdropper()
        transport = InMemoryTransport(ear.listen(city.peers), (Fault(department=HEALTH),))
        with pytest.raises(RoundAbortedError) as caught:
            city.coordinator(transport).run(city.basis.initial)
        assert caught.value.code == "below-threshold"
        assert caught.value.message == "Round 2: 2 departments take part, the plan needs 3."
        assert not [item for item in ear.heard if isinstance(item.asked, RevealRequest)]
        assert not [item for item in ear.heard if isinstance(item.answered, Reveal)]
        assert city.watcher.failures == [(1, "below-threshold"), (2, "below-threshold")]
        journal = city.world.authority_journal
        failed = bodies(journal, EntryKind.FAILED, RoundFailed)
        assert [(item.round, item.code) for item in failed] == city.watcher.failures
        (ended,) = bodies(journal, EntryKind.ENDED, RunEnded)
        assert (ended.status, ended.rounds) == ("failed", 0)


def test_an_aborted_round_uses_a_spare_attempt_and_the_run_goes_on(tmp_path: Path) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, THREE)) as city:
        result = city.run([Fault(department=HEALTH, round=1, until=1)])
        assert city.watcher.failures == [(1, "below-threshold")]
        assert [item.round for item in result.rounds] == [2, 3]
        assert [item.survivors for item in result.rounds] == [THREE, THREE]


def too_far(department: Department, handle: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A department that lies in round 1: it adds to its masked update what no training makes, and signs that."""

    def answer(raw: bytes) -> bytes:
        reply, asked = handle(raw), decode_request(raw)
        if not isinstance(asked, UpdateRequest) or asked.round > 1:
            return reply
        update = decode(reply, MaskedUpdate)
        words = np.frombuffer(update.words, RING_DTYPE) + np.uint32(2**29)
        digest = vector_hash()
        digest.update(words)
        receipt = replace(decode(update.receipt.body, Receipt), vector_digest=digest.digest())
        signed = sign_record(department.identity, RECEIPT_LABEL, receipt)
        return encode(replace(update, words=words.data.cast("B"), receipt=signed))

    return answer


def test_a_step_beyond_float32_ends_the_attempt_and_the_run_goes_on_from_the_model_before(tmp_path: Path) -> None:
    """Weights so small that a sum divided by them is too large: valid numbers, and one department that uses them."""
    with open_city(tmp_path) as city:
        terms = {name: replace(item, weight=1e-37) for name, item in city.world.plan.datasets.items()}
        server = replace(city.world.plan.server_optimizer, learning_rate=1e3)
        changes = {"datasets": terms, "server_optimizer": server}
        approved_plan(city, **changes)
        plan = replace(city.world.plan, **changes)
        world = dataclasses.replace(city.world, plan=plan, signed_plan=sign_plan(plan, city.world.authority))
        liar = DepartmentId(HEALTH)
        peers = city.peers | {liar: too_far(world.departments[liar], city.peers[liar])}
        coordinator = dataclasses.replace(city, world=world).coordinator(InMemoryTransport(peers))
        result = coordinator.run(city.basis.initial)
        assert city.watcher.failures == [(1, "model-not-finite")]
        assert [item.round for item in result.rounds] == [2, 3]
        assert np.isfinite(result.model).all()


@pytest.mark.parametrize("step", ["advert", "seal"])
def test_a_fault_of_one_round_is_over_in_the_next_also_where_nobody_was_asked_for_an_update(
    tmp_path: Path, step: Literal["advert", "seal"]
) -> None:
    with open_city(tmp_path, small_scenario(tmp_path, THREE)) as city:
        result = city.run([Fault(department=HEALTH, step=step, round=1, until=1)])
        assert city.watcher.failures == [(1, "below-threshold")]
        assert [item.round for item in result.rounds] == [2, 3]


def test_a_model_that_is_not_the_plans_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        ear = Eavesdropper()
        coordinator = city.coordinator(InMemoryTransport(ear.listen(city.peers)))
        with pytest.raises(ProtocolError) as caught:
            coordinator.run(city.basis.initial + np.float32(1))
        assert caught.value.code == "initial-model"
        assert ear.heard == []


def test_silence_is_a_missing_department(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        with pytest.raises(RoundAbortedError) as caught:
            city.run([Fault(department=name, step="advert") for name in FOUR])
        assert caught.value.code == "below-threshold"
        missing = bodies(city.world.authority_journal, EntryKind.REFUSAL, DepartmentMissing)
        assert [(item.department, item.status) for item in missing] == [(name, "no-answer") for name in FOUR] * 2


def test_an_answer_that_is_no_message_is_a_missing_department(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        peers = {name: lambda _request: b"no message" for name in city.peers}
        with pytest.raises(RoundAbortedError):
            city.coordinator(InMemoryTransport(peers)).run(city.basis.initial)
        assert {status for _, _, _, status in city.watcher.gone} == {"message-malformed"}


# --- what is written down ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[City, Eavesdropper]]:
    with open_city(tmp_path_factory.mktemp("finished"), source=noiseless) as city:
        ear = Eavesdropper()
        city.coordinator(InMemoryTransport(ear.listen(city.peers))).run(city.basis.initial)
        yield city, ear


def test_p5_a_finished_round_holds_every_survivors_receipt_and_countersignature(
    finished: tuple[City, Eavesdropper],
) -> None:
    city, ear = finished
    roster, journal = city.world.roster, city.world.authority_journal
    done = bodies(journal, EntryKind.ROUND, RoundDone)
    countersigned = bodies(journal, EntryKind.COUNTERSIGNED, Countersigned)
    assert len(done) == len(countersigned) == 2
    for item in done:
        sent = {heard.answered.sid for heard in ear.updates(item.round)}
        assert sent == {item.sid}
        for name, signed in item.receipts.items():
            receipt = open_signed(roster.members[DepartmentId(name)], "receipt", signed, Receipt)
            assert (receipt.department, receipt.sid) == (name, item.sid)
    for account in countersigned:
        assert tuple(sorted(account.receipts)) == FOUR
        for name, signed in account.receipts.items():
            open_signed(roster.members[DepartmentId(name)], "head-receipt", signed, HeadReceipt)


def test_p2_what_an_update_shows_is_not_what_was_trained(finished: tuple[City, Eavesdropper]) -> None:
    city, ear = finished
    for heard in ear.updates(1):
        words = np.frombuffer(heard.answered.words, dtype="<u4")
        assert words.size == city.world.plan.layout.total_size
        # An unmasked update is small: all of its words lie near 0 or near 2^32.
        assert (np.minimum(words, np.uint32(0) - words) < 2**28).mean() < 0.3


def test_p5_every_answer_is_in_the_departments_journal(finished: tuple[City, Eavesdropper]) -> None:
    city, ear = finished
    for name, participant in city.world.participants.items():
        answers = bodies(participant.memory.journal, EntryKind.ANSWERED, StepAnswered)
        assert [(item.round, item.step) for item in answers] == [
            (1, "update"),
            (1, "reveal"),
            (2, "update"),
            (2, "reveal"),
        ]
        sent = {sha256(item.reply) for item in ear.heard if item.department == name}
        assert {item.reply_hash for item in answers} <= sent


# --- waiting ---------------------------------------------------------------------------------------------------


@dataclass
class Timed:
    """A transport that notes how long each step would have waited."""

    carrier: InMemoryTransport
    waits: list[tuple[str, float]] = field(default_factory=list)

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, bytes]]:
        step = STEP_OF[type(decode_request(next(iter(requests.values()))))]
        self.waits.append((step, timeout_s))
        return self.carrier.exchange(requests, timeout_s=timeout_s)


def test_only_the_step_in_which_departments_train_waits_long(tmp_path: Path) -> None:
    """A silent department costs every other step no more than a short wait."""
    lost = Fault(department=HEALTH, step="update", kind="drop-reply")
    with open_city(tmp_path, small_scenario(tmp_path, rounds=1)) as city:
        timed = Timed(InMemoryTransport(city.peers, (lost,)))
        coordinator = city.coordinator(timed)
        coordinator.timeouts = Timeouts(update_s=3.0, answer_s=2.0)
        coordinator.run(city.basis.initial)
    assert timed.waits == [(step, 3.0 if step == "update" else 2.0) for step in STEP_OF.values()]
