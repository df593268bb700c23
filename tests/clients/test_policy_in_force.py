"""What a department's people change counts from the next step on, also for a node that stands in a session (P4)."""

from __future__ import annotations

import datetime as dt
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
from clients.enrol import CONFIG_FILE
from clients.outbox import leave_decision
from clients.participant import Participant
from clients.plans import refuse_plan
from clients.records import PlanRefused, Refused, RosterSeen
from clients.training.noise import RandomSource, StepStream, UnsafeSeededSource
from policies.evaluate import Decision
from policies.load import sign_policy
from server.plan_files import load_published
from server.roster import load_members
from shared.codec import Encoded, decode, encode
from shared.errors import CityFedError
from shared.identity import DepartmentId, IdentityKey, sign_record
from shared.journal import EntryKind
from shared.messages import OpenEpoch, Refusal, SealRequest, UpdateRequest, decode_reply, decode_request
from simulation.network import InMemoryTransport
from tests.city import City, open_city
from tests.clients.participant_city import POLICE, reasons
from tests.deployed_city import DeployedCity, deploy_with_plan, now
from tests.eavesdropper import Eavesdropper

CHANGES = {
    "policy.toml": "policy-changed",
    "policy.sig": "policy-changed",
    CONFIG_FILE: "configuration-changed",
}


def status(reply: Encoded) -> str:
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


def _say_no(city: City) -> None:
    """A person's no, left for the node that holds the journal."""
    body = PlanRefused(digest=city.world.plan.digest(), person="police-it", reason="no")
    leave_decision(city.world.participants[POLICE].department.outbox, EntryKind.PLAN_REFUSED, body)


def _change_policy(city: City) -> None:
    path = city.world.folder / POLICE / "policy.toml"
    path.write_bytes(path.read_bytes() + b"\n")


def _stop(city: City) -> None:
    city.world.participants[POLICE].department.stop_file.touch(mode=0o600)


def _let_the_plan_expire(city: City) -> None:
    later = now() + dt.timedelta(days=60)
    city.world.participants[POLICE]._clock = lambda: later


def _renew_roster(city: City) -> None:
    """A newer roster, verified and taken over at the command line."""
    newer = msgspec.structs.replace(city.world.roster, serial=2)
    seen = RosterSeen(roster=sign_record(IdentityKey.generate(), "roster", newer))
    leave_decision(city.world.participants[POLICE].department.outbox, EntryKind.ROSTER, seen)


MEANWHILE = {
    "policy-changed": _change_policy,
    "policy-refused: R10": _say_no,
    "policy-refused: R23": _stop,
    "policy-refused: R19": _let_the_plan_expire,
    "roster-replaced": _renew_roster,
}


def _why(participant: Participant) -> str:
    """The newest refusal, with the rules behind it."""
    code = reasons(participant)[-1]
    decisions = [decode(entry.body, Decision) for entry in participant.memory.journal.entries(EntryKind.DECISION)]
    rules = [finding.rule for finding in decisions[-1].failed]
    return ": ".join([code, *rules])


@pytest.mark.parametrize("why", MEANWHILE)
def test_p4_what_people_decide_while_the_department_trains_keeps_the_update_here(tmp_path: Path, why: str) -> None:
    source = _Interrupted(1)
    with open_city(tmp_path, source=lambda name: source if name == POLICE else UnsafeSeededSource(1)) as city:
        told = iter((MEANWHILE[why],))
        source.act = lambda: next(told, lambda _: None)(city)
        city.coordinator(InMemoryTransport(city.peers)).run_round(1, city.basis.initial, final=True)
        assert city.watcher.gone == [(1, "update", "police", "unavailable")]
        police = city.world.participants[POLICE]
        assert _why(police) == why
        assert not list(police.memory.journal.entries(EntryKind.ANSWERED))


@pytest.mark.parametrize("why", MEANWHILE)
def test_p4_an_update_that_waits_for_the_network_obeys_what_people_decided_meanwhile(tmp_path: Path, why: str) -> None:
    with open_city(tmp_path) as city:
        police, asked = city.world.participants[POLICE], list[bytes]()

        def slow(request: bytes) -> bytes:
            """A door behind which an update waits."""
            reply = police.leaving(police.handle(request))
            if isinstance(decode_request(request), UpdateRequest):
                asked.append(request)
                assert police.leaving(reply) is reply, "nothing has changed yet"
                MEANWHILE[why](city)
                reply = police.leaving(reply)
                assert police.leaving(reply) is reply, "a refusal may always leave"
            return bytes(reply)

        coordinator = city.coordinator(InMemoryTransport({**city.peers, POLICE: slow}))
        coordinator.run_round(1, city.basis.initial, final=True)
        assert city.watcher.gone == [(1, "update", "police", "unavailable")]
        assert city.watcher.results[-1].survivors == ("environment", "health", "transport")
        assert _why(police) == why
        police.department.stop_file.unlink(missing_ok=True)
        assert status(police.handle(asked[0])) == "refused", "it is not kept, nor made again"


def test_p4_an_old_update_is_not_sent_again_once_work_is_stopped(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        ear = Eavesdropper()
        city.coordinator(InMemoryTransport(ear.listen(city.peers))).run_round(1, city.basis.initial, final=True)
        police, sent = city.world.participants[POLICE], ear.first(UpdateRequest)
        assert police.handle(sent.request) == sent.reply
        _stop(city)
        assert status(police.handle(sent.request)) == "refused"
        assert _why(police) == "policy-refused: R23"


def test_a_round_whose_update_has_left_is_finished_although_work_is_stopped(tmp_path: Path) -> None:
    with open_city(tmp_path) as city:
        police = city.world.participants[POLICE]

        def door(request: bytes) -> bytes:
            if not isinstance(decode_request(request), OpenEpoch | SealRequest | UpdateRequest):
                _stop(city)
            return bytes(police.leaving(police.handle(request)))

        coordinator = city.coordinator(InMemoryTransport({**city.peers, POLICE: door}))
        coordinator.run_round(1, city.basis.initial, final=True)
        assert not city.watcher.gone
        assert "police" in city.watcher.results[-1].survivors
        assert not reasons(police)


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
        return status(self.ask())

    def ask(self) -> Encoded:
        """Offer another epoch."""
        self.epoch += 1
        roster = load_members(self.city.authority).signed
        run, cohort = self.plan.run_id(), self.plan.cohort
        asked = OpenEpoch(run=run, epoch=self.epoch, cohort=cohort, plan=self.signed, roster=roster)
        return self.worker.answer(run, encode(asked))

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


def test_p4_a_reply_of_a_department_that_was_let_go_of_does_not_leave(node: Node) -> None:
    advert = node.ask()
    assert node.worker.leaving(advert) is advert
    node.sign(epsilon_per_run=0.01)
    assert node.worker.leaving(advert) is not advert, "also before anybody has let go"
    node.worker.show()
    gone = node.worker.leaving(advert)
    assert status(gone) == "unavailable"
    assert node.worker.leaving(gone) is gone
    assert node.refused() == ["policy-changed", "policy-changed"]


def test_a_policy_that_still_allows_the_plan_lets_the_department_in_again_once_its_data_is_checked(node: Node) -> None:
    assert node.offer() == "AdvertReply"
    node.sign(epsilon_per_run=2.5)
    node.worker.show()
    bind_data(node.config, now=now())
    assert node.offer() == "AdvertReply"
    node.worker.close()
    assert node.refused() == ["policy-changed"]


def test_a_department_that_cannot_be_opened_holds_no_journal(node: Node) -> None:
    """Its people need it to find out why."""
    with open_journal(node.config) as journal:
        journal.append(EntryKind.ANSWERED, Refused(step="", status="refused", code="", message=""), now=now())
    assert node.offer() == "unavailable"
    open_journal(node.config).close()


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
