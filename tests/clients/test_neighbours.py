"""Nothing that the coordinator sees depends on records: neighbouring data sets, compared byte for byte (privacy 2).

One city is founded and closed; every run starts from a copy of its folders, with one department's rows changed since
they were bound. Clock, protocol randomness, sampling and noise are the same in all runs, and so are the models that
the coordinator sends. What remains is compared in full: every reply of every department over several rounds, the
refusals, and who dropped out. Left out of a reply are only

- the masked vector, and in the receipt its digest;
- heads of the journal, digests over entries that carry 16 fresh random bytes each, and the digest of the vector;
- HPKE encapsulations, whose randomness the library draws itself, before a record is touched;
- signatures, which are verified instead.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.config import load_department, open_journal
from clients.enrol import CONFIG_FILE
from clients.participant import Participant
from clients.training.noise import UnsafeSeededSource
from server.audit import OWNER
from shared.codec import encode, sha256
from shared.crypto.keys import Entropy
from shared.errors import RoundAbortedError
from shared.identity import DepartmentId, open_signed
from shared.journal import Journal
from shared.messages import CloseReply, CloseRound, HeadReceipt, MaskedUpdate, Receipt, SealReply, SealSet
from shared.plan import LocalOptimizer
from shared.secagg.adverts import SEALS_LABEL
from shared.secagg.receipts import RECEIPT_LABEL
from simulation.network import Fault, InMemoryTransport
from simulation.scenario import ArmOptimizers, PrivacyAsk, Scenario
from simulation.world import now
from tests.city import MESSAGES, City, open_city, permit, small_scenario
from tests.eavesdropper import Eavesdropper, Exchange

POLICE = DepartmentId("police")
ROUNDS = 3
FLOOR = 80

CALL = ["P-9999", "security", "we need help at the harbour", "1", "never-read"]
Rows = list[list[str]]


def unsafe_entropy(name: str) -> Entropy:
    """The same bytes in the same order in every run."""
    drawn = 0

    def draw(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(f"{name} {drawn}".encode()).digest(count)

    return draw


@dataclass(frozen=True)
class Seen:
    """What the coordinator saw of a run, and the masked vectors of the changed department by round."""

    replies: tuple[object, ...]
    missing: tuple[tuple[int, str, str, str], ...]
    failures: tuple[tuple[int, str], ...]
    kinds: Mapping[str, tuple[str, ...]]
    vectors: tuple[bytes, ...]

    def public(self) -> object:
        return (self.replies, self.missing, self.failures, self.kinds)


@dataclass(frozen=True)
class Founded:
    """A city on disk, before its first round."""

    city: City
    original: Path
    moment: dt.datetime

    def run(self, change: Callable[[Rows], Rows], faults: Sequence[Fault] = ()) -> Seen:
        """Put the city back to its beginning, change the police's rows and run."""
        folder = self.city.world.folder.parent
        shutil.rmtree(folder)
        shutil.copytree(self.original, folder)
        rewrite(Path(self.city.world.departments[POLICE].binding.source.path), change)
        with ExitStack() as stack:
            participants = {name: self._open(name, stack) for name in self.city.world.participants}
            return self._listen(participants, faults, stack)

    def _open(self, name: DepartmentId, stack: ExitStack) -> Participant:
        config = self.city.world.folder / name / CONFIG_FILE
        journal = stack.enter_context(open_journal(config))
        source = UnsafeSeededSource(sum(name.encode()))
        return Participant(
            load_department(config),
            journal=journal,
            source=source,
            clock=lambda: self.moment,
            entropy=unsafe_entropy(name),
        )

    def _listen(
        self, participants: Mapping[DepartmentId, Participant], faults: Sequence[Fault], stack: ExitStack
    ) -> Seen:
        ear, city = Eavesdropper(), self.city
        city.watcher.gone.clear()
        city.watcher.failures.clear()
        peers = ear.listen({name: participant.handle for name, participant in participants.items()})
        journal = stack.enter_context(Journal.open(city.world.folder / "authority" / "journal.sqlite", owner=OWNER))
        transport = InMemoryTransport(peers, tuple(faults))
        coordinator = replace(city.coordinator(transport), journal=journal)
        failed = []
        for number in range(1, ROUNDS + 1):
            # The model is the sum's consequence: fixed here, so that what follows from it is equal too.
            model = city.basis.initial + np.float32(0.01 * (number - 1))
            try:
                coordinator.run_round(number, model, final=number == ROUNDS)
            except RoundAbortedError as error:
                coordinator._abort(number, error)  # what `run` does, with a model of our own
                failed.append((number, error.code))
        return Seen(
            replies=tuple(outside_the_vector(item, city) for item in ear.heard),
            missing=tuple(city.watcher.gone),
            failures=tuple(failed),
            kinds={
                name: tuple(entry.kind for entry in item.memory.journal.entries())
                for name, item in participants.items()
            },
            vectors=tuple(
                bytes(item.answered.words)
                for number in range(1, ROUNDS + 1)
                for item in ear.updates(number)
                if item.department == POLICE
            ),
        )


def outside_the_vector(item: Exchange, city: City) -> object:
    """A reply without the parts that the module's docstring names; their signatures and digests are verified."""
    reply, size, key = item.answered, len(item.reply), city.world.roster.members[item.department]
    if isinstance(reply, SealReply):
        sealed = open_signed(key, SEALS_LABEL, reply.seals, SealSet)
        lengths = {name: len(seal) for name, seal in sealed.seals.items()}
        return (item.department, size, sealed.epoch_id, sealed.department, lengths)
    if isinstance(reply, MaskedUpdate):
        receipt = open_signed(key, RECEIPT_LABEL, reply.receipt, Receipt)
        kept = encode(
            Receipt(**{**fields(receipt), "vector_digest": bytes(32), "ledger_head": bytes(32)})  # type: ignore[arg-type]  # its own fields
        )
        return (item.department, size, reply.sid, len(reply.words), dict(reply.envelopes), kept)
    if isinstance(reply, CloseReply):
        receipt_of_head = open_signed(key, "head-receipt", reply.receipt, HeadReceipt)
        assert isinstance(item.asked, CloseRound)
        assert receipt_of_head.closed_hash == sha256(item.asked.closed.body)
        return (item.department, size, receipt_of_head.department, receipt_of_head.journal_sequence)
    return (item.department, item.reply)


def fields(record: Receipt) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def rewrite(path: Path, change: Callable[[Rows], Rows]) -> None:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *change(rows)])


EXTRAS = ("train-loss-sum", "unit-count")
SHARED = PrivacyAsk(
    mechanism="shared-noise", epsilon=2.0, delta=1e-4, sample_rate=0.2, steps=1, max_grad_norm=1.0, extras_share=0.4
)
PLAIN = LocalOptimizer(learning_rate=1.0)
CITIES: Mapping[str, dict[str, object]] = {
    "local noise": {},
    "local noise, extras": {"extras": EXTRAS},
    "shared noise, extras": {
        "extras": EXTRAS,
        "privacy": SHARED,
        "optimizer": ArmOptimizers(federated=PLAIN, local=PLAIN, pooled=PLAIN),
    },
}


@pytest.fixture(scope="module", params=CITIES)
def founded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Founded:
    folder = tmp_path_factory.mktemp("founded")
    scenario = small_scenario(folder, rounds=ROUNDS, **CITIES[request.param])
    for name in scenario.departments:
        permit(Path(scenario.departments[name].policy), "train-loss-sum", "unit-count")
    return found(folder, scenario)


def found(folder: Path, scenario: Scenario) -> Founded:
    """A city whose police hold exactly as many rows as their policy asks for."""
    police = scenario.departments[POLICE]
    binding = cut_fixture(folder, rows=89)  # nine of them are held out
    policy = Path(police.policy)
    policy.write_text(
        policy.read_text().replace("_rows = 50", f"_rows = {FLOOR}").replace("_units = 50", f"_units = {FLOOR}")
    )
    at_floor = msgspec.structs.replace(police, binding=str(binding))
    scenario = msgspec.structs.replace(scenario, departments={**scenario.departments, POLICE: at_floor})
    with open_city(folder, scenario) as city:
        assert city.world.departments[POLICE].declaration.rows_checked == FLOOR
    original = folder.with_name(f"{folder.name}-original")
    shutil.copytree(folder, original)
    return Founded(city, original, now())


def cut_fixture(folder: Path, *, rows: int) -> Path:
    """The police fixture with only so many rows."""
    (folder / "police.csv").write_text("\n".join((MESSAGES / "police.csv").read_text().splitlines()[: 1 + rows]) + "\n")
    shutil.copy(MESSAGES / "police.toml", folder / "police.toml")
    return folder / "police.toml"


FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "nobody drops out": (),
    "one drops out and comes back": (Fault(department="health", step="update", kind="drop-reply", round=2, until=2),),
    "the changed one drops out": (Fault(department="police", step="update", kind="drop-reply", round=1, until=1),),
    "below the threshold": tuple(
        Fault(department=name, step="update", kind="drop-request", round=2, until=2) for name in ("health", "transport")
    ),
}

NEIGHBOURS: Mapping[str, Callable[[Rows], Rows]] = {
    "one row more": lambda rows: [*rows, CALL],
    "one row fewer than the policy's floor": lambda rows: rows[1:],
    "no row": lambda _rows: [],
    "a thousand rows more": lambda rows: [*rows, *[CALL] * 1000],
    "one malformed row": lambda rows: [*rows, [*CALL[:3], "yes", CALL[4]]],
    "one row with too few fields": lambda rows: [*rows, CALL[:1]],
    "every row malformed": lambda rows: [[*row[:3], "perhaps", row[4]] for row in rows],
    "a text of ten thousand words": lambda rows: [*rows, [*CALL[:2], "word " * 10_000, *CALL[3:]]],
    "every text and label another": lambda rows: [[*row[:2], f"fire {i}", "1", row[4]] for i, row in enumerate(rows)],
}


UNTRAINED = ("one malformed row", "one row with too few fields", "a text of ten thousand words")
"""Rows that a rule drops: not even the divisor of the update knows of them."""


QUIET = "nobody drops out"
CASES = [
    *((QUIET, name) for name in NEIGHBOURS),
    *((fault, name) for fault in FAULTS if fault != QUIET for name in ("one row more", "one malformed row")),
]


@pytest.fixture(scope="module")
def usual(founded: Founded) -> Mapping[str, Seen]:
    """What is seen of the city as it was bound, by fault."""
    return {name: founded.run(lambda rows: rows, faults) for name, faults in FAULTS.items()}


def test_p1_equal_data_gives_equal_bytes_in_the_vector_too(founded: Founded, usual: Mapping[str, Seen]) -> None:
    """Without this the comparison below could pass because nothing is held fixed."""
    assert founded.run(lambda rows: rows) == usual[QUIET]
    assert [len(seen.failures) for seen in usual.values()] == [0, 0, 0, 1]
    assert [len(seen.vectors) for seen in usual.values()] == [ROUNDS] * 4


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_p1_neighbouring_data_sets_give_equal_bytes_outside_the_vector(
    founded: Founded, usual: Mapping[str, Seen], fault: str, name: str
) -> None:
    after, before = founded.run(NEIGHBOURS[name], FAULTS[fault]), usual[fault]
    assert after.public() == before.public()
    assert (after.vectors == before.vectors) == (name in UNTRAINED)


def times(copies: int) -> Callable[[Rows], Rows]:
    return lambda rows: rows * copies


def test_p1_twice_the_rows_move_the_model_twice_as_far_so_no_divisor_counts_them(tmp_path: Path) -> None:
    """One noiseless step that samples every row: the sum doubles, and whatever divides it does not."""
    ask = PrivacyAsk(epsilon=2.0, delta=1e-4, sample_rate=1.0, steps=1, max_grad_norm=1.0)
    moved = []
    for copies in (1, 2):
        folder = tmp_path / str(copies)
        folder.mkdir()
        scenario = small_scenario(folder, rounds=1, spare_attempts=0, privacy=ask)
        for department in scenario.departments.values():
            policy = Path(department.policy)
            policy.write_text(policy.read_text().replace("max_sample_rate = 0.2", "max_sample_rate = 1.0"))
        with open_city(folder, scenario, source=lambda _: UnsafeSeededSource(1, noise=False)) as city:
            for item in city.world.departments.values():
                rewrite(Path(item.binding.source.path), times(copies))
            moved.append(city.run().model - city.basis.initial)
    assert np.abs(moved[0]).max() > 0.1
    np.testing.assert_allclose(moved[1], 2 * moved[0], atol=1e-5)


def test_p1_a_row_becomes_the_same_unit_whatever_rows_stand_beside_it(tmp_path: Path) -> None:
    """No scaler, vocabulary, class weight or cut-off is fitted on rows: a unit is a function of its row alone."""
    with open_city(tmp_path) as city:
        police = city.world.departments[POLICE]
        path = Path(police.binding.source.path)
        whole = police.rows(city.world.plan)
        original = path.read_text()
        for keep in (slice(0, 1), slice(10, 30), slice(None, None, 2)):
            path.write_text(original)
            rewrite(path, lambda rows, keep=keep: [CALL, *rows[keep]])  # type: ignore[misc]  # bound early
            police._rows.clear()  # a node reads a frozen data set once
            part = police.rows(city.world.plan)
            np.testing.assert_array_equal(part.inputs[0][1:], whole.inputs[0][keep])
            assert part.labels is not None
            assert whole.labels is not None
            np.testing.assert_array_equal(part.labels[1:], whole.labels[keep])
