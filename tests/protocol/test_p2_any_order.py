"""No order of messages, restarts, old epochs and second sids gives a coordinator more than one sum (protocol 3, 6).

Hypothesis plays a coordinator that sends anything to real departments at any time. What counts is only what left
them, read by the tests alone: two signed survivor lists, two reveals in a round and a reveal below the local floor
are looked for by name, and the model of :mod:`tests.protocol.model` says which sums fall out of the shares.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from shared.codec import decode, encode
from shared.identity import Signed
from shared.messages import (
    AdvertReply,
    ConfirmedSet,
    ConfirmReply,
    ConfirmRequest,
    MaskedUpdate,
    OpenEpoch,
    Reveal,
    RevealRequest,
    SealReply,
    SealRequest,
    UpdateRequest,
)
from shared.parameters import vector_to_bytes
from tests.city import FOUR
from tests.protocol.liar import Liar, Town
from tests.protocol.model import Rules, Setting, Sums, View

names = st.sampled_from(FOUR)
groups = st.sets(names, min_size=3).map(lambda chosen: tuple(sorted(chosen)))
"""Three or four departments: anything smaller is refused at once, as the named tests show."""

rounds = st.integers(min_value=1, max_value=5)


class AnyOrder(RuleBasedStateMachine):
    """A coordinator without a plan, but with a good memory.

    It keeps every epoch that it opened, every upload by (round, sid), every confirmation, and every request.
    """

    town: Town

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.liar = Liar(self.town, Path(self.folder.name))
        self.epochs: list[dict[str, Any]] = []
        self.uploads: dict[tuple[int, bytes], dict[str, MaskedUpdate]] = defaultdict(dict)
        self.confirmations: dict[bytes, dict[str, Signed]] = defaultdict(dict)
        self.requests: list[tuple[str, Any]] = []
        self.models = [vector_to_bytes(self.town.initial + np.float32(shift)) for shift in (0, 1)]

    def teardown(self) -> None:
        for kind in {type(answer.reply).__name__ for answer in self.liar.answers if currently_in_test_context()}:
            event(kind)
        self.liar.close()
        self.folder.cleanup()

    def send(self, name: str, request: Any) -> Any:
        self.requests.append((name, request))
        return self.liar.send(name, request)

    # --- what it may do ------------------------------------------------------------------------------------

    @rule(cohort=groups, early=st.booleans())
    def open_epoch(self, cohort: tuple[str, ...], early: bool) -> None:
        """Open an epoch, or leave it at the adverts."""
        offer = self.liar.offer(cohort=cohort)
        replies = {name: self.send(name, offer) for name in cohort}
        adverts = {name: reply.advert for name, reply in replies.items() if isinstance(reply, AdvertReply)}
        epoch = {"epoch": self.liar.epoch, "participants": cohort, "adverts": adverts, "seals": {}}
        self.epochs.append(epoch)
        if not early:
            self.seal(len(self.epochs) - 1)

    @precondition(lambda self: self.epochs)
    @rule(which=st.integers(min_value=0))
    def seal(self, which: int) -> None:
        """Hand round the adverts of any epoch."""
        epoch = self.epochs[which % len(self.epochs)]
        request = SealRequest(run=self.liar.run, epoch=epoch["epoch"], adverts=epoch["adverts"])
        for name in epoch["participants"]:
            reply = self.send(name, request)
            if isinstance(reply, SealReply):
                epoch["seals"][name] = reply.seals

    @precondition(lambda self: self.epochs)
    @rule(
        number=rounds,
        back=st.sampled_from([1, 1, 1, 2]),
        asked=groups,
        fewer=st.booleans(),
        model=st.sampled_from([0, 0, 0, 1]),
    )
    def ask(self, number: int, back: int, asked: tuple[str, ...], fewer: bool, model: int) -> None:
        """Ask some departments for an update, in a new or an old epoch, for all participants or for fewer."""
        epoch = self.epochs[-min(back, len(self.epochs))]
        request = self.liar.ask(
            number,
            epoch=epoch["epoch"],
            participants=asked if fewer else epoch["participants"],
            seals=dict(epoch["seals"]),
            model=self.models[model],
        )
        for name in asked:
            reply = self.send(name, request)
            if isinstance(reply, MaskedUpdate):
                self.uploads[number, reply.sid][name] = reply

    def sessions(self) -> list[tuple[int, bytes]]:
        return list(self.uploads)

    @precondition(lambda self: self.uploads)
    @rule(back=st.integers(min_value=1, max_value=3), survivors=groups, asked=groups)
    def confirm(self, back: int, survivors: tuple[str, ...], asked: tuple[str, ...]) -> None:
        """Ask some departments to stand by a list, under a new or an old sid."""
        number, sid = self.sessions()[-min(back, len(self.uploads))]
        request = ConfirmRequest(run=self.liar.run, round=number, sid=sid, survivors=survivors)
        for name in asked:
            reply = self.send(name, request)
            if isinstance(reply, ConfirmReply):
                self.confirmations[sid][name] = reply.confirmation

    @precondition(lambda self: self.uploads)
    @rule(back=st.integers(min_value=1, max_value=3), survivors=groups, asked=groups)
    def reveal(self, back: int, survivors: tuple[str, ...], asked: tuple[str, ...]) -> None:
        """Ask some departments for shares, with all that was collected under this sid."""
        number, sid = self.sessions()[-min(back, len(self.uploads))]
        uploads, confirmed = self.uploads[number, sid], self.confirmations[sid]
        for name in asked:
            request = RevealRequest(
                run=self.liar.run,
                round=number,
                sid=sid,
                survivors=survivors,
                receipts={who: uploads[who].receipt for who in survivors if who in uploads},
                confirmations={who: confirmed[who] for who in survivors if who in confirmed},
                envelopes={
                    who: uploads[who].envelopes.get(name, b"") for who in survivors if who in uploads and who != name
                },
            )
            self.send(name, request)

    @rule(name=names)
    def restart(self, name: str) -> None:
        """Crash a department."""
        self.liar.restart(name)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(min_value=0))
    def replay(self, which: int) -> None:
        """Send any earlier request again."""
        name, request = self.requests[which % len(self.requests)]
        if not isinstance(request, OpenEpoch | SealRequest):
            self.liar.send(name, request)

    # --- what must never be seen ---------------------------------------------------------------------------

    @invariant()
    def one_answer_to_each_step_of_a_round(self) -> None:
        seen: dict[tuple[str, int, type], set[bytes]] = defaultdict(set)
        for name, request, reply in self.liar.answers:
            if isinstance(request, UpdateRequest | ConfirmRequest | RevealRequest):
                seen[name, request.round, type(request)].add(encode(reply))
        assert all(len(replies) == 1 for replies in seen.values())

    @invariant()
    def one_signed_survivor_list_in_a_round(self) -> None:
        lists: dict[int, dict[tuple[str, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
        for name, request, reply in self.liar.answers:
            if isinstance(reply, ConfirmReply):
                confirmed = decode(reply.confirmation.body, ConfirmedSet)
                assert confirmed.survivors == request.survivors
                assert len(confirmed.survivors) >= 3
                lists[request.round][confirmed.survivors].add(name)
        for supported in lists.values():
            assert sum(len(who) >= 3 for who in supported.values()) <= 1

    @invariant()
    def no_reveal_below_the_floor(self) -> None:
        for name, request, reply in self.liar.answers:
            if isinstance(reply, Reveal):
                survivors = set(reply.self_shares)
                assert name in survivors
                assert (
                    len(survivors) >= self.town.world.departments[name].policy.policy.aggregation.min_contributors_min
                )
                assert survivors == set(request.survivors)
                assert not survivors & {dropped for row in reply.pair_shares.values() for dropped in row}

    @invariant()
    def one_sum_falls_out_whoever_colludes(self) -> None:
        for number in {number for number, _ in self.uploads}:
            for colluder in FOUR:
                sums = self.sums(number, colluder)
                assert len(sums) <= 1
                assert all(len(group) >= 2 for group in sums)

    def sums(self, number: int, colluder: str) -> Sums:
        """What the coordinator and one department can compute of a round, by the model."""
        order = [*(name for name in FOUR if name != colluder), colluder]
        place = {name: position for position, name in enumerate(order)}
        found: set[frozenset[int]] = set()
        for (round_number, sid), uploads in self.uploads.items():
            if round_number == number:
                senders = frozenset(place[name] for name in uploads if name != colluder)
                answers = {
                    place[name]: frozenset(place[who] for who in reply.self_shares)
                    for name, _, reply in self.liar.answers
                    if isinstance(reply, Reveal) and reply.sid == sid and name != colluder
                }
                receipt = next(iter(uploads.values()))
                participants = frozenset(place[who] for who in self.participants(receipt, uploads))
                view = View(Setting(4, 3, 3, 1), Rules(), participants, senders)
                found |= view.sums(answers)
        return frozenset(found)

    @staticmethod
    def participants(update: MaskedUpdate, uploads: dict[str, MaskedUpdate]) -> set[str]:
        """Everybody that an upload shares its seeds with, and its sender."""
        return set(update.envelopes) | {name for name, one in uploads.items() if one is update}


@pytest.fixture
def machine(town: Town) -> type[AnyOrder]:
    return type("AnyOrderInTown", (AnyOrder,), {"town": town})


quick = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def test_p2_no_order_of_messages_yields_two_lists_two_reveals_or_a_small_sum(machine: type[AnyOrder]) -> None:
    run_state_machine_as_test(machine, settings=quick)


@pytest.mark.soak
def test_p2_no_order_of_messages_yields_more_in_a_long_search(machine: type[AnyOrder]) -> None:
    run_state_machine_as_test(machine, settings=settings(quick, max_examples=2000, stateful_step_count=60))


# --- the search reaches what it looks for --------------------------------------------------------------------


@pytest.fixture
def played(machine: type[AnyOrder]) -> Iterator[AnyOrder]:
    game = machine()
    yield game
    game.teardown()


def play(game: AnyOrder, survivors: Sequence[str]) -> None:
    game.open_epoch(cohort=FOUR, early=False)
    game.ask(number=1, back=1, asked=FOUR, fewer=False, model=0)
    if tuple(survivors) != FOUR:
        game.confirm(back=1, survivors=survivors, asked=survivors)
    game.reveal(back=1, survivors=survivors, asked=survivors)


@pytest.mark.parametrize("survivors", [FOUR, FOUR[:3], FOUR[1:]], ids=len)
def test_the_moves_lead_to_a_sum(played: AnyOrder, survivors: tuple[str, ...]) -> None:
    """An honest order of the same moves gives one sum, so the machine can see one."""
    play(played, survivors)
    outside = next(name for name in FOUR if name not in survivors or name == FOUR[-1])
    assert len(played.sums(1, colluder=outside)) == 1
    played.one_sum_falls_out_whoever_colludes()


def test_a_second_list_would_be_seen(played: AnyOrder) -> None:
    """Answers that no department gives, laid into the record, trip every check by its name."""
    play(played, FOUR[:3])
    name, request, reply = next(answer for answer in played.liar.answers if isinstance(answer.reply, Reveal))
    second = type(reply)(sid=reply.sid, self_shares=dict(list(reply.self_shares.items())[:2]), pair_shares={})
    played.liar.answers.append(played.liar.answers[0]._replace(department=name, request=request, reply=second))
    for check in (played.one_answer_to_each_step_of_a_round, played.no_reveal_below_the_floor):
        with pytest.raises(AssertionError):
            check()
