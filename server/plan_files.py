"""The life of a plan at the authority: a draft that nobody believes, a signed plan, a published one.

The name of each file is the plan's digest, which people approve.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from server.city import load_city, load_plan_key
from server.home import AuthorityHome
from server.office import open_office
from server.plans import sign_plan
from server.roster import load_members
from shared.codec import Record, decode, encode
from shared.errors import ConfigError, ProtocolError
from shared.identity import Roster, Signed
from shared.journal import EntryKind
from shared.plan import Plan, accept_plan
from shared.private_files import make_private_folder, replace_private_file


class PlanState(StrEnum):
    """Where a plan is; the value is its folder."""

    DRAFT = "drafts"
    SIGNED = "signed"
    PUBLISHED = "published"


class PlanWritten(Record, frozen=True, kw_only=True):
    """Body of ``plan-signed`` and ``plan-published``."""

    digest: bytes
    name: str


class PlanLine(Record, frozen=True, kw_only=True):
    """One plan of the authority for a person."""

    digest: str
    name: str
    approval: int
    state: PlanState
    valid_until: dt.date
    cohort: tuple[str, ...]


def sign(home: AuthorityHome, digest: str, *, now: dt.datetime) -> Path:
    """Sign a draft.

    Raises:
        ConfigError: ``plan-unknown``, ``city-missing``; the plan key is not in order.
        ProtocolError: ``message-malformed``, ``plan-changed``, ``plan-expired``, ``roster-size``.
        JournalError: the signature could not be noted; the plan stays a draft.
    """
    path = _existing(home, PlanState.DRAFT, digest)
    plan = _same(decode(path.read_bytes(), Plan), digest, path)
    _require_current(plan, load_members(home).roster, now)
    signed = sign_plan(plan, load_plan_key(home))
    with open_office(home) as office:
        office.journal.append(EntryKind.PLAN_SIGNED, PlanWritten(digest=plan.digest(), name=plan.name), now=now)
    target = write_plan(home, PlanState.SIGNED, plan, encode(signed))
    path.unlink()
    return target


def publish(home: AuthorityHome, digest: str, *, now: dt.datetime) -> Path:
    """Show a signed plan to the departments.

    Raises:
        ConfigError: ``plan-unknown``, ``city-missing``.
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``plan-changed``, ``plan-expired``,
            ``roster-size``.
        JournalError: the publication could not be noted; nothing is published then.
    """
    path = _existing(home, PlanState.SIGNED, digest)
    signed, plan = _open(path, digest, load_city(home).plan_key)
    _require_current(plan, load_members(home).roster, now)
    with open_office(home) as office:
        office.journal.append(EntryKind.PLAN_PUBLISHED, PlanWritten(digest=plan.digest(), name=plan.name), now=now)
    target = write_plan(home, PlanState.PUBLISHED, plan, encode(signed))
    path.unlink()
    return target


def load_published(home: AuthorityHome, digest: str) -> tuple[Signed, Plan]:
    """Read the published plan that a run is about.

    Raises:
        ConfigError: ``plan-unknown``, ``city-missing``, ``json-too-large``, ``json-content``.
        ProtocolError: ``signature-invalid``, ``message-malformed``, ``plan-changed``.
    """
    return _open(_existing(home, PlanState.PUBLISHED, digest), digest, load_city(home).plan_key)


def list_plans(home: AuthorityHome) -> tuple[PlanLine, ...]:
    """Return every plan that lies here; whether a signature is right shows when it is used.

    Raises:
        ProtocolError: ``message-malformed``; the sentence names the file.
    """
    found = [
        (state, path.stem, decode(body, Plan, where=str(path)))
        for state in PlanState
        for path, body in _bodies(home, state)
    ]
    return tuple(
        PlanLine(
            digest=digest,
            name=plan.name,
            approval=plan.approval,
            state=state,
            valid_until=plan.valid_until,
            cohort=plan.cohort,
        )
        for state, digest, plan in found
    )


def plan_lines(lines: Sequence[PlanLine]) -> list[str]:
    """Say which plans there are."""
    return [
        f"{item.digest}  {item.state.value:9}  {item.name}, approval {item.approval}, until {item.valid_until}, "
        f"{', '.join(item.cohort)}"
        for item in lines
    ] or ["There is no plan."]


def _bodies(home: AuthorityHome, state: PlanState) -> Iterator[tuple[Path, bytes]]:
    """Yield the encoded plans of a state."""
    for path in sorted((home.plans / state).glob("*.plan")):
        content = path.read_bytes()
        yield path, content if state is PlanState.DRAFT else decode(content, Signed, where=str(path)).body


def _existing(home: AuthorityHome, state: PlanState, digest: str) -> Path:
    """Return the file of a plan."""
    path = home.plan(state, digest)
    if len(digest) != 64 or not digest.isalnum():
        raise ConfigError("plan-unknown", "A plan's digest has 64 hex digits: see `cityfed-server plan list`.")
    if not path.is_file():
        elsewhere = [f", but in {home.plans / other}" for other in PlanState if home.plan(other, digest).is_file()]
        raise ConfigError("plan-unknown", f"No plan with this digest lies in {path.parent}{''.join(elsewhere)}.")
    return path


def _open(path: Path, digest: str, key: bytes) -> tuple[Signed, Plan]:
    """Read a signed plan that must be the one that its file's name says."""
    signed = decode(path.read_bytes(), Signed)
    return signed, _same(accept_plan(signed, key), digest, path)


def _same(plan: Plan, digest: str, path: Path) -> Plan:
    """Refuse a plan under another one's name."""
    if plan.digest().hex() != digest:
        raise ProtocolError("plan-changed", f"{path} does not hold the plan of its name: it was changed.")
    return plan


def _require_current(plan: Plan, roster: Roster, now: dt.datetime) -> None:
    """Refuse a plan that no department could approve today."""
    if now.date() > plan.valid_until:
        raise ProtocolError("plan-expired", f"The plan {plan.name} was valid until {plan.valid_until}.")
    if plan.roster_size != len(roster.members):
        raise ProtocolError("roster-size", "The roster has grown or shrunk since the plan was drafted: draft it again.")


def write_plan(home: AuthorityHome, state: PlanState, plan: Plan, content: bytes) -> Path:
    """Write a plan's file in a state."""
    path = home.plan(state, plan.digest().hex())
    make_private_folder(path.parent)
    replace_private_file(path, content)
    return path
