"""Journals that fail or were restored from a backup stop a department before anything leaves (promise P3)."""

from __future__ import annotations

import datetime as dt
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clients.config import load_config, load_department
from clients.enrol import CONFIG_FILE
from clients.participant import Participant
from clients.training.noise import OsRandomSource
from server.records import Countersigned
from shared.codec import Record, decode
from shared.errors import JournalError, RoundAbortedError
from shared.identity import DepartmentId
from shared.journal import EntryKind, Head, Journal, JournalEntry, verify_journal
from shared.messages import HeadReceipt, UpdateRequest, decode_request
from simulation.network import InMemoryTransport
from simulation.world import now
from tests.city import FOUR, City, open_city
from tests.clients.participant_city import POLICE, reasons
from tests.ledger_history import history

Door = Callable[[bytes], bytes]


class BoastfulJournal(Journal):
    """Tells everybody who asks between two entries that it is far ahead, and chains its entries as they are."""

    boasts = 0
    writing = False

    @property
    def head(self) -> Head:
        real = super().head
        return real if self.writing else Head(sequence=real.sequence + self.boasts, digest=real.digest)

    def append(self, kind: EntryKind, body: Record, *, now: dt.datetime) -> JournalEntry:
        self.writing = True
        try:
            return super().append(kind, body, now=now)
        finally:
            self.writing = False


def journal_path(city: City) -> Path:
    folder = city.world.folder / POLICE
    return folder / load_config(folder / CONFIG_FILE).journal


def back_up(city: City, backup: Path) -> None:
    """Copy the police department's journal as it is, the write-ahead log included."""
    source = journal_path(city)
    shutil.copy(source, backup)
    shutil.copy(source.with_name(source.name + "-wal"), backup.with_name(backup.name + "-wal"))


@contextmanager
def restored(city: City, backup: Path, kind: type[Journal] = Journal) -> Iterator[Participant]:
    """End the police department's process, put the backup in place, and start again."""
    city.world.participants[POLICE].memory.journal.close()
    path = journal_path(city)
    for suffix in ("", "-wal"):
        shutil.copy(backup.with_name(backup.name + suffix), path.with_name(path.name + suffix))
    department = load_department(city.world.folder / POLICE / CONFIG_FILE)
    with kind.open(path, owner="police") as journal:
        yield Participant(department, journal=journal, source=OsRandomSource(), clock=now)


@pytest.fixture
def city(tmp_path: Path) -> Iterator[City]:
    with open_city(tmp_path / "city") as opened:
        yield opened


def after_one_round(
    city: City, backup: Path, authority: Journal | None = None
) -> tuple[Callable[[Door], None], list[Participant]]:
    """Back the journal up, run a round that the peers remember; returns how to go on, and the peers.

    The authority goes on with the journal that it has, or with another one that knows nothing of the round.
    """
    back_up(city, backup)
    coordinator = city.coordinator(InMemoryTransport(city.peers))
    model = coordinator.run_round(1, city.basis.initial, final=False).model
    peers = [city.world.participants[DepartmentId(name)] for name in FOUR if name != POLICE]

    def go_on(police: Door) -> None:
        transport = InMemoryTransport({**city.peers, POLICE: police})
        journal = authority or coordinator.journal
        again = replace(coordinator, transport=transport, journal=journal, _epoch_number=1, _epoch=None)
        again.run_round(2, model, final=True)

    return go_on, peers


def test_p3_a_journal_that_cannot_be_written_stops_training_before_data_is_touched(city: City) -> None:
    police = city.world.participants[POLICE]
    Path(city.world.departments[POLICE].binding.source.path).write_text("reading,this\n1,would fail by another name\n")

    def break_the_disk_before_training(request: bytes) -> bytes:
        if isinstance(decode_request(request), UpdateRequest):
            sqlite3.connect(police.memory.journal.path).execute("DROP TABLE entry").connection.close()
        return police.handle(request)

    transport = InMemoryTransport({**city.peers, POLICE: break_the_disk_before_training})
    city.coordinator(transport).run_round(1, city.basis.initial, final=False)
    assert city.watcher.gone == [(1, "update", "police", "unavailable")]
    assert isinstance(police.last_refusal, JournalError)
    assert city.watcher.results[0].survivors == tuple(name for name in FOUR if name != POLICE)


def test_p3_a_department_with_a_restored_journal_stops_itself_and_the_others_go_on(city: City, tmp_path: Path) -> None:
    go_on, peers = after_one_round(city, tmp_path / "backup")
    with restored(city, tmp_path / "backup") as police:
        assert history(police.ledger, police.department.declaration.dataset) == (), "the charge is forgotten"
        go_on(police.handle)
        assert reasons(police) == ["journal-rolled-back"]
        assert EntryKind.BURNED not in [entry.kind for entry in police.memory.journal.entries()]
        assert city.watcher.gone == [(2, "seal", "police", "refused")]
        assert city.watcher.results[-1].survivors == tuple(name for name in FOUR if name != POLICE)
        assert all(reasons(peer) == [] for peer in peers)


def boasting(police: Participant) -> Door:
    """A department whose advert is judged by a head that is a lie; the head in its receipt is not."""
    journal = police.memory.journal
    assert isinstance(journal, BoastfulJournal)
    journal.boasts = 1000

    def boast_once(request: bytes) -> bytes:
        reply = police.handle(request)
        journal.boasts = 0
        return reply

    return boast_once


def test_p5_the_authority_adds_no_update_of_a_journal_that_was_set_back(city: City, tmp_path: Path) -> None:
    go_on, peers = after_one_round(city, tmp_path / "backup")
    with restored(city, tmp_path / "backup", BoastfulJournal) as police:
        go_on(boasting(police))
        assert city.watcher.gone == [(2, "update", "police", "journal-rolled-back")]
        assert city.watcher.results[-1].survivors == tuple(name for name in FOUR if name != POLICE)
        assert all(reasons(peer) == [] for peer in peers)


def test_p3_peers_open_no_sum_with_a_restored_journal_that_does_not_stop_itself(city: City, tmp_path: Path) -> None:
    """Even if the authority looks away."""
    with Journal.open(tmp_path / "forgetful.sqlite", owner="authority") as forgetful:
        go_on, peers = after_one_round(city, tmp_path / "backup", forgetful)
        with restored(city, tmp_path / "backup", BoastfulJournal) as police:
            with pytest.raises(RoundAbortedError):
                go_on(boasting(police))
            assert all(reasons(peer) == ["journal-rolled-back"] for peer in peers)
            assert [result.round for result in city.watcher.results] == [1]


def test_p5_the_authoritys_receipts_show_the_rollback_whatever_was_written_since(city: City, tmp_path: Path) -> None:
    after_one_round(city, tmp_path / "backup")
    countersigned = [
        decode(decode(entry.body, Countersigned).receipts["police"].body, HeadReceipt)
        for entry in city.world.authority_journal.entries(EntryKind.COUNTERSIGNED)
    ]
    receipts = [Head(sequence=item.journal_sequence, digest=item.journal_head) for item in countersigned]
    with restored(city, tmp_path / "backup") as police:
        with pytest.raises(JournalError) as caught:
            verify_journal(journal_path(city), owner="police", receipts=receipts)
        assert caught.value.code == "journal-behind-receipt"
        for _ in range(receipts[-1].sequence):
            police.handle(b"not a request")
        with pytest.raises(JournalError) as caught:
            verify_journal(journal_path(city), owner="police", receipts=receipts)
        assert caught.value.code == "journal-receipt-mismatch"
