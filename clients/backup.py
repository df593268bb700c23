"""A department's backup: what its home holds, copied while a node may be at work; the rows are not in it.

::

    BACKUP/
    ├── backup.json        what is in it, when it was made, and how far the journal had gone
    ├── journal.sqlite     a copy made by the database itself
    └── files/             configuration, policy, binding, plans, models; keys only if they were asked for
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from clients.binding import declaration_path
from clients.config import ClientConfig, load_config, read_file
from clients.enrol import CITY_FILE
from clients.models import MODELS
from clients.outbox import Waiting, decisions_beside
from shared.codec import Record, dump_json, load_json
from shared.errors import ConfigError
from shared.journal import Journal
from shared.model_file import file_digest
from shared.private_files import make_private_folder, replace_private_file, write_private_file

MANIFEST = "backup.json"
JOURNAL = "journal.sqlite"
FILES = "files"


class Backup(Record, frozen=True, kw_only=True):
    """What a backup holds.

    Attributes:
        department: whose it is.
        made_at: when, UTC; the journal was copied after that.
        sequence: last position of the journal's copy.
        keys: whether private keys are in it.
        files: SHA-256 in hex by path.
    """

    department: str
    made_at: dt.datetime
    sequence: int
    keys: bool
    files: dict[str, str]

    def __post_init__(self) -> None:
        if self.made_at.tzinfo is None or self.made_at.year < 1970:
            raise ValueError("`made_at` is a time since 1970, with its zone")


def make_backup(config_path: Path, out: Path, *, keys: bool, now: dt.datetime) -> Backup:
    """Copy a department's home into a new folder.

    Args:
        config_path: this department's ``client.toml``.
        out: the folder to make.
        keys: also copy the private keys, as they are: whoever has the folder can speak for the department then.
        now: the present time, UTC.

    Raises:
        ConfigError: ``backup-exists``; the configuration is not in order.
        JournalError: the journal does not verify, or cannot be copied; ``decision-malformed``.
        SetupError: ``home-not-writable``.
    """
    config, home = load_config(config_path), config_path.parent
    if out.exists():
        raise ConfigError("backup-exists", f"{out} exists; a backup is never overwritten.")
    make_private_folder(out / FILES)
    with Journal.read(home / config.journal, owner=config.department) as journal:

        def copy() -> None:
            (out / JOURNAL).unlink(missing_ok=True)
            journal.copy_to(out / JOURNAL)

        waiting = decisions_beside(home / config.outbox, copy)
    with Journal.read(out / JOURNAL, owner=config.department) as copied:
        sequence = copied.head.sequence
    files: dict[str, str] = {}
    for path, content in _files(config_path, config, waiting, keys=keys):
        name = path.relative_to(home).as_posix()
        make_private_folder((out / FILES / name).parent)
        write_private_file(out / FILES / name, content)
        files[name] = file_digest(content)
    backup = Backup(department=config.department, made_at=now, sequence=sequence, keys=keys, files=files)
    replace_private_file(out / MANIFEST, dump_json(backup))
    return backup


def read_backup(folder: Path) -> Backup:
    """Read what a backup holds and check that its files are unchanged.

    Raises:
        ConfigError: ``file-missing``, ``json-too-large``, ``json-content``, ``backup-changed``.
    """
    backup = load_json(read_file(folder / MANIFEST), Backup, where=str(folder / MANIFEST))
    for name, digest in backup.files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or file_digest(read_file(folder / FILES / name)) != digest:
            raise ConfigError("backup-changed", f"{folder / FILES / name} is not the file that was backed up.")
    return backup


def key_files(config: ClientConfig) -> tuple[str, ...]:
    """Return the files of private keys."""
    return (config.identity, config.tls_key, config.node_key)


def _files(
    config_path: Path, config: ClientConfig, waiting: Sequence[Waiting], *, keys: bool
) -> Iterator[tuple[Path, bytes]]:
    """Yield the files that a restored home needs; what lies elsewhere is not this department's to copy."""
    home = config_path.parent
    names = [config_path.name, CITY_FILE, config.policy, config.policy_signature, config.binding]
    names += [config.city_ca, config.tls_certificate, declaration_path(Path(config.binding)).as_posix()]
    names += key_files(config) if keys else ()
    found = [home / name for name in names]
    for folder, pattern in ((config.plans, "*.plan"), (MODELS, "*/*")):
        found += sorted((home / folder).glob(pattern))
    for path in found:
        if path.is_file() and _is_inside(path, home):
            yield path, path.read_bytes()
    for item in waiting:  # not read again: the node may have taken it over since
        if _is_inside(item.path, home):
            yield item.path, item.content


def _is_inside(path: Path, home: Path) -> bool:
    """Whether a file lies in the home itself, wherever links lead."""
    return path.resolve().is_relative_to(home.resolve())
