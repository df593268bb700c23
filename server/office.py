"""The roster office at work: one journal in which every roster and certificate stands that was ever issued.

The files that other processes read follow from its newest entry and are written again if a crash left them behind. A
key that was on a roster once, or in a certificate, is never admitted again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server.audit import OWNER
from server.city import load_authority, load_city, load_roster_key
from server.home import AuthorityHome
from shared.certificates import (
    certificate_pem,
    certified_key,
    load_certificate,
    open_signing_request,
    public_bytes,
)
from shared.city import Admission, CityFile, EnrolmentRequest, open_request
from shared.codec import Record, decode, encode
from shared.errors import JournalError, ProtocolError
from shared.identity import Roster, Signed, sign_record
from shared.journal import EntryKind, Journal
from shared.private_files import make_private_folder, replace_private_file
from shared.roster import ROSTER_LABEL, open_roster


class RosterIssued(Record, frozen=True, kw_only=True):
    """A roster that was signed here, and the certificate (PEM) of each of its members."""

    roster: Signed
    certificates: dict[str, str]


@dataclass
class Office:
    """The roster office at work: its journal is open, and nobody else issues a roster."""

    home: AuthorityHome
    city: CityFile
    journal: Journal
    roster: Roster | None = None
    signed: Signed | None = None
    certificates: dict[str, str] = field(default_factory=dict)
    used_keys: set[bytes] = field(default_factory=set)

    @property
    def members(self) -> dict[str, bytes]:
        """Identity key by member."""
        return dict(self.roster.members) if self.roster else {}

    def endorsements(self, *, without: str) -> dict[str, bytes]:
        """Endorsements that later rosters repeat, for departments that skip one."""
        kept = self.roster.endorsements if self.roster else {}
        return {name: signature for name, signature in kept.items() if name != without}

    def open(self, signed: Signed) -> EnrolmentRequest:
        """Verify a request and refuse one for another city."""
        request = open_request(signed)
        if request.city != self.city.digest():
            raise ProtocolError("city-foreign", f"The request of {request.department} was made for another city.")
        return request

    def require_member(self, department: str) -> bytes:
        """Return the present identity key of a member."""
        if department not in self.members:
            raise ProtocolError("member-unknown", f"{department} is not a member of {self.city.city}.")
        return self.members[department]

    def require_unused(self, *keys: bytes) -> None:
        """Refuse a key that any member has or had: a replayed request, or somebody else's key."""
        if self.used_keys.intersection(keys):
            raise ProtocolError("key-reused", "The request names a key that a member has or had; make new keys.")

    def issued_to(self, request: EnrolmentRequest) -> Admission | None:
        """Return what was issued for the keys of a request, if they are the member's present ones: it may be lost."""
        name, pem = request.department, self.certificates.get(request.department)
        if pem is None or self.signed is None or self.members.get(name) != request.identity:
            return None
        if _certified_key(pem, name) != requested_key(request):
            return None
        return Admission(department=name, certificate=pem, roster=self.signed)

    def certify(self, request: EnrolmentRequest, *, now: dt.datetime) -> Admission:
        """Issue a certificate, and a roster that lists the request's identity."""
        authority, name = load_authority(self.home, now=now), request.department
        certificate = authority.issue_member(open_signing_request(request.signing_request), name, now=now)
        pem = certificate_pem(certificate).decode()
        endorsements = self.endorsements(without=name if self.members.get(name) != request.identity else "")
        if request.endorsement is not None:
            endorsements[name] = request.endorsement
        members = self.members | {name: request.identity}
        self.issue(members, endorsements=endorsements, certificates={name: pem}, now=now)
        if self.signed is None:
            raise RuntimeError("a roster was issued just now")
        return Admission(department=name, certificate=pem, roster=self.signed)

    def issue(
        self,
        members: Mapping[str, bytes],
        *,
        endorsements: Mapping[str, bytes],
        certificates: Mapping[str, str],
        now: dt.datetime,
    ) -> Roster:
        """Sign the next roster, make it durable, then put the files in place."""
        serial = self.roster.serial + 1 if self.roster else 1
        roster = Roster(city=self.city.city, serial=serial, members=dict(members), endorsements=dict(endorsements))
        kept = {name: pem for name, pem in (self.certificates | dict(certificates)).items() if name in members}
        issued = RosterIssued(roster=sign_record(load_roster_key(self.home), ROSTER_LABEL, roster), certificates=kept)
        self.journal.append(EntryKind.ISSUED, issued, now=now)
        self.apply(issued)
        self.write_files()
        return roster

    def apply(self, issued: RosterIssued) -> None:
        """Fold one entry of the journal into the state."""
        self.signed, self.certificates = issued.roster, dict(issued.certificates)
        self.roster = decode(issued.roster.body, Roster, error=JournalError)
        self.used_keys.update(self.roster.members.values())
        for name, pem in issued.certificates.items():
            self.used_keys.add(_certified_key(pem, name))

    def write_files(self) -> None:
        """Write what other processes read: certificates that count, and last the roster that makes them count."""
        if self.signed is None:
            return
        make_private_folder(self.home.members)
        for name, pem in self.certificates.items():
            _put(self.home.member(name), pem.encode())
        _put(self.home.roster, encode(self.signed))
        for path in self.home.members.glob("*.crt"):
            if path.stem not in self.certificates:
                path.unlink()


@contextmanager
def open_office(home: AuthorityHome) -> Iterator[Office]:
    """Open the office: fold its journal, and repair the files if a crash left them behind.

    Raises:
        ConfigError: as :func:`server.city.load_city`.
        JournalError: the journal is in use or does not verify; ``roster-rolled-back`` when a newer roster
            lies beside it.
        ProtocolError: as :func:`server.city.load_city`; the roster that lies beside the journal cannot be read or
            does not verify: ``message-malformed``, ``signature-invalid``.
    """
    city = load_city(home)
    with Journal.open(home.office_journal, owner=OWNER) as journal:
        office = Office(home, city, journal)
        for entry in journal.entries(EntryKind.ISSUED):
            office.apply(decode(entry.body, RosterIssued, error=JournalError))
        shown = read_roster(home)
        if shown is not None and shown != office.signed:
            _require_older(open_roster(shown, roster_key=city.roster_key, newest=None), office.roster, home)
        office.write_files()
        yield office


def requested_key(request: EnrolmentRequest) -> bytes:
    """Return the public TLS key of a request, proven by its signing request.

    Raises:
        ProtocolError: a fault of the signing request.
    """
    return public_bytes(open_signing_request(request.signing_request))


def _require_older(shown: Roster, issued: Roster | None, home: AuthorityHome) -> None:
    """A roster on disk that the journal does not know means that the journal was rolled back."""
    if issued is None or shown.serial >= issued.serial:
        raise JournalError(
            "roster-rolled-back",
            f"{home.office_journal} does not know roster serial {shown.serial}, which was issued: restore a newer one.",
        )


def read_roster(home: AuthorityHome) -> Signed | None:
    """Read the roster file, if there is one."""
    if not home.roster.exists():
        return None
    return decode(home.roster.read_bytes(), Signed)


def _put(path: Path, content: bytes) -> None:
    """Write a file unless it is there already, so that who watches it sees real changes only."""
    if not path.exists() or path.read_bytes() != content:
        replace_private_file(path, content)


def _certified_key(pem: str, name: str) -> bytes:
    """Return the key of a certificate that was issued here."""
    return certified_key(load_certificate(pem.encode(), where=f"The certificate of {name}"))
