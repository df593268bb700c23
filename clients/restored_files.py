"""The files of a backup in a home that is being restored: they stay if the journal gets its name there, else none does.

Of an attempt that is refused or cut off nothing may be left behind: the next one, with a newer backup, would take an
older policy for one that its people put there (promise P4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from clients.backup import FILES, JOURNAL
from clients.config import read_file
from shared.codec import Record, dump_json, load_json
from shared.model_file import file_digest
from shared.private_files import make_private_folder, replace_private_file

NOTE: Final = ".restoring.json"
"""What an attempt puts into the home, written down before the first of it and removed after the last. It counts as long
as the journal that is on its way lies beside it, which goes with the attempt: it is removed, or gets its name."""


class _Placed(Record, frozen=True, kw_only=True):
    """SHA-256 in hex by path."""

    files: dict[str, str]


@contextlib.contextmanager
def placed_files(home: Path, backup: Path, files: Mapping[str, str], *, journal: Path) -> Iterator[Path]:
    """Put the files of a backup into a home, beside what lies there, and give a copy of its journal to go on with.

    Unless the copy was put where ``journal`` belongs, everything is taken back.

    Args:
        home: without a journal, and without files of an earlier attempt.
        backup: from :func:`clients.backup.make_backup`, verified.
        files: SHA-256 in hex of the backup's files, by path.
        journal: the journal of the home, whose lock is held.

    Raises:
        ConfigError: ``file-missing``.
        SetupError: ``home-not-writable``.
        OSError: when the disk is full.
    """
    working, new = _on_its_way(journal), {name: digest for name, digest in files.items() if not (home / name).exists()}
    replace_private_file(working, read_file(backup / JOURNAL))
    try:
        replace_private_file(home / NOTE, dump_json(_Placed(files=new)))
        for name in new:
            make_private_folder((home / name).parent)
            replace_private_file(home / name, read_file(backup / FILES / name))
        yield working
    finally:
        take_back(home, journal=journal)


def take_back(home: Path, *, journal: Path) -> None:
    """Remove what an attempt put into a home that did not come to its end; what people changed since stays.

    Raises:
        ConfigError: the note of what that is was changed.
        OSError: when a file cannot be removed.
    """
    working, note = _on_its_way(journal), home / NOTE
    if note.exists():
        if working.exists():
            _remove(home, load_json(read_file(note), _Placed, where=str(note)).files)
        note.unlink()
    for left in journal.parent.glob(f"{working.name}*"):  # with what the database keeps beside it
        left.unlink()


def _on_its_way(journal: Path) -> Path:
    """Where a journal lies before it gets its name."""
    return journal.with_name(f"{journal.name}.restoring")


def _remove(home: Path, files: Mapping[str, str]) -> None:
    """Remove files that are what they were."""
    for name, digest in files.items():
        path = home / name
        if path.is_file() and file_digest(path.read_bytes()) == digest:
            path.unlink()
        with contextlib.suppress(OSError):  # a folder without a model in it would count as one
            path.parent.rmdir()
