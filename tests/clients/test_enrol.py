"""A department joins a city: its keys stay here, and it installs nothing that was not meant for it."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import msgspec
import pytest

from clients.config import load_config, load_tls, open_journal
from clients.enrol import CONFIG_FILE, REQUEST_FILE, Enrolled, enrol, install_admission, request_rotation
from clients.memory import Memory
from clients.roster import roster_view
from server.city import load_city
from server.home import AuthorityHome
from server.roster import admit, load_members, read_request, remove, rotate
from shared.certificates import TlsKey, certified_key, load_certificate, load_tls_key
from shared.city import Admission, open_request
from shared.codec import dump_json
from shared.identity import IdentityKey, fingerprint
from shared.journal import EntryKind
from shared.keystore import load_identity
from shared.roster import KeyState
from tests.command_line import Run
from tests.deployed_city import found, now
from tests.refusals import code_of

OWNER = IdentityKey.generate().public.hex()
KEYS = ("identity.key", "tls.key", "node.key")


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityHome:
    return found(tmp_path)


def join(authority: AuthorityHome, name: str = "police") -> tuple[Path, Enrolled]:
    home = authority.root.parent / name
    enrolled = enrol(
        home,
        name,
        city_file=authority.city,
        city_fingerprint=load_city(authority).fingerprint(),
        policy_owner_key=OWNER,
    )
    return home / CONFIG_FILE, enrolled


def answer(authority: AuthorityHome, config: Path, enrolled: Enrolled) -> Path:
    request = read_request(enrolled.request)
    return save(config, admit(authority, request, fingerprint_typed=enrolled.fingerprint, now=now()))


def save(config: Path, admission: Admission) -> Path:
    file = config.with_name("admission.json")
    file.write_bytes(dump_json(admission))
    return file


def keys_of(config: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in config.parent.iterdir() if ".key" in path.name}


# --- enrolment ---------------------------------------------------------------------------------------------


def test_only_the_owner_can_read_what_was_made(authority: AuthorityHome) -> None:
    config, _ = join(authority)
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    for path in config.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name


def test_the_request_holds_public_keys_only(authority: AuthorityHome) -> None:
    config, enrolled = join(authority)
    request = open_request(read_request(enrolled.request))
    identity = load_identity(config.with_name("identity.key"))
    assert (request.department, request.identity) == ("police", identity.public)
    assert enrolled.fingerprint == fingerprint(identity.public)
    sent = enrolled.request.read_bytes() + read_request(enrolled.request).body
    tls = load_tls_key(config.with_name("tls.key")).private.private_numbers().private_value.to_bytes(32, "big")
    for secret in (*keys_of(config).values(), tls):
        assert secret not in sent
        assert secret.hex().encode() not in sent


def test_the_configuration_pins_the_city_and_this_departments_own_key(authority: AuthorityHome) -> None:
    config, _ = join(authority)
    loaded, city = load_config(config), load_city(authority)
    assert loaded.roster_key == city.roster_key.hex()
    assert loaded.authority_key == city.plan_key.hex()
    assert loaded.policy_owner_key == OWNER
    assert loaded.members == {"police": load_identity(config.with_name("identity.key")).public.hex()}
    assert (loaded.fleet, loaded.channel) == (city.fleet, city.channel)


def test_nothing_is_made_before_the_citys_fingerprint_was_compared(authority: AuthorityHome, tmp_path: Path) -> None:
    home = tmp_path / "police"
    stranger = fingerprint(b"another city")

    def code(typed: str | None, city: Path = authority.city, name: str = "police", owner: str = OWNER) -> str:
        return code_of(lambda: enrol(home, name, city_file=city, city_fingerprint=typed, policy_owner_key=owner))

    good = load_city(authority).fingerprint()
    assert code(None) == "fingerprint-unconfirmed"
    assert code(stranger) == "fingerprint-mismatch"
    assert code("not hex") == "fingerprint-malformed"
    assert code(good, tmp_path / "nowhere") == "file-missing"
    assert code(good, authority.config) == "json-content"
    assert code(good, name="Police") == code(good, name="authority") == "department-name"
    assert code(good, owner="abcd") == "key-malformed"
    other = tmp_path / "changed.json"
    other.write_bytes(authority.city.read_bytes().replace(b"BEGIN", b"BEGAN"))
    assert code(good, other) == "certificate-malformed"
    assert not home.exists()


@pytest.mark.parametrize("field", ["fleet", "channel", "shelf"])
def test_nothing_is_made_of_addresses_that_no_configuration_can_hold(
    authority: AuthorityHome, tmp_path: Path, field: str
) -> None:
    """The fingerprint does not cover them."""
    city, changed = load_city(authority), tmp_path / "changed.json"
    changed.write_bytes(dump_json(msgspec.structs.replace(city, **{field: "a\0b"})))
    home, typed = tmp_path / "police", city.fingerprint()
    act = lambda: enrol(home, "police", city_file=changed, city_fingerprint=typed, policy_owner_key=OWNER)  # noqa: E731
    assert code_of(act) == "toml-content"
    assert not home.exists()


def test_a_swapped_key_in_the_city_file_changes_its_fingerprint(authority: AuthorityHome, tmp_path: Path) -> None:
    city = load_city(authority)
    swapped = tmp_path / "city.json"
    swapped.write_bytes(dump_json(msgspec.structs.replace(city, plan_key=IdentityKey.generate().public)))
    act = lambda: enrol(  # noqa: E731
        tmp_path / "police",
        "police",
        city_file=swapped,
        city_fingerprint=city.fingerprint(),
        policy_owner_key=OWNER,
    )
    assert code_of(act) == "fingerprint-mismatch"


def test_a_department_is_never_enrolled_over_itself(authority: AuthorityHome) -> None:
    config, _ = join(authority)
    before = keys_of(config)
    assert code_of(lambda: join(authority)) == "home-exists"
    config.unlink()
    assert code_of(lambda: join(authority)) == "key-file-exists"
    assert keys_of(config) == before


# --- admission ---------------------------------------------------------------------------------------------


def test_an_admission_is_installed_and_installing_it_again_changes_nothing(authority: AuthorityHome) -> None:
    config, enrolled = join(authority)
    assert code_of(lambda: load_tls(config, load_config(config), now=now())) == "not-admitted"
    file = answer(authority, config, enrolled)
    assert install_admission(config, file, now=now()) == load_members(authority).roster
    tls = load_tls(config, load_config(config), now=now())
    before = keys_of(config)
    install_admission(config, file, now=now())
    assert (load_tls(config, load_config(config), now=now()), keys_of(config)) == (tls, before)
    with open_journal(config) as journal:
        assert len(list(journal.entries())) == 1
    assert [item.state for item in roster_view(config, None, now=now()).members] == [KeyState.APPROVED]


def test_somebody_elses_admission_is_refused(authority: AuthorityHome, tmp_path: Path) -> None:
    """By name, by key, by city: whatever was exchanged on the way shows."""
    police, asked = join(authority)
    health, other = join(authority, "health")
    mine, theirs = answer(authority, police, asked), answer(authority, health, other)
    good, foreign = (msgspec.json.decode(path.read_bytes(), type=Admission) for path in (mine, theirs))

    def code(admission: Admission) -> str:
        return code_of(lambda: install_admission(police, save(police, admission), now=now()))

    replace = msgspec.structs.replace
    assert code(foreign) == "admission-foreign"
    assert code(replace(foreign, department="police")) == "certificate-foreign-key"
    assert code(replace(good, certificate="no certificate")) == "certificate-malformed"
    elsewhere = found(tmp_path / "elsewhere")
    config, enrolled = join(elsewhere)
    abroad = msgspec.json.decode(answer(elsewhere, config, enrolled).read_bytes(), type=Admission)
    assert code(abroad) == "certificate-foreign-city"
    assert code(replace(good, roster=abroad.roster)) == "signature-invalid"
    assert code_of(lambda: install_admission(police, authority.config, now=now())) == "json-content"
    assert not police.with_name("tls.crt").exists()


def test_a_roster_without_this_department_is_refused(authority: AuthorityHome) -> None:
    config, enrolled = join(authority)
    health, other = join(authority, "health")
    admission = msgspec.json.decode(answer(authority, config, enrolled).read_bytes(), type=Admission)
    answer(authority, health, other)
    remove(authority, "police", now=now())
    later = msgspec.structs.replace(admission, roster=load_members(authority).signed)
    assert code_of(lambda: install_admission(config, save(config, later), now=now())) == "not-on-roster"


def test_a_roster_never_goes_back_here(authority: AuthorityHome) -> None:
    config, enrolled = join(authority)
    file = answer(authority, config, enrolled)
    health, other = join(authority, "health")
    answer(authority, health, other)
    first = msgspec.json.decode(file.read_bytes(), type=Admission)
    newer = msgspec.structs.replace(first, roster=load_members(authority).signed)
    install_admission(config, save(config, newer), now=now())
    assert code_of(lambda: install_admission(config, save(config, first), now=now())) == "roster-rolled-back"


@pytest.mark.parametrize(
    ("days", "code"), [(-1, "certificate-not-yet-valid"), (398, "certificate-expired")], ids=["early", "late"]
)
def test_a_certificate_out_of_date_is_named(authority: AuthorityHome, days: int, code: str) -> None:
    config, enrolled = join(authority)
    file = answer(authority, config, enrolled)
    other = now() + dt.timedelta(days=days)
    assert code_of(lambda: install_admission(config, file, now=other)) == code
    install_admission(config, file, now=now())
    assert code_of(lambda: load_tls(config, load_config(config), now=other)) == code


@pytest.mark.parametrize("name", ["identity.key", "tls.key"])
def test_a_key_that_others_can_read_is_refused(authority: AuthorityHome, name: str) -> None:
    config, enrolled = join(authority)
    file = answer(authority, config, enrolled)
    config.with_name(name).chmod(0o644)
    assert code_of(lambda: install_admission(config, file, now=now())) == "key-file-open"


# --- rotation ----------------------------------------------------------------------------------------------


@pytest.fixture
def member(authority: AuthorityHome) -> Path:
    config, enrolled = join(authority)
    install_admission(config, answer(authority, config, enrolled), now=now())
    return config


@pytest.mark.parametrize("new_identity", [True, False])
def test_new_keys_are_used_once_the_city_answered(authority: AuthorityHome, member: Path, new_identity: bool) -> None:
    before = {name: member.with_name(name).read_bytes() for name in KEYS}
    asked = request_rotation(member, new_identity=new_identity)
    assert {name: member.with_name(name).read_bytes() for name in KEYS} == before
    file = save(member, rotate(authority, read_request(asked.request), now=now()))
    roster = install_admission(member, file, now=now())
    after = {name: member.with_name(name).read_bytes() for name in KEYS}
    assert {name for name in KEYS if after[name] != before[name]} == set(KEYS[0 if new_identity else 1 :])
    assert sorted(keys_of(member)) == sorted(KEYS)
    assert roster.members["police"] == load_identity(member.with_name("identity.key")).public
    assert load_tls(member, load_config(member), now=now()).key == member.with_name("tls.key").read_bytes()
    assert [item.state for item in roster_view(member, None, now=now()).members] == [KeyState.APPROVED]
    install_admission(member, file, now=now())


@pytest.mark.parametrize("survivors", [KEYS, KEYS[1:], KEYS[2:], ()], ids=["all", "tls", "node", "none"])
def test_an_installation_that_was_interrupted_is_finished_by_doing_it_again(
    authority: AuthorityHome, member: Path, survivors: tuple[str, ...]
) -> None:
    """The keys are exchanged one after the other; the ones not yet exchanged wait."""
    asked = request_rotation(member, new_identity=True)
    file = save(member, rotate(authority, read_request(asked.request), now=now()))
    for name in set(KEYS) - set(survivors):
        member.with_name(f"{name}.next").replace(member.with_name(name))
    install_admission(member, file, now=now())
    assert sorted(keys_of(member)) == sorted(KEYS)
    tls = TlsKey.from_pem(load_tls(member, load_config(member), now=now()).key, where="tls.key")
    certificate = load_certificate(member.with_name("tls.crt").read_bytes(), where="tls.crt")
    assert certified_key(certificate) == tls.public
    assert member.with_name("node.key").read_bytes() == tls.openssh() or _same_key(member, tls)


def _same_key(member: Path, tls: TlsKey) -> bool:
    """OpenSSH's format holds random check bytes, so the same key may be written in many ways."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    loaded = load_ssh_private_key(member.with_name("node.key").read_bytes(), None)
    return bool(loaded.private_numbers() == tls.private.private_numbers())  # type: ignore[union-attr]


def test_the_old_answer_leaves_keys_that_wait_alone(member: Path) -> None:
    request_rotation(member, new_identity=True)
    before = keys_of(member)
    install_admission(member, member.with_name("admission.json"), now=now())
    assert keys_of(member) == before


def test_one_rotation_at_a_time(member: Path) -> None:
    request_rotation(member, new_identity=False)
    before = keys_of(member)
    assert code_of(lambda: request_rotation(member, new_identity=True)) == "rotation-pending"
    assert keys_of(member) == before


def test_others_learn_of_a_rotation_without_any_telephone(authority: AuthorityHome, member: Path) -> None:
    health, enrolled = join(authority, "health")
    install_admission(health, answer(authority, health, enrolled), now=now())
    from clients.roster import approve_keys

    at, key = now() + dt.timedelta(hours=1), load_identity(member.with_name("identity.key")).public
    approve_keys(health, [fingerprint(key)], authority.roster, now=at)
    with open_journal(health) as journal:
        (approved,) = journal.entries(EntryKind.KEY)
    assert dt.datetime.fromisoformat(approved.time) == at  # whoever asks names the time
    asked = request_rotation(member, new_identity=True)
    rotate(authority, read_request(asked.request), now=now())
    states = {item.department: item.state for item in roster_view(health, authority.roster, now=now()).members}
    assert states == {"health": KeyState.APPROVED, "police": KeyState.ENDORSED}


def test_approving_from_a_file_makes_that_roster_count(authority: AuthorityHome, member: Path) -> None:
    from clients.roster import approve_keys

    older = member.with_name("older.msgpack")
    older.write_bytes(authority.roster.read_bytes())
    health, enrolled = join(authority, "health")
    answer(authority, health, enrolled)
    approve_keys(member, [enrolled.fingerprint], authority.roster, now=now())
    with open_journal(member) as journal:
        known = Memory(journal, now).roster
    assert known is not None
    assert known.serial == 2
    assert code_of(lambda: roster_view(member, older, now=now())) == "roster-rolled-back"


# --- the command -------------------------------------------------------------------------------------------


def test_the_commands_say_what_to_send_and_what_to_read_out(run: Run, authority: AuthorityHome, tmp_path: Path) -> None:
    home = tmp_path / "police"
    arguments = ["enrol", "police", "--home", home, "--city", authority.city, "--policy-owner", OWNER]
    ended = run(*arguments)
    assert (ended.code, ended.sentence.endswith("[fingerprint-unconfirmed]")) == (2, True)
    ended = run(*arguments, "--fingerprint", load_city(authority).fingerprint())
    assert ended.code == 0, ended.err
    identity = load_identity(home / "identity.key")
    assert str(home / REQUEST_FILE) in ended.out
    assert fingerprint(identity.public) in ended.out
    config = home / CONFIG_FILE
    file = answer(authority, config, Enrolled(home / REQUEST_FILE, fingerprint(identity.public)))
    assert run("admit", config, file).out == "Admitted to metropolis: 1 members on roster serial 1.\n"
    assert run("rotate", config, "--tls-only").code == 0
    ended = run("rotate", config)
    assert (ended.code, ended.sentence.endswith("[rotation-pending]")) == (2, True)
    assert f"hand {REQUEST_FILE} in again, and remove the file only if the city never saw the request" in ended.sentence
    ended = run("admit", config, tmp_path / "nowhere")
    assert (ended.code, ended.sentence.endswith("[file-missing]")) == (2, True)
