"""A roster as this department's people look at it: whose keys count, whose do not, and how to approve one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clients.config import load_config, load_trust, read_signed
from clients.desk import open_memory
from clients.memory import Memory
from clients.records import KeyApproved
from shared.codec import Record
from shared.errors import ConfigError, ProtocolError
from shared.identity import DepartmentId, Roster, fingerprint, read_fingerprints
from shared.journal import EntryKind
from shared.roster import KeyState, key_states, open_roster


class MemberView(Record, frozen=True, kw_only=True):
    """One member of a roster; ``state`` is a :class:`~shared.roster.KeyState`."""

    department: str
    fingerprint: str
    state: KeyState


class RosterView(Record, frozen=True, kw_only=True):
    """A roster and what this department thinks of its keys; ``missing`` has a key approved here and is not on it."""

    city: str
    serial: int
    members: tuple[MemberView, ...]
    missing: tuple[str, ...]


def roster_view(config_path: Path, file: Path | None, *, now: dt.datetime, fetched: Path | None = None) -> RosterView:
    """Judge a roster.

    Args:
        config_path: this department's ``client.toml``.
        file: the roster; None for the newest one that this node was shown.
        now: the present time, UTC.
        fetched: where a roster may lie that was fetched before; an older one than that does not count either.

    Raises:
        ConfigError: ``file-missing``, ``toml-syntax``, ``toml-content``, ``key-malformed``, ``roster-unknown``.
        ProtocolError: the file is not a roster that counts here; see :func:`shared.roster.open_roster`.
        JournalError: the journal does not verify.
    """
    with _opened(config_path, file, now=now, fetched=fetched) as (_, roster, pins):
        return RosterView(
            city=roster.city,
            serial=roster.serial,
            members=tuple(_member(roster, name, state) for name, state in key_states(roster, pins).items()),
            missing=tuple(sorted(set(pins) - set(roster.members))),
        )


def roster_lines(view: RosterView) -> list[str]:
    """Say what a roster holds."""
    width = max(len(member.department) for member in view.members)
    return [
        f"Roster of {view.city}, serial {view.serial}:",
        *(f"  {item.department:{width}}  {item.fingerprint}  {item.state}" for item in view.members),
        *(f"  {name:{width}}  not on this roster" for name in view.missing),
    ]


def approve_keys(
    config_path: Path, words: Sequence[str], file: Path | None, *, now: dt.datetime
) -> tuple[MemberView, ...]:
    """Approve keys of a roster by their fingerprints, durably.

    Args:
        config_path: this department's ``client.toml``.
        words: the fingerprints as they were typed, with or without spaces.
        file: the roster that lists the keys; None for the newest one that this node was shown.
        now: the present time, UTC.

    Returns:
        The approved members. A roster from a file counts from now on: nobody can show an older one here.

    Raises:
        ConfigError: ``fingerprint-malformed``, ``fingerprint-unknown``, and as :func:`roster_view`. Nothing is approved
            unless everything can be.
        ProtocolError: as :func:`roster_view`.
        JournalError: as :func:`roster_view`.
    """
    wanted = read_fingerprints(words)
    with _opened(config_path, file, now=now, remember=True) as (memory, roster, pins):
        owners = {fingerprint(roster.members[name]): name for name in roster.ordered()}
        for printed in wanted:
            if printed not in owners:
                raise ConfigError(
                    "fingerprint-unknown", f"No key on roster serial {roster.serial} has the fingerprint {printed}."
                )
        names = [owners[printed] for printed in wanted]
        for name in names:
            if pins.get(name) != roster.members[name]:
                approved = KeyApproved(department=name, key=roster.members[name], means="fingerprint")
                memory.write(EntryKind.KEY, approved)
        return tuple(_member(roster, name, KeyState.APPROVED) for name in names)


def _member(roster: Roster, name: DepartmentId, state: KeyState) -> MemberView:
    """One line of the view."""
    return MemberView(department=name, fingerprint=fingerprint(roster.members[name]), state=state)


@contextmanager
def _opened(
    config_path: Path, file: Path | None, *, now: dt.datetime, fetched: Path | None = None, remember: bool = False
) -> Iterator[tuple[Memory, Roster, dict[DepartmentId, bytes]]]:
    """Open the journal; yield what it remembers, the roster that is meant, and the keys that count now."""
    trust = load_trust(load_config(config_path))
    with open_memory(config_path, lambda: now) as memory:
        roster = memory.roster
        if file is not None:
            newest = memory.roster if fetched is None else _later(memory.roster, fetched, trust.roster_key)
            signed = read_signed(file)
            roster = open_roster(signed, roster_key=trust.roster_key, newest=newest)
            if remember:
                memory.see_roster(signed, roster)
        if roster is None:
            raise ConfigError("roster-unknown", "No roster was shown to this node yet; name the file of one.")
        yield memory, roster, trust.pins | memory.keys


def _later(seen: Roster | None, fetched: Path, roster_key: bytes) -> Roster | None:
    """Return the later of the roster that was seen and one that was fetched; a file that does not count is none."""
    try:
        return open_roster(read_signed(fetched), roster_key=roster_key, newest=seen)
    except (ConfigError, ProtocolError):
        return seen
