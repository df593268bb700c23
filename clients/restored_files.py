"""The files of a backup in a home that is being restored: they stay if the journal gets its name there, else none does.

Of an attempt that is refused or cut off nothing may be left behind: the next one, with a newer backup, would take an
older policy for one that its people put there (promise P4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from clients.backup import FILES
from clients.config import read_file
from shared.codec import Record, dump_json, load_json
from shared.model_file import file_digest
from shared.private_files import make_private_folder, replace_private_file

NOTE: Final = ".restoring.json"
"""What an attempt puts into the home, written down before the first of it and removed after the last."""


class _Placed(Record, frozen=True, kw_only=True):
    """SHA-256 in hex by path."""

    files: dict[str, str]


@contextlib.contextmanager
def placed_files(home: Path, backup: Path, files: Mapping[str, str], *, journal: Path) -> Iterator[None]:
    """Put the files of a backup into a home, beside what lies there; on an error they are taken back.

    Args:
        home: without a journal, and without files of an earlier attempt.
        backup: from :func:`clients.backup.make_backup`, verified.
        files: SHA-256 in hex of the backup's files, by path.
        journal: the journal of the home; once it is there, the files stay.

    Raises:
        ConfigError: ``file-missing``.
        SetupError: ``home-not-writable``.
    """
    new = {name: digest for name, digest in files.items() if not (home / name).exists()}
    replace_private_file(home / NOTE, dump_json(_Placed(files=new)))
    try:
        for name in new:
            make_private_folder((home / name).parent)
            replace_private_file(home / name, read_file(backup / FILES / name))
        yield
    except BaseException:
        if not journal.exists():
            take_back(home)
        raise
    (home / NOTE).unlink()


def take_back(home: Path) -> None:
    """Remove what an attempt put into a home that did not come to its end; what people changed since stays.

    Raises:
        ConfigError: the note of what that is was changed.
    """
    note = home / NOTE
    if not note.exists():
        return
    for name, digest in load_json(read_file(note), _Placed, where=str(note)).files.items():
        path = home / name
        if path.is_file() and file_digest(path.read_bytes()) == digest:
            path.unlink()
            with contextlib.suppress(OSError):  # a folder without a model in it would count as one
                path.parent.rmdir()
    note.unlink()
