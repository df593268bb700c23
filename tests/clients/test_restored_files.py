"""Of an attempt to restore that is refused or cut off, nothing is left; what people put into the home stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clients.backup import FILES, JOURNAL
from clients.restored_files import placed_files, take_back
from shared.model_file import file_digest
from tests.refusals import code_of

CONTENTS = {"client.toml": b"configuration", "models/run/card.md": b"card", "policy.toml": b"policy"}
DIGESTS = {name: file_digest(content) for name, content in CONTENTS.items()}


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of three files and a journal."""
    for name, content in CONTENTS.items():
        path = tmp_path / "backup" / FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "backup" / JOURNAL).write_bytes(b"journal")
    return tmp_path / "backup"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def place(home: Path, backup: Path, *, then: Callable[[Path], object] = lambda _: None) -> None:
    """Attempt it; whatever is done with the journal's copy meanwhile."""
    with placed_files(home, backup, DIGESTS, journal=home / "journal") as working:
        assert working.read_bytes() == b"journal"
        then(working)


def give_name(working: Path) -> None:
    working.rename(working.with_name("journal"))


def files_of(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_the_files_of_a_backup_stay_beside_what_lies_there(home: Path, backup: Path) -> None:
    (home / "policy.toml").write_bytes(b"newer")
    place(home, backup, then=give_name)
    assert files_of(home) == {**CONTENTS, "policy.toml": b"newer", "journal": b"journal"}
    assert (home / "client.toml").stat().st_mode & 0o777 == 0o600
    assert (home / "models" / "run").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("gone", CONTENTS)
def test_p4_a_file_that_the_backup_lacks_leaves_none_of_the_others(home: Path, backup: Path, gone: str) -> None:
    (backup / FILES / gone).unlink()
    (home / "data.csv").write_bytes(b"rows")
    assert code_of(lambda: place(home, backup)) == "file-missing"
    assert files_of(home) == {"data.csv": b"rows"}
    assert not (home / "models" / "run").exists()


def test_p4_an_attempt_that_gives_the_journal_no_name_leaves_what_people_changed_and_nothing_else(
    home: Path, backup: Path
) -> None:
    def cut_off(_: Path) -> None:
        (home / "policy.toml").write_bytes(b"newer")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place(home, backup, then=cut_off)
    assert files_of(home) == {"policy.toml": b"newer"}
    take_back(home, journal=home / "journal")
    assert files_of(home) == {"policy.toml": b"newer"}


def test_once_the_journal_has_its_name_the_files_stay_whatever_comes_after(home: Path, backup: Path) -> None:
    def cut_off(working: Path) -> None:
        give_name(working)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place(home, backup, then=cut_off)
    assert files_of(home) == {**CONTENTS, "journal": b"journal"}
