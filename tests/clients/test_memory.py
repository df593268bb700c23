"""What a department remembers is what its journal holds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.memory import Memory, RunMemory
from clients.records import Approved, EpochOpened, RoundFinished, StepAnswered
from shared.codec import decode, sha256
from shared.errors import JournalError, ProtocolError
from shared.identity import Signed
from shared.journal import EntryKind, Journal

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
RUN, OTHER = b"r" * 32, b"o" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def memory(path: Path) -> Iterator[Memory]:
    with Journal.open(path, owner="police") as journal:
        yield Memory(journal, lambda: NOW)


def again(memory: Memory) -> Memory:
    """The same journal, remembered anew."""
    return Memory(memory.journal, lambda: NOW)


def finished(round_number: int) -> RoundFinished:
    return RoundFinished(run=RUN, round=round_number, closed=Signed(body=b"", signature=bytes(64)))


def answer(memory: Memory, round_number: int, step: str, run: bytes = RUN) -> None:
    memory.answer(run, round_number, step, request_hash=sha256(b"asked"), reply_hash=sha256(b"said"))


def code_of(memory: Memory, round_number: int, step: str) -> str:
    with pytest.raises(ProtocolError) as caught:
        answer(memory, round_number, step)
    return caught.value.code


def test_p3_a_step_is_answered_once_and_after_a_restart_still_once(memory: Memory) -> None:
    for step in ("update", "confirm", "reveal"):
        answer(memory, 1, step)
        assert code_of(memory, 1, step) == "step-already-answered"
        assert code_of(again(memory), 1, step) == "step-already-answered"
    assert again(memory).run(RUN).answered == {(1, "update"), (1, "confirm"), (1, "reveal")}


def test_an_update_needs_a_round_above_every_answered_one(memory: Memory) -> None:
    answer(memory, 5, "update")
    assert code_of(memory, 4, "update") == "round-not-new"
    answer(memory, 6, "update")
    answer(memory, 5, "reveal")


def test_runs_are_remembered_apart(memory: Memory) -> None:
    answer(memory, 3, "update")
    answer(memory, 3, "update", run=OTHER)
    assert memory.run(RUN).last_round == memory.run(OTHER).last_round == 3


def test_the_entry_holds_hashes_and_neither_request_nor_reply(memory: Memory) -> None:
    answer(memory, 1, "update")
    (entry,) = memory.journal.entries(EntryKind.ANSWERED)
    kept = decode(entry.body, StepAnswered)
    assert (kept.request_hash, kept.reply_hash) == (sha256(b"asked"), sha256(b"said"))
    assert b"asked" not in entry.body


def test_nothing_is_remembered_that_could_not_be_written(memory: Memory) -> None:
    memory.journal.close()
    with pytest.raises((JournalError, RuntimeError)):
        answer(memory, 1, "update")
    assert memory.run(RUN).answered == set()


def test_epochs_only_grow(memory: Memory) -> None:
    for epoch in (1, 7, 3):
        memory.write(EntryKind.EPOCH, EpochOpened(run=RUN, epoch=epoch))
    assert memory.run(RUN).last_epoch == again(memory).run(RUN).last_epoch == 7


def test_heads_keep_the_newest_position_of_every_member(memory: Memory) -> None:
    memory.see_heads({"health": (5, bytes(32)), "transport": (9, bytes(32))}, {})
    memory.see_heads({"health": (4, bytes(32)), "transport": (11, bytes(32))}, {})
    assert memory.heads == again(memory).heads == {"health": 5, "transport": 11}


def test_approvals_belong_to_one_digest(memory: Memory) -> None:
    one = Approved(digest=b"1" * 32, person="ann", role="steward", author=False)
    memory.write(EntryKind.APPROVAL, one)
    memory.write(EntryKind.APPROVAL, Approved(digest=b"2" * 32, person="bob", role="it", author=True))
    (found,) = again(memory).approvals_of(b"1" * 32)
    assert (found.person, found.role, found.author) == ("ann", "steward", False)
    assert memory.approvals_of(b"3" * 32) == ()


def test_aborted_rounds_are_updates_without_shares_given_or_without_an_account(memory: Memory) -> None:
    for number in (1, 2, 3, 4):
        answer(memory, number, "update")
    for number in (2, 3):
        answer(memory, number, "reveal")
    for number in (3, 4):
        memory.write(EntryKind.ROUND, finished(number))
    assert memory.run(RUN).aborted_rounds == again(memory).run(RUN).aborted_rounds == 3


def test_an_entry_that_does_not_decode_stops_the_node(memory: Memory) -> None:
    memory.journal.append(EntryKind.ANSWERED, finished(1), now=NOW)
    with pytest.raises(JournalError):
        again(memory)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["update", "confirm", "reveal"]))))
def test_the_last_round_is_the_highest_answered(answered: list[tuple[int, str]]) -> None:
    known = RunMemory()
    for number, step in answered:
        known.answer(number, step)
    assert known.last_round == max((number for number, _ in answered), default=0)
