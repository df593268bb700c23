"""A restoration while the disk fills, a node starts, a second one comes, or beside what is left of the lost journal."""

from __future__ import annotations

import datetime as dt
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients.backup import JOURNAL, MANIFEST, make_backup
from clients.config import open_journal
from clients.records import JournalRestored, Refused
from clients.restored_files import NOTE
from shared.errors import CityFedError
from shared.journal import EntryKind, Journal
from tests.deployed_city import now
from tests.durable_names import names_durably
from tests.interrupts import Interrupts
from tests.lost_city import POLICE, Lost, in_full, lose, spent

LEFT = {f"{POLICE}.csv", "journal.sqlite.lock"}
"""What a refused restoration leaves: the rows that lay there, and a lock that nobody holds."""


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return lose(tmp_path_factory.mktemp("lost"))


class Meanwhile(list[Path]):
    """Rosters, which are looked at when the files have been put in place and the journal is being written."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def __iter__(self) -> Iterator[Path]:
        self.act()
        return super().__iter__()


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CityFedError) as caught:
        action()
    return caught.value.code


def test_p3_nobody_begins_a_journal_in_a_home_that_is_restored_meanwhile(lost: Lost, tmp_path: Path) -> None:
    home, codes = tmp_path / "home", list[str]()

    def node() -> None:
        codes.append(refusal(lambda: open_journal(home / "client.toml")))

    lost.restore(home, lost.before, rosters=Meanwhile(node))
    assert codes == ["journal-locked"]
    assert spent(home / "client.toml") == pytest.approx(in_full(lost.plan))


def test_p3_a_second_restoration_at_once_is_refused_and_takes_nothing_away(lost: Lost, tmp_path: Path) -> None:
    home, codes = tmp_path / "home", list[str]()

    def another() -> None:
        codes.append(refusal(lambda: lost.restore(home, lost.after)))

    lost.restore(home, lost.before, rosters=Meanwhile(another))
    assert codes == ["journal-locked"]
    assert spent(home / "client.toml") == pytest.approx(in_full(lost.plan))


@pytest.mark.parametrize("ending", ["-wal", "-journal"])
def test_p3_a_log_of_the_lost_journal_is_not_taken_into_the_restored_one(
    lost: Lost, tmp_path: Path, ending: str
) -> None:
    """As an image of the disk of a node at work has it, from which somebody took the journal away."""
    home, image = tmp_path / "home", tmp_path / JOURNAL
    home.mkdir()
    shutil.copy(lost.before / JOURNAL, image)
    with Journal.open(image, owner=POLICE) as journal:
        journal.append(EntryKind.REGAINED, JournalRestored(sequence=1, newest=1), now=now())
        shutil.copy(f"{image}-wal", home / f"{JOURNAL}{ending}")
    lost.assert_refused("journal-exists", home, lost.before)
    (home / f"{JOURNAL}{ending}").unlink()
    lost.restore(home, lost.before)
    assert spent(home / "client.toml") == pytest.approx(in_full(lost.plan))


def test_p3_a_journal_that_does_not_fit_on_the_disk_gets_no_name(lost: Lost, tmp_path: Path) -> None:
    """The database's log takes the last entries, and closing it cannot bring them into the file, without a word."""
    home, backup = tmp_path / "home", tmp_path / "backup"
    shutil.copytree(lost.before, backup)
    with Journal.open(backup / JOURNAL, owner=POLICE) as journal:  # longer than the log becomes
        long = Refused(step="update", status="refused", code="long", message="x" * 500_000)
        journal.append(EntryKind.REFUSAL, long, now=now())
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        size = (home / f"{JOURNAL}.restoring").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

    try:
        assert refusal(lambda: lost.restore(home, backup, rosters=Meanwhile(fill))) == "journal-unwritable"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert {path.name for path in home.iterdir()} == LEFT
    lost.restore(home, backup)
    assert spent(home / "client.toml") == pytest.approx(in_full(lost.plan))


def test_p4_a_restoration_that_came_to_its_end_is_never_taken_back(lost: Lost, tmp_path: Path) -> None:
    """Killed when the journal has its name: the files are the department's, whatever becomes of that journal later."""
    home, killed = tmp_path / "home", tmp_path / "killed"

    def look() -> None:
        trace.left = 1  # at the next line again
        if (home / "journal.sqlite").exists() and (home / NOTE).exists() and not killed.exists():
            shutil.copytree(home, killed)

    before, trace = sys.gettrace(), Interrupts(1, "clients/restore", act=look)
    sys.settrace(trace)
    try:
        lost.restore(home, lost.before)
    finally:
        sys.settrace(before)
    assert (killed / NOTE).exists()
    (killed / "journal.sqlite").unlink()
    make_backup(lost.city.config(POLICE), tmp_path / "keyless", keys=False, now=now() + dt.timedelta(days=2))
    key = (killed / "identity.key").read_bytes()
    lost.restore(killed, tmp_path / "keyless")
    assert (killed / "identity.key").read_bytes() == key
    assert not (killed / NOTE).exists()


def test_p3_the_name_of_a_restored_journal_is_durable(lost: Lost, tmp_path: Path) -> None:
    assert names_durably(lambda: lost.restore(tmp_path / "home", lost.before))


@pytest.mark.parametrize("made_at", ["2026-01-01T00:00:00", "0001-01-01T00:00:00Z"])
def test_a_backup_that_does_not_say_when_it_was_made_is_refused(lost: Lost, tmp_path: Path, made_at: str) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(lost.before, backup)
    told = json.loads((backup / MANIFEST).read_bytes())
    (backup / MANIFEST).write_text(json.dumps(told | {"made_at": made_at}))
    lost.assert_refused("json-content", tmp_path / "home", backup)
