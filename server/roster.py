"""Who is a member, with which key and which certificate: admit, rotate, remove, show (protocol 1 and 8)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from server.city import load_city
from server.home import AuthorityHome
from server.office import open_office, read_roster, requested_key
from shared.certificates import (
    certificate_digest,
    load_certificate,
    node_public_key,
)
from shared.city import Admission, require_fingerprint
from shared.codec import MAX_FILE_BYTES, Record, decode, dump_json, load_json
from shared.errors import ConfigError, ProtocolError, SetupError
from shared.files import read_file
from shared.identity import DepartmentId, Roster, Signed, fingerprint
from shared.private_files import replace_private_file
from shared.roster import open_roster, verify_endorsement


@dataclass(frozen=True)
class Members:
    """The members whose certificates count, as the processes of the authority read them from the home.

    Attributes:
        signed: the roster as it travels.
        by_certificate: department by :func:`shared.certificates.certificate_digest`: the allow-list.
        node_keys: public key for Flower's node authentication by department, PEM.
    """

    roster: Roster
    signed: Signed
    by_certificate: Mapping[bytes, DepartmentId]
    node_keys: Mapping[DepartmentId, bytes]


class MemberView(Record, frozen=True, kw_only=True):
    """One member for a person; the certificate's last day is UTC."""

    department: str
    fingerprint: str
    certificate_until: dt.datetime


class CityView(Record, frozen=True, kw_only=True):
    """The city for a person; serial 0 before the first member; ``warnings`` are sentences."""

    city: str
    fingerprint: str
    plan_key: str
    roster_key: str
    fleet: str
    channel: str
    shelf: str
    serial: int
    members: tuple[MemberView, ...]
    warnings: tuple[str, ...] = ()


def load_members(home: AuthorityHome) -> Members:
    """Read roster and certificates without the office's journal, which another process may be writing.

    Raises:
        ConfigError: ``city-missing``; ``roster-missing`` before the first member; ``file-missing``.
        ProtocolError: the roster or a certificate does not verify.
    """
    signed = read_roster(home)
    if signed is None:
        raise ConfigError("roster-missing", f"{home.roster} is not there: no department was admitted yet.")
    roster = open_roster(signed, roster_key=load_city(home).roster_key, newest=None)
    certificates = {name: member_certificate(home, name) for name in roster.ordered()}
    return Members(
        roster=roster,
        signed=signed,
        by_certificate={certificate_digest(item): name for name, item in certificates.items()},
        node_keys={name: node_public_key(item) for name, item in certificates.items()},
    )


def read_request(file: Path) -> Signed:
    """Read an enrolment request; nothing in it is believed yet.

    Raises:
        ConfigError: ``file-missing``, ``json-too-large``, ``json-content``.
    """
    return load_json(read_file(file, max_bytes=MAX_FILE_BYTES), Signed, where=str(file))


def write_admission(admission: Admission, out: Path | None) -> str:
    """Write the answer to a request, and say what to do with it.

    Raises:
        SetupError: ``admission-not-written``; the same request gets the same answer again.
    """
    target = out or Path(f"{admission.department}-admission.json")
    try:
        replace_private_file(target, dump_json(admission))
    except OSError as cause:
        raise SetupError(
            "admission-not-written", f"{target} cannot be written: repeat the command where there is room."
        ) from cause
    serial = decode(admission.roster.body, Roster).serial
    return f"{admission.department} is on roster serial {serial}: hand {target} to it."


def view_lines(view: CityView) -> list[str]:
    """Say what a city is."""
    width = max((len(member.department) for member in view.members), default=0)
    return [
        f"City {view.city}, roster serial {view.serial}, {len(view.members)} members.",
        f"  fingerprint of the city  {view.fingerprint}",
        f"  key of rosters           {view.roster_key}",
        f"  key of plans             {view.plan_key}",
        f"  Flower gateway {view.fleet}, update channel {view.channel}, shelf {view.shelf}",
        *(
            f"  {item.department:{width}}  {item.fingerprint}  certificate until {item.certificate_until:%Y-%m-%d}"
            for item in view.members
        ),
        *view.warnings,
    ]


def admit(home: AuthorityHome, signed: Signed, *, fingerprint_typed: str | None, now: dt.datetime) -> Admission:
    """Admit a new department: a certificate for its TLS key, and a roster with a higher serial.

    The same request again gets the same certificate, in case the first answer was lost, and the roster of now.

    Args:
        home: the authority's home.
        signed: the request as it arrived.
        fingerprint_typed: the identity's fingerprint as the department read it out.
        now: the present time, UTC.

    Raises:
        ProtocolError: the request does not verify; ``city-foreign``, ``member-exists``, ``key-reused``,
            ``fingerprint-mismatch``, or a fault of its signing request.
        ConfigError: ``fingerprint-unconfirmed``, or a file of the authority is not in order.
        JournalError: the roster could not be made durable; nothing was issued then.
    """
    with open_office(home) as office:
        request = office.open(signed)
        issued = office.issued_to(request)
        if issued is None:
            if request.department in office.members:
                raise ProtocolError("member-exists", f"{request.department} is a member: rotate or remove its keys.")
            office.require_unused(request.identity, requested_key(request))
        require_fingerprint(fingerprint_typed, fingerprint(request.identity), whose=f"department {request.department}")
        return issued or office.certify(request, now=now)


def rotate(home: AuthorityHome, signed: Signed, *, now: dt.datetime) -> Admission:
    """Renew a member's certificate, and exchange its identity where the old key vouches for the new one.

    The same request again gets the same certificate, as with :func:`admit`.

    Raises:
        ProtocolError: the request does not verify; ``city-foreign``, ``member-unknown``, ``key-reused``,
            ``endorsement-invalid``, or a fault of its signing request.
        ConfigError: a file of the authority is not in order.
        JournalError: the roster could not be made durable; nothing was issued then.
    """
    with open_office(home) as office:
        request = office.open(signed)
        present = office.require_member(request.department)
        if issued := office.issued_to(request):
            return issued
        office.require_unused(*([request.identity] if request.identity != present else []), requested_key(request))
        if request.identity != present:
            verify_endorsement(
                present,
                request.endorsement or b"",
                city=office.city.city,
                department=request.department,
                key=request.identity,
            )
        return office.certify(request, now=now)


def remove(home: AuthorityHome, department: str, *, now: dt.datetime) -> Roster:
    """Remove a member at once: the next roster lacks it, and its certificate counts no more.

    Raises:
        ProtocolError: ``member-unknown``, ``roster-empty``.
        ConfigError: a file of the authority is not in order.
        JournalError: the roster could not be made durable; the member is still one then.
    """
    with open_office(home) as office:
        office.require_member(department)
        left = {name: key for name, key in office.members.items() if name != department}
        if not left:
            raise ProtocolError("roster-empty", f"{department} is the last member; a roster has at least one.")
        return office.issue(left, endorsements=office.endorsements(without=department), certificates={}, now=now)


def view_city(home: AuthorityHome, *, warnings: tuple[str, ...] = ()) -> CityView:
    """Show the city as its files have it, and what there is to be warned of.

    Raises:
        ConfigError: ``city-missing``, ``file-missing``.
        ProtocolError: a file does not verify.
    """
    city = load_city(home)
    roster = load_members(home).roster if home.roster.exists() else None
    return CityView(
        city=city.city,
        fingerprint=city.fingerprint(),
        plan_key=fingerprint(city.plan_key),
        roster_key=fingerprint(city.roster_key),
        fleet=city.fleet,
        channel=city.channel,
        shelf=city.shelf,
        serial=roster.serial if roster else 0,
        members=tuple(_member_view(home, roster, name) for name in roster.ordered()) if roster else (),
        warnings=warnings,
    )


def _member_view(home: AuthorityHome, roster: Roster, name: DepartmentId) -> MemberView:
    """One line of the view."""
    return MemberView(
        department=name,
        fingerprint=fingerprint(roster.members[name]),
        certificate_until=member_certificate(home, name).not_valid_after_utc,
    )


def member_certificate(home: AuthorityHome, name: str) -> x509.Certificate:
    """Read the certificate of a member.

    Raises:
        ConfigError: ``file-missing``.
        ProtocolError: ``certificate-malformed``.
    """
    path = home.member(name)
    return load_certificate(read_file(path), where=str(path))
