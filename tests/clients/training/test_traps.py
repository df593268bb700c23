"""Traps of privacy 2 and 8 that belong to no single module: what of Opacus is used, and where coins come from."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import clients.training
from clients.training.noise import CtrStream, OsRandomSource, StepStream, UnsafeNoiselessStream
from clients.training.train import TrainingSettings, train_round
from shared.plan import LocalOptimizer, ModelSpec
from shared.privacy.plan import PerformanceFlags, PrivacyBudget, PrivacyParams
from shared.tasks.device import resolve_device
from shared.tasks.features import HASHED_WORDS_SHA256
from shared.tasks.text import Prepared, initial_parameters, layout_of, prepare

HASHED = ModelSpec(architecture="hashed-words", base_weights_sha256=HASHED_WORDS_SHA256)
TEXTS = ["we need water", "the road is closed", "please help us", "the bridge is open"] * 5


def settings(steps: int = 3) -> TrainingSettings:
    privacy = PrivacyParams(
        budget=PrivacyBudget(epsilon=1, delta=1e-4),
        sample_rate=0.5,
        steps=steps,
        max_grad_norm=0.1,
        noise_multiplier=1.0,
    )
    return TrainingSettings(
        privacy=privacy,
        denominator=10.0,
        optimizer=LocalOptimizer(learning_rate=1.0),
        model=HASHED,
        layout=layout_of(HASHED, None),
    )


def records() -> Prepared:
    labels = [float(index % 2) for index in range(len(TEXTS))]
    return prepare(HASHED, TEXTS, labels, weights_dir=None, device=resolve_device("cpu"))


class UnsafeRecorder:
    """A source whose coins the test decides; it keeps what was asked of each step's stream."""

    def __init__(self, coins: NDArray[np.bool_]) -> None:
        self.chosen = coins
        self.asked: list[list[str]] = []

    def fork_step(self) -> StepStream:
        asked: list[str] = []
        self.asked.append(asked)
        return UnsafeChosenStream(self.chosen, asked)


class UnsafeChosenStream(UnsafeNoiselessStream):
    """Coins as chosen, no noise."""

    def __init__(self, coins: NDArray[np.bool_], asked: list[str]) -> None:
        super().__init__(bytes(32))
        self.chosen, self.asked = coins, asked

    def coins(self, count: int, rate: float) -> NDArray[np.bool_]:
        self.asked.append(f"{count} coins at {rate}")
        return self.chosen

    def discrete_gaussian(self, size: int, stddev: float) -> NDArray[np.int64]:
        self.asked.append(f"{size} draws at {stddev}")
        return super().discrete_gaussian(size, stddev)


def delta(source: UnsafeRecorder | OsRandomSource, data: Prepared, **changes: object) -> NDArray[np.float32]:
    return train_round(
        settings=replace(settings(), **changes),  # type: ignore[arg-type]  # chosen by each test
        parameters=initial_parameters(HASHED, None),
        data=data,
        weights_dir=None,
        source=source,
        flags=PerformanceFlags(device="cpu"),
    ).delta


def test_coins_and_noise_of_a_step_come_from_its_own_stream_and_from_nowhere_else() -> None:
    data = records()
    first = np.zeros(len(data), dtype=np.bool_)
    first[:7] = True
    source = UnsafeRecorder(first)
    found = delta(source, data)
    size = settings().layout.size
    assert source.asked == [[f"{len(data)} coins at 0.5", f"{size} draws at {2.0**20}"]] * 3
    # Who is not drawn takes no part, whatever they hold.
    spoiled = data.inputs[0].clone()
    spoiled[7:] = 9.0
    other = delta(UnsafeRecorder(first), replace(data, inputs=(spoiled,)))
    np.testing.assert_array_equal(found, other)


class UnsafeKeeper(OsRandomSource):
    """The production source; it keeps the streams that it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[StepStream] = []

    def fork_step(self) -> CtrStream:
        stream = super().fork_step()
        self.given.append(stream)
        return stream


def test_each_step_of_each_department_has_a_stream_of_its_own() -> None:
    one, other = UnsafeKeeper(), UnsafeKeeper()
    for source in (one, other):
        delta(source, records())
    assert len(one.given) == len(other.given) == 3
    drawn = {stream.coins(256, 0.5).tobytes() for stream in one.given + other.given}
    assert len(drawn) == 6


def test_the_numbers_of_a_step_do_not_follow_how_many_records_there_are() -> None:
    # Opacus would set the rate to one over the length of a loader, and divide by the batch it expects from it.
    everyone = records()
    for count in (0, 1, 19, 20):
        source = UnsafeRecorder(np.zeros(count, dtype=np.bool_))
        assert not delta(source, everyone.take(np.arange(count))).any()
        assert source.asked == [[f"{count} coins at 0.5", f"{settings().layout.size} draws at {2.0**20}"]] * 3


def test_nothing_of_opacus_is_used_but_its_per_unit_gradients() -> None:
    # Its loaders replace samplers silently (opacus#813), its noise is torch's, its rate is a loader's length.
    folder = Path(clients.training.__file__).parent
    imported = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opacus"):
                imported |= {(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                imported |= {(alias.name, "") for alias in node.names if alias.name.startswith("opacus")}
    assert imported == {("opacus.grad_sample", "GradSampleHooks")}
