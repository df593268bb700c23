"""No order of messages, restarts, old epochs and second sids gives a coordinator more than one sum (protocol 3, 6).

Hypothesis plays a coordinator that sends anything to real departments at any time. What counts is only what left
them, read by the tests alone: two signed survivor lists, two reveals in a round and a reveal below the local floor
are looked for by name, and the model of :mod:`tests.protocol.model` says which sums fall out of the shares.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from shared.codec import decode, encode
from shared.identity import Signed
from shared.messages import (
    AdvertReply,
    ConfirmedSet,
    ConfirmReply,
    ConfirmRequest,
    MaskedUpdate,
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

Draw = Callable[[st.SearchStrategy[Any]], Any]

names = st.sampled_from(FOUR)
groups = st.sets(names, min_size=3).map(lambda chosen: tuple(sorted(chosen)))
"""Three or four departments: anything smaller is refused at once, as the named tests show."""

MOVES = (*["go_on"] * 6, "open_epoch", "half_an_epoch", "restart", "replay", "ask", "confirm", "reveal")


Session = tuple[int, bytes]
"""A round number and a sid."""


class Epoch(NamedTuple):
    """What the coordinator keeps of an epoch."""

    number: int
    cohort: tuple[str, ...]
    adverts: dict[str, Signed]
    seals: dict[str, Signed]


class AnyOrder(RuleBasedStateMachine):
    """A coordinator without a plan, but with a good memory.

    It keeps every epoch that it opened, every upload by (round, sid), every confirmation, and every request.
    """

    town: Town
    left: set[type]  # what the departments answered in all games together

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.liar = Liar(self.town, Path(self.folder.name))
        self.epochs: list[Epoch] = []
        self.uploads: dict[Session, dict[str, MaskedUpdate]] = defaultdict(dict)
        self.confirmations: dict[bytes, dict[str, Signed]] = defaultdict(dict)
        self.stood_by: dict[tuple[Session, str], tuple[str, ...]] = {}
        self.highest = 0
        self.ahead = "next_round"
        self.requests: list[tuple[str, Any]] = []
        self.models = [vector_to_bytes(self.town.initial + np.float32(shift)) for shift in (0, 1)]

    def teardown(self) -> None:
        self.left.update(type(answer.reply) for answer in self.liar.answers)
        for kind in {type(answer.reply).__name__ for answer in self.liar.answers if currently_in_test_context()}:
            event(kind)
        self.liar.close()
        self.folder.cleanup()

    def send(self, name: str, request: Any) -> Any:
        self.requests.append((name, request))
        return self.liar.send(name, request)

    # --- what it may do ------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Every lie needs an epoch that stands."""
        self.epoch(FOUR)

    @rule(move=st.sampled_from(MOVES), data=st.data())
    def play(self, move: str, data: st.DataObject) -> None:
        """Make any move: one rule, so that hypothesis leaves none of them out."""
        getattr(self, move)(data.draw)

    # Straight on.

    def go_on(self, draw: Draw) -> None:
        """Take the next step of a round that might end in a sum."""
        step, self.ahead = (
            self.ahead,
            {"next_round": "next_list", "next_list": "next_shares"}.get(self.ahead, "next_round"),
        )
        if step == "next_list" and draw(st.booleans()):
            step, self.ahead = "next_shares", "next_round"
        getattr(self, step)(draw)

    def next_round(self, draw: Draw) -> None:
        """Ask everybody in the newest epoch for the next round, some of them from another model."""
        self.highest += 1
        other = draw(st.sampled_from([None, None, None, None, *FOUR]))
        self.ask_for(self.highest, self.epochs[-1], [name for name in FOUR if name != other])
        self.ask_for(self.highest, self.epochs[-1], [name for name in FOUR if name == other], model=1)

    def next_list(self, draw: Draw) -> None:
        """Ask everybody on a list to stand by it, or all but one."""
        survivors = draw(groups)
        absent = draw(st.sampled_from([None, None, None, *survivors]))
        self.ask_to_confirm(self.session(0), survivors, [name for name in survivors if name != absent])

    def next_shares(self, _draw: Draw) -> None:
        """Ask everybody for shares: for the list that it confirmed, or for everybody."""
        session = self.session(0)
        for name in FOUR:
            self.ask_to_reveal(session, self.stood_by.get((session, name), FOUR), [name])

    # Sideways.

    def open_epoch(self, draw: Draw) -> None:
        """Open an epoch among some departments."""
        self.epoch(draw(groups))

    def half_an_epoch(self, draw: Draw) -> None:
        """Open an epoch as far as the adverts, or hand round the adverts of an older one."""
        if draw(st.booleans()):
            self.advertise(draw(groups))
        else:
            self.seal(draw(st.sampled_from(self.epochs)))

    def restart(self, draw: Draw) -> None:
        """Crash some departments; they are back for the next epoch, or not yet."""
        for name in draw(st.sets(names, min_size=1)):
            self.liar.restart(name)
        if draw(st.booleans()):
            self.epoch(FOUR)

    def replay(self, draw: Draw) -> None:
        """Send an earlier request again; an offer or adverts sent again change nothing."""
        name, request = draw(st.sampled_from(self.requests))
        self.liar.send(name, request)

    def ask(self, draw: Draw) -> None:
        """Ask for any round, in any epoch, for any participants, from any model."""
        number, participants = draw(st.integers(1, self.highest + 2)), draw(groups)
        self.ask_for(
            number, draw(st.sampled_from(self.epochs)), draw(groups), participants, model=draw(st.integers(0, 1))
        )

    def confirm(self, draw: Draw) -> None:
        """Ask for any list under any sid."""
        self.ask_to_confirm(self.session(draw(st.integers(0, 3))), draw(groups), draw(groups))

    def reveal(self, draw: Draw) -> None:
        """Ask for shares for any list under any sid."""
        self.ask_to_reveal(self.session(draw(st.integers(0, 3))), draw(groups), draw(groups))

    # --- how it does it ------------------------------------------------------------------------------------

    def epoch(self, cohort: Sequence[str]) -> None:
        self.ahead = "next_round"
        self.advertise(cohort)
        self.seal(self.epochs[-1])

    def advertise(self, cohort: Sequence[str]) -> None:
        offer = self.liar.offer(cohort=tuple(cohort))
        replies = {name: self.send(name, offer) for name in cohort}
        adverts = {name: reply.advert for name, reply in replies.items() if isinstance(reply, AdvertReply)}
        self.epochs.append(Epoch(self.liar.epoch, tuple(cohort), adverts, {}))

    def seal(self, epoch: Epoch) -> None:
        request = SealRequest(run=self.liar.run, epoch=epoch.number, adverts=epoch.adverts)
        for name in epoch.cohort:
            reply = self.send(name, request)
            if isinstance(reply, SealReply):
                epoch.seals[name] = reply.seals

    def session(self, back: int) -> Session:
        """A round and sid under which somebody answered, the newest one or an older one; at first none."""
        known = list(self.uploads)
        return known[-1 - back % len(known)] if known else (1, bytes(32))

    def ask_for(
        self, number: int, epoch: Epoch, asked: Sequence[str], participants: Sequence[str] = (), *, model: int = 0
    ) -> None:
        request = self.liar.ask(
            number,
            epoch=epoch.number,
            participants=tuple(participants) or epoch.cohort,
            seals=dict(epoch.seals),
            model=self.models[model],
        )
        for name in asked:
            reply = self.send(name, request)
            if isinstance(reply, MaskedUpdate):
                self.uploads[number, reply.sid][name] = reply

    def ask_to_confirm(self, session: Session, survivors: Sequence[str], asked: Sequence[str]) -> None:
        number, sid = session
        request = ConfirmRequest(run=self.liar.run, round=number, sid=sid, survivors=tuple(survivors))
        for name in asked:
            reply = self.send(name, request)
            if isinstance(reply, ConfirmReply):
                self.confirmations[sid][name] = reply.confirmation
                self.stood_by[session, name] = tuple(survivors)

    def ask_to_reveal(self, session: Session, survivors: Sequence[str], asked: Sequence[str]) -> None:
        number, sid = session
        uploads, confirmed = self.uploads.get(session, {}), self.confirmations[sid]
        for name in asked:
            # A confirmation of another list would only be refused.
            fitting = [who for who in survivors if self.stood_by.get((session, who)) == tuple(survivors)]
            request = RevealRequest(
                run=self.liar.run,
                round=number,
                sid=sid,
                survivors=tuple(survivors),
                receipts={who: uploads[who].receipt for who in survivors if who in uploads},
                confirmations={who: confirmed[who] for who in fitting},
                envelopes={
                    who: uploads[who].envelopes.get(name, b"") for who in survivors if who in uploads and who != name
                },
            )
            self.send(name, request)

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
    def no_partial_reveal_without_enough_confirmations(self) -> None:
        confirmed: dict[tuple[bytes, tuple[str, ...]], set[str]] = defaultdict(set)
        for name, request, reply in self.liar.answers:
            if isinstance(reply, ConfirmReply):
                confirmed[request.sid, request.survivors].add(name)
        for name, request, reply in self.liar.answers:
            if isinstance(reply, Reveal) and reply.pair_shares:
                assert name in confirmed[request.sid, request.survivors]
                assert len(confirmed[request.sid, request.survivors]) >= 3

    @invariant()
    def no_reveal_below_the_floor(self) -> None:
        for name, request, reply in self.liar.answers:
            if isinstance(reply, Reveal):
                survivors = set(reply.self_shares)
                assert name in survivors
                assert len(survivors) >= self.liar.department(name).policy.policy.aggregation.min_contributors_min
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
    return type("AnyOrderInTown", (AnyOrder,), {"town": town, "left": set()})


quick = settings(
    max_examples=30, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def test_p2_no_order_of_messages_yields_two_lists_two_reveals_or_a_small_sum(machine: type[AnyOrder]) -> None:
    run_state_machine_as_test(machine, settings=quick)
    assert Reveal in machine.left, "the search never got as far as what it looks for"


@pytest.mark.soak
def test_p2_no_order_of_messages_yields_more_in_a_long_search(machine: type[AnyOrder]) -> None:
    run_state_machine_as_test(machine, settings=settings(quick, max_examples=1000, stateful_step_count=25))
    assert {ConfirmReply, Reveal} <= machine.left, "the search never got as far as what it looks for"


# --- the search reaches what it looks for --------------------------------------------------------------------


@pytest.fixture
def played(machine: type[AnyOrder]) -> Iterator[AnyOrder]:
    game = machine()
    yield game
    game.teardown()


def play(game: AnyOrder, survivors: Sequence[str]) -> None:
    game.begin()
    game.ask_for(1, game.epochs[-1], FOUR)
    if tuple(survivors) != FOUR:
        game.ask_to_confirm(game.session(0), survivors, survivors)
    game.ask_to_reveal(game.session(0), survivors, survivors)


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
