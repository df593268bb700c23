"""The Participant: a department's side of every message (protocol 2 and 3).

:meth:`Participant.contribute` is the path of one update, top to bottom. Nothing derived from data leaves
before step 3 is on disk, and nothing that the coordinator can see depends on record contents (privacy 2).
"""

from __future__ import annotations

import datetime as dt
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from clients.department import Department
from clients.judge import Judge, Judged
from clients.live_epoch import LiveEpoch, require_epoch, require_round
from clients.memory import Memory
from clients.records import EpochOpened, KeyApproved, Refused, RoundFinished
from clients.training.mechanisms import CONTRIBUTIONS, RoundInputs
from clients.training.noise import RandomSource
from clients.training.train import Trainer, settings_of
from policies.facts import Phase
from shared.codec import Encoded, encode, sha256
from shared.crypto.keys import Entropy
from shared.crypto.stream import RING_DTYPE
from shared.errors import (
    CityFedError,
    InsufficientBudgetError,
    JournalError,
    ModelError,
    PolicyViolation,
    ProtocolError,
)
from shared.identity import Roster, Signed, open_signed, sign_record
from shared.journal import EntryKind, Journal
from shared.messages import (
    ClosedRound,
    CloseReply,
    CloseRound,
    ConfirmRequest,
    HeadReceipt,
    OpenEpoch,
    Refusal,
    Reply,
    RevealRequest,
    SealRequest,
    UpdateRequest,
    decode_request,
)
from shared.plan import Plan, accept_plan
from shared.privacy.ledger import PrivacyLedger
from shared.roster import accept_keys, open_roster
from shared.secagg.epoch import EpochContext, open_epoch


@dataclass(frozen=True)
class _Answer:
    """An answer that was given: the request's digest, the bytes, and what was judged before, if anything was."""

    digest: bytes
    reply: bytes = field(repr=False)
    judged: Judged | None


class Participant:
    """A department's node, free of any transport.

    Args:
        department: identity, trust, policy and binding, as loaded and verified.
        journal: this department's own journal, exclusively opened.
        source: randomness of sampling and noise; in production
            :class:`~clients.training.noise.OsRandomSource`.
        clock: returns the present time, UTC.
        entropy: keys, seeds and nonces of the protocol; only tests pass anything but ``os.urandom``.
        trainer: what trains; only tests and benchmarks pass another kind.

    Attributes:
        last_refusal: why the newest request that was refused was refused; for this department's own people.
        projections: how many updates this process made, by whether they were projected onto the norm ball; no message
            and no journal has it.
    """

    def __init__(
        self,
        department: Department,
        *,
        journal: Journal,
        source: RandomSource,
        clock: Callable[[], dt.datetime],
        entropy: Entropy = os.urandom,
        trainer: type[Trainer] = Trainer,
    ) -> None:
        self.department = department
        self.memory = Memory(journal, clock)
        self.ledger = PrivacyLedger(journal, clock)
        self._journal = journal
        self._source = source
        self._clock = clock
        self._entropy = entropy
        self._trainer = trainer
        self.last_refusal: CityFedError | None = None
        self.projections: Counter[bool] = Counter()
        self._session: LiveEpoch | None = None
        self._data_touched = False
        self._judged: Judged | None = None
        self._last: dict[str, _Answer] = {}
        self._newest: tuple[str, _Answer] | None = None
        self._steps: dict[type, tuple[str, Callable[..., bytes]]] = {
            OpenEpoch: ("advert", self._open_epoch),
            SealRequest: ("seal", self._seal),
            UpdateRequest: ("update", self.contribute),
            ConfirmRequest: ("confirm", self._confirm),
            RevealRequest: ("reveal", self._reveal),
            CloseRound: ("close", self._close),
        }

    # --- the door ------------------------------------------------------------------------------------------

    def handle(self, request: Encoded) -> bytes:
        """Answer one request; every error is a refusal and an audit entry, never an exception.

        Guarantees:
            The coordinator sees ``refused`` for a static rule or a bad message, ``unavailable`` for anything
            after data was touched or for a broken department; findings and reasons stay here. The
            byte-identical reply is sent again for a byte-identical request, and for nothing else; an update, which
            is large, only until the next round begins to train.
        """
        step = "message"
        self._data_touched, self._newest, self._judged = False, None, None
        try:
            self._take_over()
            message, digest = decode_request(request), sha256(request)
            step, make = self._steps[type(message)]
            self.department.require_unchanged()
            answer = self._last.get(step)
            if answer is not None and answer.digest != digest:
                answer = None  # it is not held while a new one is made
            if answer is None:
                reply = make(message, digest)
                answer = _Answer(digest, reply, self._judged)
            elif answer.judged is not None:
                self._judge.require_still(answer.judged)
        except Exception as error:  # noqa: BLE001 - R28: whatever goes wrong is a refusal
            return self._refuse(step, error)
        self._last[step] = answer
        self._newest = (step, answer)
        return answer.reply

    def leaving(self, reply: Encoded) -> Encoded:
        """Return what may leave in the place of the newest reply; asked before every attempt to send it.

        Args:
            reply: what :meth:`handle` returned, or what this method did when it was asked before.

        Returns:
            ``reply`` itself, or a refusal; the reply is not kept then, and is never made again.

        Guarantees:
            An update that waits for the network obeys the policy, the switch, the roster and the word of people as they
            are when it leaves, not when it was made (promise P4).
        """
        if self._newest is None:  # a refusal
            return reply
        step, answer = self._newest
        try:
            self._require_standing()
            if answer.judged is not None:
                self._judge.require_still(answer.judged)
        except Exception as error:  # noqa: BLE001 - R28, as above
            self._newest = None
            self._last.pop(step, None)
            return self._refuse(step, error)
        return reply

    def is_outdated(self) -> bool:
        """Return whether people changed what this department was opened with; if so, the journal says it."""
        try:
            self.department.require_unchanged()
        except PolicyViolation as error:
            self._refuse("session", error)
            return True
        return False

    # --- epoch (protocol 2) --------------------------------------------------------------------------------

    def _open_epoch(self, request: OpenEpoch, _digest: bytes) -> bytes:
        """E1: verify plan and roster, judge the offer, advertise a fresh key."""
        plan, roster = self._verify_offer(request)
        self._judged = self._judge.require(Phase.OFFER, plan, roster, round_number=0)
        self._forget()  # opening an epoch first erases the older one
        context = EpochContext(
            run=request.run,
            epoch=request.epoch,
            department=self.department.name,
            cohort=request.cohort,
            roster=roster,
            policy_hash=self.department.policy.digest,
            heads_seen=self.memory.heads,
            own_sequence=self._journal.head.sequence,
        )
        state, reply = open_epoch(context, self.department.identity, entropy=self._entropy)
        self.memory.write(EntryKind.EPOCH, EpochOpened(run=request.run, epoch=request.epoch))
        self._session = LiveEpoch(plan=plan, roster=roster, epoch_number=request.epoch, epoch=state)
        return encode(reply)

    def _verify_offer(self, request: OpenEpoch) -> tuple[Plan, Roster]:
        """Check everything about an offer that is not policy."""
        plan = accept_plan(request.plan, self.department.trust.authority_key)
        roster = self._accept_roster(request.roster)
        if request.run != plan.run_id():
            raise ProtocolError("run-foreign", "The run is not the one that follows from the plan.")
        if not set(request.cohort) <= set(plan.cohort):
            raise ProtocolError("cohort-foreign", "The cohort is not the one of the plan.")
        self.department.require_fitting(plan, roster)
        known = self.memory.run(request.run)
        if request.epoch <= known.last_epoch:
            raise ProtocolError("epoch-not-new", f"Epoch {request.epoch} is not above epoch {known.last_epoch}.")
        return plan, roster

    def _accept_roster(self, signed: Signed) -> Roster:
        """Let a verified roster count at once, whatever becomes of its offer, and its keys where they are approved."""
        trust = self.department.trust
        roster = open_roster(signed, roster_key=trust.roster_key, newest=self.memory.roster)
        if self.memory.see_roster(signed, roster):
            self._forget()  # nobody whom it removed takes part in another step
        for name, key in accept_keys(roster, trust.pins | self.memory.keys).items():
            self.memory.write(EntryKind.KEY, KeyApproved(department=name, key=key, means="endorsement"))
        return roster

    def _forget(self) -> None:
        """Erase the live epoch with its keys, and the answers that could be sent again."""
        self._session = None
        self._last.clear()

    def _seal(self, request: SealRequest, _digest: bytes) -> bytes:
        """E2: check all adverts, seal one seed for each peer."""
        session = require_epoch(self._session, request.run, request.epoch)
        return encode(session.seal(request, own=self.department.name))

    # --- one update (protocol 3.1) -------------------------------------------------------------------------

    def contribute(self, request: UpdateRequest, digest: bytes) -> bytes:
        """Make this department's contribution to one round."""
        # 1 verify: epoch, round, model, participants; before anything is reserved all roots are derived, and the model
        # and its engine tried on a unit that was made up: nothing is burned for a plan that cannot be trained here
        session = require_epoch(self._session, request.run, request.epoch)
        plan, name = session.plan, self.department.name
        self.memory.require_open(request.run, request.round, "update")
        model, terms, epoch = session.verify_round(request)
        if session.trainer is None:
            session.trainer = self._trainer.prepare(
                settings=settings_of(plan, name),
                data=self.department.specimen(plan),
                weights_dir=self.department.weights,
                flags=self.department.performance,
            )
        # 2 decide: every static rule, all findings kept
        self._judged = self._judge.require(Phase.ROUND, plan, session.roster, round_number=request.round)
        # 3 reserve: the charge is durable before a record is touched
        reservation = self.ledger.reserve(self.department.charge(plan), self.department.budgets())
        reservation.burn(request.round)
        self._data_touched = True
        self._last.pop("update", None)  # nobody resumes the round before any more, and its vector is large
        session.epoch, keyed = epoch.begin(terms)
        # 4 load: a bad row is dropped by a rule on that row alone
        data = self.department.rows(plan)
        # 5 train: Poisson over units, per-unit clipping, noise; 6 guard: project onto the norm ball, shapes, finite
        inputs = RoundInputs(
            parameters=model,
            data=data,
            source=self._source,
            weight=plan.datasets[name].weight,
            bound=plan.aggregation.bound,
            bits=terms.fraction_bits,
        )
        contribution = CONTRIBUTIONS[plan.privacy.mechanism](session.trainer, inputs)
        self.projections[contribution.projected] += 1
        self._require_standing()  # training takes long
        self._judged = self._judge.require(
            Phase.SEND, plan, session.roster, round_number=request.round, outgoing=contribution.judged
        )
        # 7 encode, unless shared noise did, 8 mask; shares sealed to peers; receipt signed
        head = self._journal.head
        masked, reply = keyed.mask(
            contribution.ready,
            identity=self.department.identity,
            ledger_sequence=head.sequence,
            ledger_head=head.digest,
            out=contribution.ready.view(RING_DTYPE),  # the words take its place; `_commit` encodes them at once
        )
        session.round_number, session.round = request.round, masked
        # 9 commit: logged once per (run, round), then handed to the transport
        return self._commit(request.run, request.round, "update", digest, reply)

    # --- survivors (protocol 3.2 and 3.3) ------------------------------------------------------------------

    def _confirm(self, request: ConfirmRequest, digest: bytes) -> bytes:
        """Stand by one survivor list."""
        session = require_round(self._session, request.run, request.round)
        self.memory.require_open(request.run, request.round, "confirm")
        return self._commit(request.run, request.round, "confirm", digest, session.confirm(request))

    def _reveal(self, request: RevealRequest, digest: bytes) -> bytes:
        """Give shares for exactly one survivor list."""
        session = require_round(self._session, request.run, request.round)
        self.memory.require_open(request.run, request.round, "reveal")
        state, reply = session.reveal(request, heads_seen=self.memory.heads)
        self.memory.see_heads(state.ledger_heads, session.adverts)
        session.adverts = {}
        return self._commit(request.run, request.round, "reveal", digest, reply)

    def _close(self, request: CloseRound, _digest: bytes) -> bytes:
        """Keep the authority's signed account and countersign it; a clean end settles the charge."""
        closed = open_signed(self.department.trust.authority_key, "round-closed", request.closed, ClosedRound)
        session = require_round(self._session, closed.run, closed.round)
        if closed.round in self.memory.run(closed.run).finished:
            raise ProtocolError("round-already-closed", f"Round {closed.round} was closed here before.")
        session.check_account(closed, own=self.department.name)
        self.memory.write(EntryKind.ROUND, RoundFinished(run=closed.run, round=closed.round, closed=request.closed))
        reservation = self.ledger.reservation(closed.run)
        if closed.final and reservation is not None:
            reservation.settle()
        receipt = HeadReceipt(
            department=self.department.name,
            closed_hash=sha256(request.closed.body),
            journal_sequence=self._journal.head.sequence,
            journal_head=self._journal.head.digest,
        )
        return encode(CloseReply(receipt=sign_record(self.department.identity, "head-receipt", receipt)))

    # --- helpers -------------------------------------------------------------------------------------------

    @property
    def _judge(self) -> Judge:
        """Who asks the rules of the department."""
        return Judge(self.department, self.memory, self.ledger, self._clock)

    def _take_over(self) -> bool:
        """Let count what people decided meanwhile, and return whether a newer roster is among it."""
        newer = self.memory.take_over(self.department.outbox)
        if newer:
            self._forget()  # nobody whom the newer roster removed takes part in another step
        return newer

    def _require_standing(self) -> None:
        """Refuse to go on with a step that was begun under files or a roster that count no more."""
        self.department.require_unchanged()
        if self._take_over():
            raise ProtocolError("roster-replaced", "A newer roster counts here than the one that the step began under.")

    def _commit(self, run: bytes, round_number: int, step: str, digest: bytes, reply: Reply) -> bytes:
        """Log the answer to the request of this digest durably, then release its bytes."""
        data = encode(reply)
        self.memory.answer(run, round_number, step, request_hash=digest, reply_hash=sha256(data))
        return data

    def _refuse(self, step: str, error: Exception) -> bytes:
        """Write the reason down here; tell the coordinator one word."""
        if not isinstance(error, CityFedError):
            error = CityFedError("internal-error", f"{type(error).__name__} in step {step}.")
        visible = isinstance(error, (PolicyViolation, ProtocolError, InsufficientBudgetError, ModelError))
        status: Literal["refused", "unavailable"] = "refused" if visible and not self._data_touched else "unavailable"
        self.last_refusal = error
        try:
            body = Refused(step=step, status=status, code=error.code, message=error.message)
            self._journal.append(EntryKind.REFUSAL, body, now=self._clock())
        except JournalError as broken:
            status, self.last_refusal = "unavailable", broken
        return encode(Refusal(status=status))
