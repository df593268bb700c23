"""How a department joins a city and changes its keys: keys are made here, and private ones never leave (protocol 8).

Two private keys: the Ed25519 identity that signs protocol messages, and a P-256 key for TLS, which lies here twice
because Flower's SuperNode reads another format. What goes out is signed with the identity, so that one fingerprint,
compared over a second channel, stands for both.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from clients.config import ClientConfig, load_config, load_trust, open_journal, read_file, read_key
from clients.memory import Memory
from clients.records import KeyApproved
from shared import files
from shared.certificates import (
    TlsKey,
    certificate_pem,
    certified_key,
    check_certificate,
    load_certificate,
    load_tls_key,
    make_signing_request,
)
from shared.city import Admission, CityFile, EnrolmentRequest, read_city, require_fingerprint, sign_request
from shared.codec import MAX_FILE_BYTES, dump_json, load_json, load_toml
from shared.errors import ConfigError, ProtocolError
from shared.identity import DEPARTMENT_NAME, DepartmentId, IdentityKey, Roster, fingerprint
from shared.journal import EntryKind
from shared.keystore import load_identity, save_identity, save_private
from shared.private_files import make_private_folder, replace_private_file
from shared.roster import endorse_key, open_roster

CONFIG_FILE = "client.toml"
REQUEST_FILE = "enrolment-request.json"
CITY_FILE = "city.json"
NEXT = ".next"
"""Ending of a key file that waits for the city's answer to a rotation."""


@dataclass(frozen=True)
class Enrolled:
    """What a department shows after it made its keys: the file to send, and the fingerprint to read out."""

    request: Path
    fingerprint: str


def enrol(
    home: Path, department: str, *, city_file: Path, city_fingerprint: str | None, policy_owner_key: str
) -> Enrolled:
    """Make a department's home: keys, configuration, and the request that goes to the authority.

    Args:
        home: made if it does not exist; a binding or policy may lie there already.
        department: the name on the roster.
        city_file: ``city.json`` as the authority handed it out.
        city_fingerprint: the city's fingerprint as the authority read it out.
        policy_owner_key: public key of whoever signs the policy, 64 hex digits.

    Raises:
        ConfigError: ``department-name``, ``home-exists``, ``key-file-exists``, ``key-malformed``, ``file-missing``,
            ``fingerprint-unconfirmed``, ``fingerprint-malformed``, or the city file is malformed.
        ProtocolError: ``fingerprint-mismatch``, ``certificate-malformed``.
        SetupError: ``home-not-writable``.
    """
    if not DEPARTMENT_NAME.fullmatch(department) or department == "authority":
        raise ConfigError("department-name", "A department's name is lower-case, such as `transport`.")
    if (home / CONFIG_FILE).exists():
        raise ConfigError("home-exists", f"{home / CONFIG_FILE} exists; a department is never overwritten.")
    city = read_city(files.read_file(city_file, max_bytes=MAX_FILE_BYTES), where=str(city_file))
    require_fingerprint(city_fingerprint, city.fingerprint(), whose=f"city {city.city}")
    identity, tls = IdentityKey.generate(), TlsKey.generate()
    config = _new_config(department, city, identity, policy_owner_key)
    read_key(policy_owner_key, "policy_owner_key")
    text = tomli_w.dumps(msgspec.to_builtins(config))
    load_toml(text, ClientConfig, where=str(city_file))  # it names the addresses, which no fingerprint covers
    make_private_folder(home)
    make_private_folder(home / config.plans)
    save_identity(home / config.identity, identity)
    save_private(home / config.tls_key, tls.pem())
    save_private(home / config.node_key, tls.openssh())
    replace_private_file(home / config.city_ca, certificate_pem(city.certificate()))
    replace_private_file(home / CITY_FILE, dump_json(city))
    enrolled = _write_request(home, _request(city, department, identity, tls), identity)
    replace_private_file(home / CONFIG_FILE, text.encode())  # last, and whole: it makes this a department's home
    return enrolled


def request_rotation(config_path: Path, *, new_identity: bool) -> Enrolled:
    """Make new keys beside the present ones, and the request for them; the present ones stay in use.

    Args:
        config_path: this department's ``client.toml``.
        new_identity: also exchange the identity, for which the present one vouches; otherwise only the TLS key.

    Raises:
        ConfigError: ``rotation-pending``; a file or key is missing or malformed.
        ProtocolError: ``certificate-malformed``.
    """
    config, home = load_config(config_path), config_path.parent
    if waiting := [path for path in _key_files(home, config) if _next(path).exists()]:
        raise ConfigError(
            "rotation-pending",
            f"{_next(waiting[0])} waits for the city's answer: install that; if it was lost, "
            f"hand {REQUEST_FILE} in again, and remove the file only if the city never saw the request.",
        )
    city = read_city(read_file(home / CITY_FILE), where=str(home / CITY_FILE))
    present, tls = load_identity(home / config.identity), TlsKey.generate()
    identity, endorsement = present, None
    if new_identity:
        identity = IdentityKey.generate()
        endorsement = endorse_key(present, city=city.city, department=config.department, key=identity.public)
        save_identity(_next(home / config.identity), identity)
    save_private(_next(home / config.tls_key), tls.pem())
    save_private(_next(home / config.node_key), tls.openssh())
    return _write_request(home, _request(city, config.department, identity, tls, endorsement), identity)


def install_admission(config_path: Path, file: Path, *, now: dt.datetime) -> Roster:
    """Install what the authority answered, after checking that it is for this department, its keys and its city.

    Installing the same answer again changes nothing, so a crash is mended by doing it once more.

    Raises:
        ConfigError: a file is missing or malformed.
        ProtocolError: ``admission-foreign``, ``certificate-malformed``, as
            :func:`shared.certificates.check_certificate` and :func:`shared.roster.open_roster`; ``not-on-roster``.
        JournalError: the journal is in use by a node, or does not verify.
    """
    config, home = load_config(config_path), config_path.parent
    admission = load_json(files.read_file(file, max_bytes=MAX_FILE_BYTES), Admission, where=str(file))
    if admission.department != config.department:
        raise ProtocolError("admission-foreign", f"{file} is the admission of another department.")
    certificate = load_certificate(admission.certificate.encode(), where=f"The certificate in {file}")
    authority = load_certificate(read_file(home / config.city_ca), where=str(home / config.city_ca))
    keys = {load_tls_key(path).public: path for path in _present(home, config.tls_key)}
    wanted = certified_key(certificate)
    expected = wanted if wanted in keys else next(iter(keys))
    check_certificate(certificate, authority=authority, now=now, where=f"The certificate in {file}", key=expected)
    identities = {load_identity(path).public: path for path in _present(home, config.identity)}
    with open_journal(config_path) as journal:
        memory = Memory(journal, lambda: now)
        roster = open_roster(admission.roster, roster_key=load_trust(config).roster_key, newest=memory.roster)
        own = roster.members.get(config.department, b"")
        if own not in identities:
            raise ProtocolError("not-on-roster", f"The roster in {file} does not list this department's own key.")
        memory.see_roster(admission.roster, roster)
        if _pinned(config, memory) != own:
            approved = KeyApproved(department=config.department, key=own, means="fingerprint")
            memory.write(EntryKind.KEY, approved)
    _take_over(identities[own], home / config.identity)
    _take_over(keys[wanted], home / config.tls_key)
    node_key = home / config.node_key
    if _next(node_key).exists() and not _next(home / config.tls_key).exists():
        _next(node_key).replace(node_key)
    replace_private_file(home / config.tls_certificate, certificate_pem(certificate))
    return roster


def _new_config(department: str, city: CityFile, identity: IdentityKey, policy_owner_key: str) -> ClientConfig:
    """Pin what was compared, and this department's own key; other members' keys are approved one by one."""
    return ClientConfig(
        department=department,
        roster_key=city.roster_key.hex(),
        authority_key=city.plan_key.hex(),
        policy_owner_key=policy_owner_key,
        members={department: identity.public.hex()},
        fleet=city.fleet,
        channel=city.channel,
        shelf=city.shelf,
    )


def _request(
    city: CityFile, department: str, identity: IdentityKey, tls: TlsKey, endorsement: bytes | None = None
) -> EnrolmentRequest:
    """Put a request together: public keys only."""
    return EnrolmentRequest(
        city=city.digest(),
        department=department,
        identity=identity.public,
        signing_request=make_signing_request(tls, city=city.city, department=department),
        endorsement=endorsement,
    )


def _write_request(home: Path, request: EnrolmentRequest, identity: IdentityKey) -> Enrolled:
    """Sign a request and write the file that goes out."""
    replace_private_file(home / REQUEST_FILE, dump_json(sign_request(identity, request)))
    return Enrolled(home / REQUEST_FILE, fingerprint(identity.public))


def _key_files(home: Path, config: ClientConfig) -> tuple[Path, ...]:
    """The files that a rotation exchanges."""
    return (home / config.identity, home / config.tls_key, home / config.node_key)


def _next(path: Path) -> Path:
    """Where a key waits."""
    return path.with_name(path.name + NEXT)


def _present(home: Path, name: str) -> list[Path]:
    """The key in use, and the one that waits, if there is one."""
    path = home / name
    return [path, _next(path)] if _next(path).exists() else [path]


def _take_over(source: Path, target: Path) -> None:
    """Put a key that waited in place of the old one."""
    if source != target:
        source.replace(target)


def _pinned(config: ClientConfig, memory: Memory) -> bytes:
    """This department's own key as it was approved here."""
    return memory.keys.get(DepartmentId(config.department), bytes.fromhex(config.members[config.department]))
