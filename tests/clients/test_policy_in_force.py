"""What a department's people change counts from the next step on, also for a node that stands in a session (P4)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import msgspec
import pytest
import tomli_w

from clients.attendant import Attendant
from clients.config import load_config, open_journal
from clients.data_check import bind_data, check_data
from clients.participant import Participant
from clients.plans import refuse_plan
from clients.records import Refused
from clients.training.noise import RandomSource, StepStream, UnsafeSeededSource
from policies.load import sign_policy
from server.plan_files import load_published
from server.roster import load_members
from shared.codec import decode, encode
from shared.errors import CityFedError
from shared.identity import DepartmentId
from shared.journal import EntryKind
from shared.messages import OpenEpoch, Refusal, UpdateRequest, decode_reply
from simulation.network import InMemoryTransport
from simulation.world import CONFIG_FILE
from tests.city import open_city
from tests.deployed_city import DeployedCity, deploy_with_plan, now
from tests.eavesdropper import Eavesdropper

POLICE = DepartmentId("police")
CHANGES = {
    "policy.toml": "policy-changed",
    "policy.sig": "policy-changed",
    CONFIG_FILE: "configuration-changed",
}


def reasons(participant: Participant) -> list[str]:
    return [decode(entry.body, Refused).code for entry in participant.memory.journal.entries(EntryKind.REFUSAL)]


def status(reply: bytes) -> str:
    answered = decode_reply(reply)
    return answered.status if isinstance(answered, Refusal) else type(answered).__name__


# --- the Participant ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "code"), CHANGES.items())
def test_p4_a_policy_that_changes_between_two_rounds_ends_this_departments_part(
    tmp_path: Path, file: str, code: str
) -> None:
    with open_city(tmp_path) as city:
        ear = Eavesdropper()
        coordinator = city.coordinator(InMemoryTransport(ear.listen(city.peers)))
        model = coordinator.run_round(1, city.basis.initial, final=False).model
        police, path = city.world.participants[POLICE], city.world.folder / POLICE / file
        path.write_bytes(path.read_bytes() + b"\n")
        coordinator.run_round(2, model, final=True)
        assert city.watcher.results[-1].survivors == ("environment", "health", "transport")
        assert set(reasons(police)) == {code}
        assert len(list(police.memory.journal.entries(EntryKind.BURNED))) == 1
        for kind in (UpdateRequest, OpenEpoch):
            assert status(police.handle(ear.first(kind).request)) == "refused", "not even an old answer is sent again"


def test_p4_a_policy_that_is_taken_away_ends_this_departments_part(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        (city.world.folder / POLICE / "policy.sig").unlink()
        city.coordinator(InMemoryTransport(city.peers)).run_round(1, city.basis.initial, final=True)
        assert ("advert", "police", "refused") in {gone[1:] for gone in city.watcher.gone}


class _Interrupted(UnsafeSeededSource):
    """A source of randomness that is asked in the midst of training."""

    act: Callable[[], None] = staticmethod(lambda: None)

    def fork_step(self) -> StepStream:
        self.act()
        return super().fork_step()


def test_p4_a_policy_that_changes_while_the_department_trains_keeps_the_update_here(tmp_path: Path) -> None:
    sources = {name: _Interrupted(sum(name.encode())) for name in ("environment", "health", "police", "transport")}

    def source(name: DepartmentId) -> RandomSource:
        return sources[name]

    with open_city(tmp_path, source=source) as city:
        policy = city.world.folder / POLICE / "policy.toml"
        sources["police"].act = lambda: policy.write_bytes(policy.read_bytes() + b"\n")
        city.coordinator(InMemoryTransport(city.peers)).run_round(1, city.basis.initial, final=True)
        assert city.watcher.gone == [(1, "update", "police", "unavailable")]
        police = city.world.participants[POLICE]
        assert reasons(police) == ["policy-changed"]
        assert not list(police.memory.journal.entries(EntryKind.ANSWERED))


# --- a node in a session -----------------------------------------------------------------------------------


class Node:
    """The police department's worker in a session of an approved plan, and its people beside it."""

    def __init__(self, city: DeployedCity, digest: str) -> None:
        self.city, self.digest, self.config = city, digest, city.config("police")
        self.signed, self.plan = load_published(city.authority, digest)
        self.pipe, theirs = Pipe()
        self.worker = Attendant(self.config, theirs, lambda: UnsafeSeededSource(1))
        self.epoch = 0

    def offer(self) -> str:
        """What becomes of another epoch."""
        self.epoch += 1
        roster = load_members(self.city.authority).signed
        run, cohort = self.plan.run_id(), self.plan.cohort
        asked = OpenEpoch(run=run, epoch=self.epoch, cohort=cohort, plan=self.signed, roster=roster)
        return status(self.worker.answer(run, encode(asked)))

    def sign(self, **privacy: object) -> None:
        """Let the policy's owner sign other caps."""
        config, home = load_config(self.config), self.city.home("police")
        tree = msgspec.toml.decode((home / config.policy).read_bytes())
        tree["privacy"] |= privacy
        text = tomli_w.dumps(tree).encode()
        (home / config.policy).write_bytes(text)
        signature = sign_policy(self.city.policy_owners["police"], text).signature
        (home / config.policy_signature).write_bytes(signature)

    def refused(self) -> list[str]:
        """Why, as the journal says."""
        with open_journal(self.config) as journal:
            return [decode(entry.body, Refused).code for entry in journal.entries(EntryKind.REFUSAL)]


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeployedCity, str]:
    return deploy_with_plan(tmp_path_factory.mktemp("in-force"))


@pytest.fixture
def node(provisioned: tuple[DeployedCity, str]) -> Iterator[Node]:
    city, digest = provisioned
    kept = city.folder / "kept"
    shutil.copytree(city.home("police"), kept)
    opened = Node(city, digest)
    yield opened
    opened.worker.close()
    shutil.rmtree(city.home("police"))
    kept.rename(city.home("police"))


def test_p4_a_stricter_policy_counts_in_the_middle_of_a_session(node: Node) -> None:
    assert node.offer() == "AdvertReply"
    node.sign(epsilon_per_run=0.01)
    assert node.offer() == "refused", "the old policy counts no more"
    assert node.offer() == "unavailable", "the declaration was judged under the old one"
    bind_data(node.config, now=now())
    assert node.offer() == "refused", "the new policy does not allow this plan"
    node.worker.close()
    assert node.refused() == ["policy-changed", "policy-changed", "budget-run"]


def test_a_policy_that_still_allows_the_plan_lets_the_department_in_again_once_its_data_is_checked(node: Node) -> None:
    assert node.offer() == "AdvertReply"
    node.sign(epsilon_per_run=2.5)
    node.worker.show()
    bind_data(node.config, now=now())
    assert node.offer() == "AdvertReply"
    node.worker.close()
    assert node.refused() == ["policy-changed"]


def test_a_declaration_that_nobody_judged_is_not_used(node: Node) -> None:
    assert node.offer() == "AdvertReply"
    check_data(node.city.home("police") / "binding.toml", now=now())
    assert [node.offer(), node.offer()] == ["refused", "unavailable"]
    node.worker.close()
    assert node.refused()[0] == "declaration-changed"


def test_a_worker_keeps_the_department_that_nobody_changed(node: Node) -> None:
    assert node.offer() == "AdvertReply"
    node.worker.show()
    with pytest.raises(CityFedError) as caught:
        open_journal(node.config)
    assert caught.value.code == "journal-locked"


def test_p4_a_no_counts_whatever_became_of_policy_and_data_since(node: Node) -> None:
    assert node.offer() == "AdvertReply"
    node.sign(epsilon_per_run=2.5)
    (node.city.home("police") / "binding.declaration.json").unlink()
    refuse_plan(node.config, node.digest, person="police-dpo", reason="no", now=now())
    node.sign(epsilon_per_run=3.0)
    node.worker.close()
    bind_data(node.config, now=now())
    assert node.offer() == "refused"
    node.worker.close()
    assert node.refused()[-1] == "policy-refused"
