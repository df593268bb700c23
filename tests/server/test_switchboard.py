"""Questions and answers without a network: what is withdrawn is cut, and too slow is decided by the clock."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass, field
from threading import Event

import pytest

from server.switchboard import Line, Switchboard
from shared.channel import Limits
from shared.errors import ProtocolError
from shared.identity import DepartmentId
from tests.channel_city import RUN, beside

HEALTH, POLICE = DepartmentId("health"), DepartmentId("police")
LIMITS = Limits(update_bytes=4096, other_bytes=4096, grace_s=20.0, min_bytes_per_s=10.0)


@dataclass
class Clock:
    """Monotonic time that a test moves."""

    at: float = 0.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Call:
    """A call that notes when it was cut."""

    cut: Event = field(default_factory=Event)

    def line(self) -> Line:
        return Line(cut=self.cut.set, alive=lambda: True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Switchboard:
    return Switchboard(clock=clock)


def test_what_is_withdrawn_is_cut_and_its_reply_comes_too_late(board: Switchboard, clock: Clock) -> None:
    ticket = board.open_session(RUN, LIMITS)
    found: list[object] = []
    down, up = Call(), Call()
    line = up.line()
    with board.attached(HEALTH, ticket, down.line()) as questions:
        with beside(lambda: found.extend(board.exchange({HEALTH: b"ask"}, timeout_s=5.0))):
            question = next(questions)  # and the stream goes on sending it
            assert board.answering(HEALTH, ticket, line) is question
            clock.at = 5.0
        assert found == []
        assert down.cut.is_set()
        assert up.cut.is_set()
        with pytest.raises(ProtocolError) as caught:
            board.answered(HEALTH, question, memoryview(b"reply"))
        assert caught.value.code == "reply-late"
    assert not board.status()[HEALTH].attached


def test_an_older_stream_that_takes_nothing_is_cut_by_the_next_one(board: Switchboard) -> None:
    ticket = board.open_session(RUN, LIMITS)
    silent, deaf, waiting, newest = (Call() for _ in range(4))
    with board.attached(HEALTH, ticket, silent.line()), board.attached(HEALTH, ticket, deaf.line()) as questions:
        assert silent.cut.is_set(), "it never took the word that it is let in"
        found: list[bytes] = []
        with beside(lambda: found.extend(bytes(reply) for _, reply in board.exchange({HEALTH: b"ask"}, timeout_s=5.0))):
            question = next(questions)
            board.answered(HEALTH, question, memoryview(b"reply"))
        assert found == [b"reply"]
        assert not deaf.cut.is_set()
        with board.attached(HEALTH, ticket, waiting.line()) as more:
            assert deaf.cut.is_set(), "it was answered, and its request was never taken"
            refused: list[str] = []

            def wait() -> None:
                try:
                    next(more)
                except ProtocolError as error:
                    refused.append(error.code)

            with beside(wait):
                line = newest.line()
                while board._desk(HEALTH).down.sending:  # type: ignore[union-attr]  # a line is there
                    os.sched_yield()
                with board.attached(HEALTH, ticket, line):
                    pass
            assert (refused, waiting.cut.is_set()) == (["attached-elsewhere"], False)


def test_an_upload_is_cut_once_the_clock_says_that_it_is_too_slow(board: Switchboard, clock: Clock) -> None:
    ticket = board.open_session(RUN, LIMITS)
    slow, quick = Call(), Call()
    found: list[tuple[str, bytes]] = []
    with board.attached(HEALTH, ticket, slow.line()) as questions:

        def ask() -> None:
            for name, reply in board.exchange({HEALTH: b"ask", POLICE: b"ask"}, timeout_s=1000.0):
                found.append((name, bytes(reply)))

        with beside(ask):
            question = next(questions)
            lines = {name: call.line() for name, call in ((HEALTH, slow), (POLICE, quick))}
            for name, line in lines.items():
                board.answering(name, ticket, line)
            board.progress(HEALTH, lines[HEALTH], 99)
            board.progress(POLICE, lines[POLICE], 101)
            clock.at = 30.0  # 20 s of grace and 10 bytes a second: 100 bytes are due
            assert slow.cut.wait(20)
            assert board.status()[HEALTH].refused == "upload-too-slow"
            assert [lines[name].ended for name in (HEALTH, POLICE)] == [True, False]
            again = board.answering(HEALTH, ticket, Call().line())
            assert again is question
            board.answered(HEALTH, again, memoryview(b"reply"))
            board.refuse(POLICE, "certificate-not-admitted", board._desk(POLICE).question)
    assert found == [("health", b"reply")]
    assert not quick.cut.is_set()
    assert board.status()[POLICE].refused == "certificate-not-admitted"


def test_the_last_sign_of_a_department_is_the_time_of_the_last_that_came_from_it() -> None:
    times = [dt.datetime(2026, 3, 2, 8, minute, tzinfo=dt.UTC) for minute in range(3)]
    board = Switchboard(now=iter(times).__next__)
    ticket, line = board.open_session(RUN, LIMITS), Call().line()
    signs = []
    with board.attached(HEALTH, ticket, Call().line()) as questions:
        signs.append(board.status()[HEALTH].last_sign)
        with beside(lambda: list(board.exchange({HEALTH: b"ask"}, timeout_s=5.0))):
            question = next(questions)
            board.answering(HEALTH, ticket, line)
            signs.append(board.status()[HEALTH].last_sign)
            board.progress(HEALTH, line, 1)
            signs.append(board.status()[HEALTH].last_sign)
            board.answered(HEALTH, question, memoryview(b"reply"))
    assert signs == times
