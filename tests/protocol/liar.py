"""A coordinator that lies: it sends what it likes to real departments and keeps all that comes back.

Departments, journals, policies and plans are the production ones of :mod:`tests.city`; only the coordinator is played
here. The roster key is in the tests' hands, because a lie may come from whoever holds it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from clients.department import Department
from clients.participant import Participant
from clients.records import Approved, Refused
from clients.training.noise import UnsafeSeededSource
from policies.policy import SignedPolicy
from server.audit import OWNER
from server.coordinator import Coordinator
from server.results import RoundResult
from shared.codec import decode, encode
from shared.identity import DepartmentId, IdentityKey, Roster, Signed, fingerprint, sign_record
from shared.journal import EntryKind, Journal, JournalEntry
from shared.messages import (
    AdvertReply,
    ConfirmReply,
    ConfirmRequest,
    MaskedUpdate,
    OpenEpoch,
    Refusal,
    Reply,
    Request,
    Reveal,
    RevealRequest,
    SealReply,
    SealRequest,
    UpdateRequest,
    decode_reply,
)
from shared.parameters import Vector, vector_to_bytes
from shared.plan import Plan
from simulation.network import InMemoryTransport
from simulation.world import World, now
from tests.city import City, Watcher

R = TypeVar("R", bound=Reply)

replace = msgspec.structs.replace

NOTICED = {EntryKind.ROSTER, EntryKind.KEY, EntryKind.DECISION}
"""A verified roster counts whatever becomes of the message that brought it, and a policy's word is written down."""


class Answer(NamedTuple):
    """One reply that left a department."""

    department: str
    request: Any
    reply: Any


@dataclasses.dataclass(frozen=True)
class Town:
    """A founded city, closed: what every test starts from.

    Attributes:
        world: plan, keys and folders; its journals are closed and hold the approvals.
        initial: the plan's starting model.
        office: the key that signs rosters.
    """

    world: World
    initial: Vector
    office: IdentityKey

    @classmethod
    def of(cls, city: City) -> Town:
        """Hand the roster key over: the departments pin this one, in their trust and in their policy."""
        office = IdentityKey.generate()
        world = dataclasses.replace(
            city.world,
            departments={name: _pin(department, office) for name, department in city.world.departments.items()},
            signed_roster=sign_record(office, "roster", city.world.roster),
        )
        return cls(world, city.basis.initial, office)


def _pin(department: Department, office: IdentityKey) -> Department:
    """The same department with another roster key."""
    policy = department.policy.policy
    pins = replace(policy.authority, roster_key_fingerprint=fingerprint(office.public))
    return dataclasses.replace(
        department,
        trust=dataclasses.replace(department.trust, roster_key=office.public),
        policy=SignedPolicy(policy=replace(policy, authority=pins), digest=department.policy.digest),
    )


class Liar:
    """Fresh departments of a town, and the coordinator that a test plays.

    Attributes:
        epoch: the newest epoch that was offered.
        adverts, seals: what the members of the standing epoch sent.
        updates, confirmations, reveals: answers of the round in progress, by department.
        answers: everything that ever left a department, refusals apart.
    """

    def __init__(self, town: Town, folder: Path) -> None:
        self.town = town
        self.world = town.world
        self.plan = town.world.plan
        self.run = self.plan.run_id()
        self.names: tuple[str, ...] = self.plan.cohort
        self.epoch = 0
        self.members: tuple[str, ...] = ()
        self.adverts: dict[str, Signed] = {}
        self.seals: dict[str, Signed] = {}
        self.round = 0
        self.updates: dict[str, MaskedUpdate] = {}
        self.confirmations: dict[str, Signed] = {}
        self.reveals: dict[str, Reveal] = {}
        self.answers: list[Answer] = []
        self._folder = folder
        self.journals: dict[str, Journal] = {}
        self.participants: dict[str, Participant] = {}
        self.seeds: dict[str, int] = {}
        for name in self.names:
            shutil.copy(self.world.folder / name / "journal.sqlite", folder / f"{name}.sqlite")
            self._start(name)

    def _start(self, name: str) -> None:
        self.journals[name] = Journal.open(self._folder / f"{name}.sqlite", owner=name)
        # Each life draws other coins and noise, as fresh randomness would.
        self.seeds[name] = self.journals[name].head.sequence + 1000 * sum(name.encode())
        source = UnsafeSeededSource(self.seeds[name])
        self.participants[name] = Participant(
            self.department(name), journal=self.journals[name], source=source, clock=now
        )

    def department(self, name: str) -> Department:
        """What a department is made of."""
        return self.world.departments[DepartmentId(name)]

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()

    def restart(self, name: str) -> None:
        """Kill a department's process and start it again on its journal."""
        self.journals[name].close()
        self._start(name)

    def roll_back(self, name: str) -> None:
        """Restart a department on the journal that it had when the town was founded."""
        self.journals[name].close()
        for path in self._folder.glob(f"{name}.sqlite*"):
            path.unlink()
        shutil.copy(self.world.folder / name / "journal.sqlite", self._folder / f"{name}.sqlite")
        self._start(name)

    # --- sending -------------------------------------------------------------------------------------------

    def post(self, name: str, raw: bytes) -> Reply:
        """Send bytes."""
        return decode_reply(self.participants[name].handle(raw))

    def send(self, name: str, request: Request) -> Reply:
        """Send a message and remember what left the department."""
        reply = self.post(name, encode(request))
        if not isinstance(reply, Refusal):
            self.answers.append(Answer(name, request, reply))
        return reply

    def get(self, name: str, request: Request, kind: type[R]) -> R:
        """Send a message that must be answered."""
        reply = self.send(name, request)
        assert isinstance(reply, kind), (name, type(request).__name__, self.last_refusal(name))
        return reply

    def assert_refused(self, name: str, request: Request | bytes, code: str) -> Refused:
        """Send a message that must be refused by this name, in a word outside and in full inside; nothing else happens.

        Nothing is answered, charged, burned or opened: beside the one refusal the journal only grows by :data:`NOTICED`.
        """
        before = self.journals[name].head.sequence
        raw = request if isinstance(request, bytes) else encode(request)
        reply = self.post(name, raw)
        assert reply == Refusal(status="refused"), (reply, self.last_refusal(name))
        *noticed, last = self.journals[name].entries(after=before)
        assert {entry.kind for entry in noticed} <= NOTICED
        refusal = _read_refusal(last)
        assert (refusal.code, refusal.status) == (code, "refused"), refusal
        return refusal

    def last_refusal(self, name: str) -> Refused | None:
        """The newest refusal in a department's journal."""
        entries = list(self.journals[name].entries(EntryKind.REFUSAL))
        return _read_refusal(entries[-1]) if entries else None

    # --- what an honest coordinator would send, for tests to bend ------------------------------------------

    def offer(self, **changes: Any) -> OpenEpoch:
        """Invite to the next epoch."""
        self.epoch += 1
        honest: dict[str, Any] = {
            "run": self.run,
            "epoch": self.epoch,
            "cohort": self.names,
            "plan": self.world.signed_plan,
            "roster": self.world.signed_roster,
        }
        return OpenEpoch(**(honest | changes))

    def all_adverts(self, **changes: Any) -> SealRequest:
        """Hand round the adverts."""
        honest: dict[str, Any] = {"run": self.run, "epoch": self.epoch, "adverts": self.adverts}
        return SealRequest(**(honest | changes))

    def ask(self, number: int, **changes: Any) -> UpdateRequest:
        """Ask for an update."""
        honest: dict[str, Any] = {
            "run": self.run,
            "epoch": self.epoch,
            "round": number,
            "participants": self.members,
            "model": vector_to_bytes(self.town.initial),
            "seals": self.seals,
        }
        return UpdateRequest(**(honest | changes))

    def list_of(self, survivors: Sequence[str], **changes: Any) -> ConfirmRequest:
        """Ask for a confirmation."""
        honest: dict[str, Any] = {"run": self.run, "round": self.round, "sid": self.sid, "survivors": tuple(survivors)}
        return ConfirmRequest(**(honest | changes))

    def demand(self, name: str, survivors: Sequence[str], **changes: Any) -> RevealRequest:
        """Ask for shares, with everything that is known of these survivors."""
        honest: dict[str, Any] = {
            "run": self.run,
            "round": self.round,
            "sid": self.sid,
            "survivors": tuple(survivors),
            "receipts": {who: self.updates[who].receipt for who in survivors if who in self.updates},
            "confirmations": {who: self.confirmations[who] for who in survivors if who in self.confirmations},
            "envelopes": {
                who: self.updates[who].envelopes[name] for who in survivors if who != name and who in self.updates
            },
        }
        return RevealRequest(**(honest | changes))

    @property
    def sid(self) -> bytes:
        """The session of the round in progress."""
        return next(iter(self.updates.values())).sid

    # --- honest steps --------------------------------------------------------------------------------------

    def advertise(self, names: Iterable[str] | None = None) -> Liar:
        """Open an epoch up to the adverts."""
        self.members = tuple(names or self.names)
        offer = self.offer(cohort=self.members)
        self.adverts = {name: self.get(name, offer, AdvertReply).advert for name in self.members}
        self.seals = {}
        return self

    def stand(self, names: Iterable[str] | None = None) -> Liar:
        """Open an epoch."""
        self.advertise(names)
        self.seals = {name: self.get(name, self.all_adverts(), SealReply).seals for name in self.members}
        return self

    def upload(self, number: int, *names: str, **changes: Any) -> Liar:
        """Collect updates of a round."""
        if number != self.round:
            self.round, self.updates, self.confirmations, self.reveals = number, {}, {}, {}
        for name in names or self.members:
            self.updates[name] = self.get(name, self.ask(number, **changes), MaskedUpdate)
        return self

    def confirm(self, survivors: Sequence[str], names: Sequence[str] = ()) -> Liar:
        """Collect confirmations of a list."""
        for name in names or survivors:
            self.confirmations[name] = self.get(name, self.list_of(survivors), ConfirmReply).confirmation
        return self

    def reveal(self, survivors: Sequence[str], names: Sequence[str] = ()) -> Liar:
        """Collect shares for a list."""
        for name in names or survivors:
            self.reveals[name] = self.get(name, self.demand(name, survivors), Reveal)
        return self

    # --- people and the honest coordinator -----------------------------------------------------------------

    def sign_plan(self, **changes: Any) -> Signed:
        """A changed plan with the authority's signature."""
        return sign_record(self.world.authority, "plan", replace(self.plan, **changes))

    def sign_roster(self, members: Mapping[str, bytes], *, serial: int = 2) -> Signed:
        """A roster with the roster key's signature."""
        return sign_record(
            self.town.office, "roster", Roster(city="simulated-city", serial=serial, members=dict(members))
        )

    def use_roster(self, signed: Signed) -> None:
        """From now on everybody is handed this roster."""
        self.world = dataclasses.replace(self.world, roster=decode(signed.body, Roster), signed_roster=signed)

    def offer_plan(self, plan: Signed, **changes: Any) -> OpenEpoch:
        """Invite to the run of another plan."""
        return self.offer(plan=plan, run=decode(plan.body, Plan).run_id(), **changes)

    def approve(self, plan: Signed) -> None:
        """Everybody named in each department's policy approves a plan."""
        digest = decode(plan.body, Plan).digest()
        for name, participant in self.participants.items():
            for person, role in self.department(name).policy.policy.approval.people.items():
                approved = Approved(digest=digest, person=person, role=role, author=False)
                participant.memory.write(EntryKind.APPROVAL, approved)

    @contextmanager
    def coordinator(self, watcher: Watcher) -> Iterator[Coordinator]:
        """An honest coordinator over the same departments."""
        peers = {DepartmentId(name): participant.handle for name, participant in self.participants.items()}
        with Journal.open(self._folder / f"authority-{self.epoch}.sqlite", owner=OWNER) as journal:
            yield Coordinator(
                plan=self.plan,
                signed_plan=self.world.signed_plan,
                signed_roster=self.world.signed_roster,
                authority=self.world.authority,
                transport=InMemoryTransport(peers),
                journal=journal,
                clock=now,
                observer=watcher,
                _epoch_number=self.epoch,
            )

    def honest_round(self, number: int) -> RoundResult:
        """Let an honest coordinator run a round with the same departments; everybody must be in its sum."""
        watcher = Watcher()
        with self.coordinator(watcher) as coordinator:
            result = coordinator.run_round(number, self.town.initial, final=False)
        assert watcher.gone == []
        assert result.survivors == self.names
        assert (result.model != self.town.initial).any()
        return result


def _read_refusal(entry: JournalEntry) -> Refused:
    assert entry.kind == EntryKind.REFUSAL, entry.kind
    return decode(entry.body, Refused)
