"""A trainer killed at random moments: its ledger never shows less than what left the process (promise P3)."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from clients.config import open_journal
from clients.enrol import CONFIG_FILE
from clients.records import Approved
from server.plans import sign_plan
from shared.errors import RoundAbortedError
from shared.identity import DepartmentId
from shared.journal import EntryKind
from shared.plan import Plan
from shared.privacy.ledger import PrivacyLedger
from simulation.network import InMemoryTransport
from simulation.scenario import PrivacyAsk, ScenarioDepartment
from simulation.world import now
from tests.city import FOUR, City, binding_of, lowered_policy, open_city, small_scenario
from tests.clients.doomed_trainer import DoomedTrainer

POLICE = DepartmentId("police")


def patient(text: str) -> str:
    """A policy with room for many runs, of which many rounds fail."""
    for old in ("epsilon_lifetime = 12.0", "epsilon_lone_share = 18.0", "max_aborted_rounds = 2"):
        assert old in text
        text = text.replace(old, f"{old.partition('=')[0]}= 90")
    return text


def approved_plan(city: City, number: int) -> Plan:
    """Another run of the same plan, approved in every department."""
    plan = msgspec.structs.replace(city.world.plan, approval=number)
    for participant in city.world.participants.values():
        for person, role in sorted(participant.department.policy.policy.approval.people.items()):
            approval = Approved(digest=plan.digest(), person=person, role=role, author=False)
            participant.memory.write(EntryKind.APPROVAL, approval)
    return plan


@dataclass
class Autopsy:
    """Opens the journal that a death left, holds it against what came out, and remembers where the death fell."""

    config: Path
    trainer: DoomedTrainer | None = None
    steps: int = 0
    last_entries: Counter[str] = field(default_factory=Counter)
    settled: int = 0

    def __call__(self) -> None:
        assert self.trainer is not None
        with open_journal(self.config) as journal:
            ledger = PrivacyLedger(journal, now)
            exported = {bytes.fromhex(line.run): line for line in ledger.export()}
            for run, number in self.trainer.released:
                reservation = ledger.reservation(run)
                assert reservation is not None, "an update left that was never reserved"
                assert number in reservation.burned, "an update left whose attempt was not burned"
            for run, count in Counter(run for run, _ in self.trainer.released).items():
                assert exported[run].counted_steps >= count * self.steps
            *_, last = journal.entries(after=max(journal.head.sequence - 1, 0))
            self.last_entries[last.kind] += 1
            self.settled = sum(line.settled for line in exported.values())


def run(city: City, plan: Plan, trainer: DoomedTrainer) -> None:
    """Run a plan to its end, good or bad, with the doomed process in the police department's place."""
    transport = InMemoryTransport({**city.peers, POLICE: trainer.handle})
    signed = sign_plan(plan, city.world.authority)
    with contextlib.suppress(RoundAbortedError):
        replace(city.coordinator(transport), plan=plan, signed_plan=signed).run(city.basis.initial)


def run_until_killed(folder: Path, kills: int, seed: int) -> tuple[DoomedTrainer, Autopsy]:
    """Run one plan after the other until the police department has died so often."""
    scenario = small_scenario(
        folder, privacy=PrivacyAsk(epsilon=0.05, delta=1e-4, sample_rate=0.2, steps=5, max_grad_norm=1.0)
    )
    departments = {
        name: ScenarioDepartment(binding=str(binding_of(name)), policy=lowered_policy(folder, name, patient))
        for name in FOUR
    }
    with open_city(folder, msgspec.structs.replace(scenario, departments=departments)) as city:
        plans = [approved_plan(city, number) for number in range(2, 3 * kills + 2)]
        city.world.participants[POLICE].memory.journal.close()
        config = city.world.folder / POLICE / CONFIG_FILE
        autopsy = Autopsy(config, steps=city.world.plan.privacy.steps)
        trainer = DoomedTrainer(config, autopsy, random.Random(seed))
        autopsy.trainer = trainer
        with contextlib.closing(trainer):
            # The first process lives through a whole run, and deaths then fall anywhere into as much time.
            trainer.start()
            began = time.monotonic()
            run(city, plans[0], trainer)
            trainer.close()
            trainer.longest_life = time.monotonic() - began
            trainer.start()
            for plan in plans[1:]:
                run(city, plan, trainer)
                if trainer.kills >= kills:
                    break
        autopsy()
    return trainer, autopsy


Note = Callable[[str, object], None]


def assert_covered(folder: Path, note: Note, *, kills: int, seed: int) -> None:
    """Kill so often; every autopsy was held on the way, and work went on after each death."""
    trainer, autopsy = run_until_killed(folder, kills, seed)
    assert trainer.kills >= kills
    assert autopsy.last_entries.total() == trainer.kills + 1  # after every death and at the end
    note("kills", trainer.kills)
    assert trainer.released, "nothing ever left: the deaths came too early to show anything"
    note("updates released", len(trainer.released))
    note("runs settled", autopsy.settled)
    note("last entries at death", dict(autopsy.last_entries))


def test_p3_a_trainer_killed_ten_times_never_released_more_than_its_ledger_shows(
    tmp_path: Path, record_property: Note
) -> None:
    assert_covered(tmp_path, record_property, kills=10, seed=1)


@pytest.mark.soak
def test_p3_a_trainer_killed_two_hundred_times_never_released_more_than_its_ledger_shows(
    tmp_path: Path, record_property: Note
) -> None:
    assert_covered(tmp_path, record_property, kills=200, seed=2)
