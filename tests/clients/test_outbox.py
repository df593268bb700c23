"""A decision that the node takes over while somebody looks is seen, and a later one is never undone by it (R10)."""

from __future__ import annotations

import datetime as dt
import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tomli_w

from clients.backup import FILES, JOURNAL, make_backup
from clients.enrol import CONFIG_FILE
from clients.memory import Memory
from clients.outbox import leave_decision, read_decisions
from clients.records import Approved, PlanRefused
from shared.journal import EntryKind, Journal
from tests.durable_names import names_durably
from tests.interrupts import overtaken

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
OWNER, PLAN, PERSON = "police", b"1" * 32, "ann"
YES = Approved(digest=PLAN, person=PERSON, role="steward", author=False)
NO = PlanRefused(digest=PLAN, person=PERSON, reason="no")


def clock() -> dt.datetime:
    return NOW


class Home:
    """A department's home whose node holds the journal, and in which a yes to a plan waits."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.config, self.path, self.outbox = folder / CONFIG_FILE, folder / "journal.sqlite", folder / "outbox"
        keys = dict.fromkeys(("roster_key", "authority_key", "policy_owner_key"), "0" * 64)
        self.config.write_text(tomli_w.dumps({"department": OWNER, "members": {}, **keys}))
        self.journal = Journal.open(self.path, owner=OWNER)
        self.node = Memory(self.journal, clock)
        leave_decision(self.outbox, EntryKind.APPROVAL, YES)

    def goes_on(self) -> None:
        """The node takes the yes over, and then the no of the same person, who has changed their mind."""
        self.node.take_over(self.outbox)
        leave_decision(self.outbox, EntryKind.PLAN_REFUSED, NO)
        self.node.take_over(self.outbox)


def test_p4_a_yes_that_was_taken_over_does_not_come_back_after_a_power_cut(tmp_path: Path) -> None:
    """It would count again, and the no that came after it no more."""
    home = Home(tmp_path / "home")
    with home.journal:
        assert names_durably(lambda: home.node.take_over(home.outbox), os.unlink)
        assert list(read_decisions(home.outbox)) == []


def at_every_line(folder: Path, look: Callable[[Home], Memory], *begins: str) -> int:
    """Let the node go on at every line of whoever looks: the yes is seen once, whether or not the no is."""
    for at in itertools.count(1):
        home = Home(folder / str(at))
        with home.journal:
            memory, reached = overtaken(partial(look, home), at, *begins, by=home.goes_on)
        assert [item.person for item in memory.approvals] == [PERSON], f"the line {at} of those that ran"
        assert memory.refused_by(PLAN) in ((), (PERSON,))
        if not reached:
            return at
    raise AssertionError


def test_p4_whoever_looks_beside_the_node_misses_no_decision(tmp_path: Path) -> None:
    def look(home: Home) -> Memory:
        with Journal.read(home.path, owner=OWNER) as beside:
            return Memory(beside, clock, outbox=home.outbox)

    assert at_every_line(tmp_path, look, "clients/memory.py", "clients/outbox.py") > 20


def test_p4_a_backup_beside_the_node_misses_no_decision(tmp_path: Path) -> None:
    def look(home: Home) -> Memory:
        out = home.config.parent.with_suffix(".backup")
        make_backup(home.config, out, keys=False, now=NOW)
        with Journal.open(out / JOURNAL, owner=OWNER) as journal:
            memory = Memory(journal, clock)
            memory.take_over(out / FILES / home.outbox.name)
        return memory

    assert at_every_line(tmp_path, look, "clients/backup.py") > 20


def test_a_decision_that_is_gone_when_it_is_read_waits_no_more(tmp_path: Path) -> None:
    for _ in range(2):
        leave_decision(tmp_path, EntryKind.APPROVAL, YES)
    waiting = read_decisions(tmp_path)
    assert next(waiting).body == YES
    for path in tmp_path.iterdir():
        path.unlink()
    assert list(waiting) == []


def test_a_decision_that_was_just_appended_but_still_lies_there_counts_once_more_and_changes_nothing(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home")
    with home.journal:
        home.journal.append(EntryKind.APPROVAL, YES, now=NOW)
        with Journal.read(home.path, owner=OWNER) as beside:
            memory = Memory(beside, clock, outbox=home.outbox)
        assert {item.person for item in memory.approvals_of(PLAN)} == {PERSON}
        assert memory.refused_by(PLAN) == ()
