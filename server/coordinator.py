"""The Coordinator: one run of one plan, round by round (protocol 2 and 3; design: the path of one update).

It sees sums, receipts and refusals; it is trusted for availability only. The same class runs over memory,
Flower's grid or any other :class:`~shared.transport.Transport`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from server.aggregation import take_mean
from server.checkpoint import Checkpoints, NoCheckpoints, Progress, RoundTransport, SavedRun
from server.config import Timeouts
from server.epochs import Epoch, open_epoch, restore_epoch
from server.exchange import Asker, guarded, require_enough
from server.heads import KnownHeads
from server.optimizer import ServerOptimizer
from server.records import (
    Countersigned,
    DepartmentMissing,
    EpochReady,
    RoundDone,
    RoundFailed,
    RoundSummary,
    RunEnded,
    RunOpened,
    RunResumed,
)
from server.results import RoundResult, RunObserver, RunResult, SilentObserver
from shared.codec import Record, decode, encode, sha256
from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import DepartmentId, IdentityKey, Roster, Signed, open_signed, sign_record
from shared.journal import EntryKind, Journal
from shared.messages import (
    ClosedRound,
    CloseReply,
    CloseRound,
    ConfirmReply,
    HeadReceipt,
    MaskedUpdate,
    Reveal,
    UpdateRequest,
)
from shared.parameters import Vector, model_hash, vector_to_bytes
from shared.plan import Plan
from shared.privacy.extras import NoisedMetric, noised_metrics
from shared.secagg.server import RoundCollector
from shared.secagg.terms import round_terms
from shared.transport import Transport


@dataclass(kw_only=True)
class Coordinator:
    """Runs one approved plan.

    Attributes:
        plan: the plan; ``signed_plan`` are the bytes that the departments verify.
        signed_roster: the city's roster, verified; a round that began under an older one ends under that one.
        authority: the key that signed the plan; closes rounds.
        transport: carries bytes to departments and back.
        journal: the authority's own journal.
        clock: returns the present time, UTC.
        timeouts: how long a step waits for the slowest department.
        checkpoints: where the run's state is kept, so that another process can go on with it.
    """

    plan: Plan
    signed_plan: Signed
    signed_roster: Signed
    authority: IdentityKey
    transport: Transport
    journal: Journal
    clock: Callable[[], dt.datetime]
    observer: RunObserver = field(default_factory=SilentObserver)
    timeouts: Timeouts = field(default_factory=Timeouts)
    checkpoints: Checkpoints = field(default_factory=NoCheckpoints)
    _epoch_number: int = 0
    _epoch: Epoch | None = None
    _optimizer: ServerOptimizer = field(init=False)
    _carrier: RoundTransport = field(init=False, repr=False)  # there is none before the first round
    _asker: Asker = field(init=False, repr=False)
    _hashed: tuple[Vector, bytes] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self._run = self.plan.run_id()
        self._heads = KnownHeads(self.journal, self._run)
        self._optimizer = ServerOptimizer.start(self.plan.server_optimizer, self.plan.layout.size)

    # --- a run ---------------------------------------------------------------------------------------------

    def run(self, initial_model: Vector) -> RunResult:
        """Run the plan's rounds, or go on with those that a checkpoint left; a failed round uses up one attempt.

        Args:
            initial_model: shape (layout.size,), dtype float32; its hash stands in the plan.

        Raises:
            ProtocolError: ``initial-model`` when the model is not the plan's; ``checkpoint-foreign``.
            JournalError: ``checkpoint-corrupt``.
            RoundAbortedError: of the last failed round, when the attempts are used up; ``attempts-exhausted`` when they
                were before this process took the run up.

        Guarantees:
            A run that goes on after its process was killed, while the departments lived on, ends with the same model
            bit for bit: every reply that was received counts as it would have, and nobody trains again.
        """
        self.plan.layout.check(initial_model)
        if self._hash(initial_model).hex() != self.plan.initial_model_sha256:
            raise ProtocolError("initial-model", "The initial model is not the one that the plan names.")
        progress, model = self._begin_or_resume(initial_model)
        del initial_model  # not held any longer than the model of any round
        if progress.failures > self.plan.spare_attempts:  # killed before that was written down, or said
            self._end("failed", progress)
            raise RoundAbortedError("attempts-exhausted", "The run has failed: all attempts of its plan are used up.")
        while len(progress.rounds) < self.plan.rounds:
            number = progress.next_round
            try:
                result = self.run_round(number, model, final=len(progress.rounds) + 1 == self.plan.rounds)
            except RoundAbortedError as error:
                self._abort(number, error)
                progress = self._save(replace(progress, failures=progress.failures + 1), model)
                if progress.failures > self.plan.spare_attempts:
                    self._end("failed", progress)
                    raise
            else:
                model = result.model
                progress = self._save(replace(progress, rounds=(*progress.rounds, result.summary)), model)
        self._end("completed", progress)
        return RunResult(model=model, rounds=progress.rounds)

    def run_round(self, number: int, model: Vector, *, final: bool) -> RoundResult:
        """Run one round, top to bottom.

        Raises:
            RoundAbortedError: when no sum over enough departments can be had, before anything is revealed; after shares
                were revealed ``too-few-reveals``, ``shares-inconsistent``, ``model-not-finite``.
        """
        with self.checkpoints.open_round(number, self.transport) as self._carrier:
            self._asker = Asker(number=number, carrier=self._carrier, timeouts=self.timeouts, missing=self._missing)
            # 1 cohort
            self._phase(number, "cohort")
            epoch = self._stand()
            collector = self._collector(epoch, number, model)
            # 2 request updates
            self._phase(number, "update")
            self._collect_updates(epoch, collector, number, model)
            # 3 check pair commitments: unequal means unequal model, participants or settings
            guarded(collector.check_commitments)
            # 4 confirm survivors, if any dropped
            self._phase(number, "confirm")
            questions = guarded(collector.confirm_requests)
            self._asker.ask("confirm", questions, ConfirmReply, collector.receive_confirmation)
            # 5 reveal
            self._phase(number, "reveal")
            self._asker.ask("reveal", guarded(collector.reveal_requests), Reveal, collector.receive_reveal)
            # 6 unmask the ring sum, 7 mean and optimiser step, 8 gate
            self._phase(number, "unmask")
            total = guarded(collector.unmask)
            survivors = tuple(collector.survivors)
            metrics = noised_metrics(total[self.plan.layout.size :], self.plan, survivors)
            with np.errstate(over="ignore", invalid="ignore"):  # told by name below
                optimizer, moved = self._optimizer.step(model, take_mean(total, self.plan, survivors))
            if not np.isfinite(moved).all():
                raise RoundAbortedError("model-not-finite", f"Round {number}: the new model holds NaN or infinity.")
            self._optimizer = optimizer
            # 9 countersigned receipt and audit
            self._phase(number, "close")
            digest = self._close(epoch.roster, collector, moved, metrics, final=final)
        dropouts = tuple(name for name in epoch.members if name not in survivors)
        if dropouts:
            self._epoch = None  # membership changed: the next round opens a new epoch
        summary = RoundSummary(round=number, survivors=survivors, dropouts=dropouts, model_hash=digest, metrics=metrics)
        result = RoundResult(summary=summary, model=moved)
        self.observer.closed(result)
        return result

    def _begin_or_resume(self, initial_model: Vector) -> tuple[Progress, Vector]:
        """Return where the run stands: at its start, or where a checkpoint left it."""
        saved = self.checkpoints.load()
        if saved is None:
            self._log(EntryKind.RUN, RunOpened(run=self._run, plan_digest=self.plan.digest(), cohort=self.plan.cohort))
            return self._save(Progress(run=self._run), initial_model), initial_model
        progress = saved.progress
        if progress.run != self._run:
            raise ProtocolError("checkpoint-foreign", "The checkpoint belongs to another run.")
        self._log(EntryKind.RESUMED, RunResumed(run=self._run, round=progress.next_round))
        self._optimizer = self._optimizer.restored(saved.vectors)
        self._epoch_number = progress.epoch_number
        if progress.epoch is not None:
            self._epoch = restore_epoch(self._run, progress.epoch_number, progress.epoch)
        model = saved.vectors["model"]
        self.plan.layout.check(model)
        return progress, model

    def _save(self, progress: Progress, model: Vector) -> Progress:
        """Keep the state between two rounds."""
        epoch = self._epoch.standing if self._epoch else None
        progress = replace(progress, epoch_number=self._epoch_number, epoch=epoch)
        self.checkpoints.save(SavedRun(progress, {"model": model, **self._optimizer.moments()}))
        return progress

    # --- steps ---------------------------------------------------------------------------------------------

    def _stand(self) -> Epoch:
        """Return the epoch that stands, or open one: a round goes on under the roster with which it began."""
        roster = decode(self._carrier.once("roster", lambda: encode(self.signed_roster)), Signed)
        if self._epoch is None or self._epoch.standing.roster != roster:
            self._epoch = open_epoch(self._asker, self.plan, self.signed_plan, roster, self._number_epoch)
            opened = self._epoch.standing
            ready = EpochReady(run=self._run, epoch=self._epoch.number, members=opened.members, adverts=opened.adverts)
            self._log(EntryKind.EPOCH, ready)
        return self._epoch

    def _number_epoch(self) -> int:
        """Return the number of the next attempt at an epoch."""
        self._epoch_number += 1
        return self._epoch_number

    def _collector(self, epoch: Epoch, number: int, model: Vector) -> RoundCollector:
        """Fix the round's terms, the same ones that every department computes itself."""
        terms = round_terms(
            self.plan,
            epoch_id=epoch.name,
            round_number=number,
            participants=epoch.members,
            model_hash=self._hash(model),
        )
        return RoundCollector(terms, epoch.roster)

    def _collect_updates(self, epoch: Epoch, collector: RoundCollector, number: int, model: Vector) -> None:
        """Send the model, add each masked vector to the ring sum as it arrives."""
        request = UpdateRequest(
            run=self._run,
            epoch=epoch.number,
            round=number,
            participants=epoch.members,
            model=vector_to_bytes(model),
            seals=epoch.standing.seals,
        )
        requests = dict.fromkeys(epoch.members, request)
        receive = self._heads.guard(number, epoch.roster, collector.receive_update)
        self._asker.ask("update", requests, MaskedUpdate, receive)
        require_enough(self.plan, number, collector.survivors)

    def _close(
        self,
        roster: Roster,
        collector: RoundCollector,
        model: Vector,
        metrics: tuple[NoisedMetric, ...],
        *,
        final: bool,
    ) -> bytes:
        """Sign the round's account once, collect countersignatures, write both down; return the model's hash."""
        number, digest = collector.terms.round, self._hash(model)
        account = self._carrier.once(
            "account", lambda: encode(self._account(number, collector, digest, metrics, final=final))
        )
        message = CloseRound(closed=decode(account, Signed))
        heads: dict[str, Signed] = {}

        def keep(name: DepartmentId, reply: CloseReply) -> None:
            receipt = open_signed(roster.members[name], "head-receipt", reply.receipt, HeadReceipt)
            if receipt.department != name or receipt.closed_hash != sha256(message.closed.body):
                raise ProtocolError("head-receipt-foreign", f"The countersignature of {name} is for something else.")
            heads[name] = reply.receipt

        self._asker.ask("close", dict.fromkeys(collector.survivors, message), CloseReply, keep)
        self._log(EntryKind.COUNTERSIGNED, Countersigned(run=self._run, round=number, receipts=heads))
        return digest

    def _account(
        self,
        number: int,
        collector: RoundCollector,
        model_digest: bytes,
        metrics: tuple[NoisedMetric, ...],
        *,
        final: bool,
    ) -> Signed:
        """Write the round down and sign its account."""
        receipts = dict(collector.receipts)
        done = RoundDone(
            run=self._run,
            round=number,
            sid=collector.terms.sid(),
            survivors=tuple(collector.survivors),
            model_hash=model_digest,
            receipts=receipts,
            metrics=metrics,
        )
        self._log(EntryKind.ROUND, done)
        closed = ClosedRound(
            run=self._run,
            round=number,
            sid=done.sid,
            survivors=done.survivors,
            model_hash=done.model_hash,
            receipts_hash=sha256(*(receipts[name].body for name in sorted(receipts))),
            final=final,
            journal_sequence=self.journal.head.sequence,
            journal_head=self.journal.head.digest,
        )
        return sign_record(self.authority, "round-closed", closed)

    # --- plumbing ------------------------------------------------------------------------------------------

    def _hash(self, model: Vector) -> bytes:
        """Return the hash of a model; that of the newest one is known, which ends one round and begins the next."""
        if self._hashed is None or self._hashed[0] is not model:
            self._hashed = (model, model_hash(model))
        return self._hashed[1]

    def _abort(self, number: int, error: RoundAbortedError) -> None:
        """Write a failed round down; the next attempt starts with a fresh epoch."""
        self._epoch = None
        self._log(EntryKind.FAILED, RoundFailed(run=self._run, round=number, code=error.code, message=error.message))
        self.observer.failed(number, error)

    def _end(self, status: str, progress: Progress) -> None:
        """Write the run's end down; every other end is written by :mod:`server.ends`."""
        self._log(EntryKind.ENDED, RunEnded(run=self._run, status=status, rounds=len(progress.rounds)))

    def _missing(self, number: int, step: str, department: str, status: str) -> None:
        """Write down that a department gave no usable answer."""
        body = DepartmentMissing(run=self._run, round=number, step=step, department=department, status=status)
        self._log(EntryKind.REFUSAL, body)
        self.observer.missing(number, step, department, status)

    def _phase(self, number: int, phase: str) -> None:
        """Tell the observer."""
        self.observer.phase(number, phase)

    def _log(self, kind: EntryKind, body: Record) -> None:
        """Append to the authority's journal."""
        self.journal.append(kind, body, now=self.clock())
