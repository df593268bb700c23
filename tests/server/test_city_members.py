"""Who is a member: admission, rotation, removal, and rosters that never go back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from server.audit import OWNER
from server.city import load_city, load_roster_key
from server.home import AuthorityHome
from server.office import open_office
from server.roster import admit, load_members, remove, rotate
from shared.certificates import TlsKey, certificate_digest, certified_key, load_certificate, make_signing_request
from shared.city import Admission, EnrolmentRequest, sign_request
from shared.codec import decode, dump_json, encode
from shared.errors import JournalError, ProtocolError
from shared.identity import DepartmentId, IdentityKey, Roster, Signed, fingerprint, sign_record
from shared.journal import verify_journal
from shared.roster import ROSTER_LABEL, KeyState, endorse_key, key_states
from tests.command_line import Run
from tests.deployed_city import found, now
from tests.refusals import code_of


@dataclass
class Applicant:
    """A department's keys, as only tests hold them together with the authority."""

    home: AuthorityHome
    name: str
    identity: IdentityKey
    tls: TlsKey

    def ask(self, **changes: object) -> EnrolmentRequest:
        city = load_city(self.home)
        asked = EnrolmentRequest(
            city=city.digest(),
            department=self.name,
            identity=self.identity.public,
            signing_request=make_signing_request(self.tls, city=city.city, department=self.name),
        )
        return msgspec.structs.replace(asked, **changes)

    def signed(self, **changes: object) -> Signed:
        return sign_request(self.identity, self.ask(**changes))

    def admitted(self) -> Admission:
        return admit(self.home, self.signed(), fingerprint_typed=fingerprint(self.identity.public), now=now())


def applicant(home: AuthorityHome, name: str = "police") -> Applicant:
    return Applicant(home, name, IdentityKey.generate(), TlsKey.generate())


@pytest.fixture
def home(tmp_path: Path) -> AuthorityHome:
    return found(tmp_path)


def roster_of(admission: Admission) -> Roster:
    return decode(admission.roster.body, Roster)


def state(home: AuthorityHome) -> tuple[bytes, dict[str, bytes]]:
    return home.roster.read_bytes(), {path.name: path.read_bytes() for path in home.members.iterdir()}


# --- admission ---------------------------------------------------------------------------------------------


def test_every_admission_gives_a_higher_roster_and_a_certificate_for_the_key_that_was_shown(
    home: AuthorityHome,
) -> None:
    applicants = [applicant(home, name) for name in ("police", "health", "transport")]
    for serial, one in enumerate(applicants, start=1):
        admission = one.admitted()
        roster = roster_of(admission)
        assert (roster.serial, roster.city) == (serial, "metropolis")
        assert roster.members[one.name] == one.identity.public
        assert certified_key(load_certificate(admission.certificate.encode(), where="it")) == one.tls.public
    members = load_members(home)
    assert members.roster == roster
    assert set(members.by_certificate.values()) == set(members.node_keys) == {"police", "health", "transport"}


def test_nobody_is_admitted_before_the_fingerprint_was_compared(home: AuthorityHome) -> None:
    one = applicant(home)
    stranger = fingerprint(IdentityKey.generate().public)
    for typed, code in ((None, "unconfirmed"), (stranger, "mismatch"), ("abcd", "malformed")):
        act = lambda typed=typed: admit(home, one.signed(), fingerprint_typed=typed, now=now())  # noqa: E731
        assert code_of(act) == f"fingerprint-{code}"
    assert not home.roster.exists()
    typed = fingerprint(one.identity.public).upper().replace(" ", "")
    assert admit(home, one.signed(), fingerprint_typed=typed, now=now()).department == "police"


def test_a_request_that_proves_nothing_is_refused(home: AuthorityHome) -> None:
    one, other = applicant(home), applicant(home)
    typed = fingerprint(one.identity.public)

    def code(signed: Signed) -> str:
        return code_of(lambda: admit(home, signed, fingerprint_typed=typed, now=now()))

    assert code(sign_request(other.identity, one.ask())) == "signature-invalid"
    good = one.signed()
    assert code(Signed(body=good.body[:-1], signature=good.signature)) == "message-malformed"
    assert code(one.signed(signing_request=b"no request")) == "signing-request-malformed"
    broken = one.ask().signing_request
    assert code(one.signed(signing_request=broken[:-4] + bytes(4))) == "signing-request-unproven"
    for name in ("Police", "authority", "", "../police"):
        body = msgspec.msgpack.encode({**msgspec.structs.asdict(one.ask()), "department": name})
        assert code(Signed(body=body, signature=one.identity.sign("enrolment", body))) == "message-malformed"
    assert not home.roster.exists()


def test_a_request_for_another_city_is_refused(home: AuthorityHome, tmp_path: Path) -> None:
    elsewhere = found(tmp_path / "elsewhere")
    one = applicant(elsewhere)
    typed = fingerprint(one.identity.public)
    assert code_of(lambda: admit(home, one.signed(), fingerprint_typed=typed, now=now())) == "city-foreign"


def test_a_member_is_not_admitted_twice_and_no_key_is_shared(home: AuthorityHome) -> None:
    one = applicant(home)
    one.admitted()
    before = state(home)
    assert code_of(Applicant(home, "police", one.identity, TlsKey.generate()).admitted) == "member-exists"
    assert code_of(Applicant(home, "health", one.identity, TlsKey.generate()).admitted) == "key-reused"
    assert code_of(Applicant(home, "health", IdentityKey.generate(), one.tls).admitted) == "key-reused"
    impostor = Applicant(home, "police", IdentityKey.generate(), one.tls)  # as far as the certificate shows
    assert code_of(impostor.admitted) == "member-exists"
    assert code_of(lambda: rotate(home, impostor.signed(), now=now())) == "key-reused"
    assert state(home) == before


def test_a_key_of_a_removed_member_never_comes_back(home: AuthorityHome) -> None:
    one, other = applicant(home), applicant(home, "health")
    one.admitted()
    other.admitted()
    remove(home, "police", now=now())
    assert code_of(one.admitted) == "key-reused"
    assert code_of(Applicant(home, "police", IdentityKey.generate(), one.tls).admitted) == "key-reused"
    assert roster_of(applicant(home).admitted()).serial == 4


# --- removal -----------------------------------------------------------------------------------------------


def test_a_removed_member_is_out_at_once(home: AuthorityHome) -> None:
    admissions = [applicant(home, name).admitted() for name in ("police", "health")]
    digests = [certificate_digest(load_certificate(item.certificate.encode(), where="it")) for item in admissions]
    assert set(load_members(home).by_certificate) == set(digests)
    roster = remove(home, "police", now=now())
    assert (roster.serial, set(roster.members)) == (3, {"health"})
    assert set(load_members(home).by_certificate) == {digests[1]}
    assert not home.member("police").exists()
    assert code_of(lambda: remove(home, "police", now=now())) == "member-unknown"
    assert code_of(lambda: remove(home, "health", now=now())) == "roster-empty"


# --- rotation ----------------------------------------------------------------------------------------------


def exchanged(old: Applicant, **changes: object) -> tuple[Applicant, Signed]:
    """New keys, and the request that the old identity vouches for."""
    new = Applicant(old.home, old.name, IdentityKey.generate(), TlsKey.generate())
    word = endorse_key(old.identity, city="metropolis", department=old.name, key=new.identity.public)
    return new, new.signed(**{"endorsement": word, **changes})


def test_a_new_identity_counts_where_the_old_one_vouches_for_it(home: AuthorityHome) -> None:
    old = applicant(home)
    old.admitted()
    applicant(home, "health").admitted()
    new, signed = exchanged(old)
    roster = roster_of(rotate(home, signed, now=now()))
    pins = {DepartmentId("police"): old.identity.public}
    assert key_states(roster, pins)[DepartmentId("police")] is KeyState.ENDORSED
    third = roster_of(applicant(home, "transport").admitted())
    assert key_states(third, pins)[DepartmentId("police")] is KeyState.ENDORSED, "for who skipped a roster"
    assert certified_key(load_certificate(home.member("police").read_bytes(), where="it")) == new.tls.public


def test_a_new_identity_without_the_old_ones_word_is_refused(home: AuthorityHome) -> None:
    old = applicant(home)
    old.admitted()
    before = state(home)
    thief = IdentityKey.generate()
    new, _ = exchanged(old)
    words = (
        None,
        endorse_key(thief, city="metropolis", department="police", key=new.identity.public),
        endorse_key(old.identity, city="gotham", department="police", key=new.identity.public),
        endorse_key(old.identity, city="metropolis", department="health", key=new.identity.public),
        endorse_key(old.identity, city="metropolis", department="police", key=thief.public),
    )
    for word in words:
        signed = new.signed(endorsement=word)
        assert code_of(lambda signed=signed: rotate(home, signed, now=now())) == "endorsement-invalid"
    assert state(home) == before


def test_a_certificate_is_renewed_and_the_old_one_counts_no_more(home: AuthorityHome) -> None:
    one = applicant(home)
    first = one.admitted()
    renewed = Applicant(home, one.name, one.identity, TlsKey.generate())
    second = rotate(home, renewed.signed(), now=now())
    digest = certificate_digest(load_certificate(second.certificate.encode(), where="it"))
    assert second.certificate != first.certificate
    assert dict(load_members(home).by_certificate) == {digest: "police"}
    assert roster_of(second).members == roster_of(first).members


def test_a_renewed_certificate_takes_no_word_of_the_old_identity_back(home: AuthorityHome) -> None:
    """A department that skipped both rosters still knows whose key that is."""
    old = applicant(home)
    old.admitted()
    new, signed = exchanged(old)
    rotate(home, signed, now=now())
    renewed = Applicant(home, old.name, new.identity, TlsKey.generate())
    roster = roster_of(rotate(home, renewed.signed(), now=now()))
    police = DepartmentId("police")
    assert key_states(roster, {police: old.identity.public})[police] is KeyState.ENDORSED


def test_a_rotation_is_for_members_and_no_old_key_comes_back(home: AuthorityHome) -> None:
    old = applicant(home)
    assert code_of(lambda: rotate(home, old.signed(), now=now())) == "member-unknown"
    old.admitted()
    new, signed = exchanged(old)
    rotate(home, signed, now=now())
    assert code_of(lambda: rotate(home, old.signed(), now=now())) == "key-reused"
    assert code_of(old.admitted) == "member-exists"
    _, back = exchanged(new, identity=old.identity.public)
    assert code_of(lambda: rotate(home, back, now=now())) == "signature-invalid"
    returning = Applicant(home, "police", old.identity, TlsKey.generate())
    word = endorse_key(new.identity, city="metropolis", department="police", key=old.identity.public)
    assert code_of(lambda: rotate(home, returning.signed(endorsement=word), now=now())) == "key-reused"


def test_an_answer_that_got_lost_is_given_again_and_nothing_new_is_issued(home: AuthorityHome) -> None:
    """With the roster of now: others may have come since."""
    one = applicant(home)
    first = one.admitted()
    applicant(home, "health").admitted()
    before, entries = state(home), verify_journal(home.office_journal, owner=OWNER).entries
    again = one.admitted()
    assert (again.certificate, roster_of(again).serial) == (first.certificate, 2)
    assert rotate(home, one.signed(), now=now()) == again
    assert code_of(lambda: admit(home, one.signed(), fingerprint_typed=None, now=now())) == "fingerprint-unconfirmed"
    assert (state(home), verify_journal(home.office_journal, owner=OWNER).entries) == (before, entries)
    _, signed = exchanged(one)
    rotated = rotate(home, signed, now=now())
    assert rotate(home, signed, now=now()) == rotated


def test_a_folder_that_is_not_there_loses_no_admission(home: AuthorityHome, tmp_path: Path, run: Run) -> None:
    one, request = applicant(home), tmp_path / "request.json"
    request.write_bytes(dump_json(one.signed()))
    words = ["city", "admit", request, "--home", home.root, "--fingerprint", fingerprint(one.identity.public), "--out"]
    ended = run(*words, tmp_path / "nowhere" / "admission.json")
    assert (ended.code, ended.sentence.endswith("[admission-not-written]")) == (3, True)
    assert run(*words, tmp_path / "admission.json").code == 0
    assert b"police" in (tmp_path / "admission.json").read_bytes()


# --- crashes and rollbacks ---------------------------------------------------------------------------------


def test_files_that_a_crash_left_behind_are_written_again(home: AuthorityHome) -> None:
    applicant(home).admitted()
    older = state(home)
    applicant(home, "health").admitted()
    newer = state(home)
    home.roster.write_bytes(older[0])
    home.member("health").unlink()
    with open_office(home):
        assert state(home) == newer


def test_a_journal_that_was_rolled_back_issues_nothing(home: AuthorityHome) -> None:
    applicant(home).admitted()
    copy = home.office_journal.read_bytes()
    applicant(home, "health").admitted()
    home.office_journal.write_bytes(copy)
    act = applicant(home, "transport").admitted
    assert code_of(act) == "roster-rolled-back"
    home.office_journal.unlink()
    with pytest.raises(JournalError) as caught:
        act()
    assert caught.value.code == "roster-rolled-back"


def test_another_roster_with_the_serial_of_the_newest_is_one_that_the_journal_does_not_know(
    home: AuthorityHome,
) -> None:
    roster = roster_of(applicant(home).admitted())
    other = msgspec.structs.replace(roster, members={"police": IdentityKey.generate().public})
    home.roster.write_bytes(encode(sign_record(load_roster_key(home), ROSTER_LABEL, other)))
    before = state(home)
    assert code_of(applicant(home, "health").admitted) == "roster-rolled-back"
    assert state(home) == before


def test_the_journal_shows_an_edit(home: AuthorityHome) -> None:
    applicant(home).admitted()
    data = home.office_journal.read_bytes()
    home.office_journal.write_bytes(data.replace(b"BEGIN CERTIFICATE", b"BEGIN_CERTIFICATE", 1))
    assert code_of(applicant(home, "health").admitted) == "journal-corrupt"


def test_unchanged_files_are_left_alone(home: AuthorityHome) -> None:
    applicant(home).admitted()
    before = home.roster.stat().st_ino
    with open_office(home):
        assert home.roster.stat().st_ino == before


def test_a_member_without_its_certificate_is_an_error_and_not_a_stranger(home: AuthorityHome) -> None:
    assert code_of(lambda: load_members(home)) == "roster-missing"
    applicant(home).admitted()
    home.member("police").unlink()
    assert code_of(lambda: load_members(home)) == "file-missing"


def test_a_roster_of_another_city_is_not_read(home: AuthorityHome, tmp_path: Path) -> None:
    applicant(home).admitted()
    other = found(tmp_path / "other")
    applicant(other).admitted()
    home.roster.write_bytes(other.roster.read_bytes())
    with pytest.raises(ProtocolError) as caught:
        load_members(home)
    assert caught.value.code == "signature-invalid"


# --- the command -------------------------------------------------------------------------------------------


def test_the_commands_admit_show_rotate_and_remove(run: Run, home: AuthorityHome, tmp_path: Path) -> None:
    at = ("--home", home.root)
    old = applicant(home)
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_bytes(dump_json(old.signed()))
    ended = run("city", "admit", request, *at)
    assert (ended.code, ended.sentence.endswith("[fingerprint-unconfirmed]")) == (2, True)
    assert fingerprint(old.identity.public) in ended.err
    ended = run("city", "admit", request, *at, "--fingerprint", fingerprint(old.identity.public), "--out", answer)
    assert ended.out == f"police is on roster serial 1: hand {answer} to it.\n"
    applicant(home, "health").admitted()
    new, signed = exchanged(old)
    request.write_bytes(dump_json(signed))
    assert run("city", "rotate", request, *at, "--out", answer).code == 0
    shown = json.loads(run("city", "show", *at, "--json").out)
    assert [item["department"] for item in shown["members"]] == ["health", "police"]
    assert shown["members"][1]["fingerprint"] == fingerprint(new.identity.public)
    assert run("city", "remove", "police", *at).out == "police is out from roster serial 4 on.\n"
    assert "1 members" in run("city", "show", *at).out
    assert run("audit", "verify", home.office_journal).out.startswith("4 entries")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"body": "", "signature": "AAAA"}', b"\xff"])
def test_a_file_that_is_no_request_is_one_sentence(
    run: Run, home: AuthorityHome, tmp_path: Path, content: bytes
) -> None:
    request = tmp_path / "request.json"
    for command in ("admit", "rotate"):
        request.unlink(missing_ok=True)
        ended = run("city", command, request, "--home", home.root)
        assert (ended.code, ended.sentence.endswith("[file-missing]")) == (2, True)
        request.write_bytes(content)
        ended = run("city", command, request, "--home", home.root)
        assert (ended.code, ended.sentence.endswith("[json-content]")) == (2, True)
