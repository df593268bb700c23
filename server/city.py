"""Found a city: its keys, its CA, the authority's certificate, and the file that every department is given."""

from __future__ import annotations

import datetime as dt
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tomli_w

from server.ca import CertificateAuthority, found_authority
from server.config import ServerConfig, load_server
from server.home import AuthorityHome
from shared.certificates import (
    TlsFiles,
    TlsKey,
    certificate_pem,
    check_certificate,
    load_tls_files,
    load_tls_key,
)
from shared.city import CityFile, read_city
from shared.codec import dump_json
from shared.errors import ConfigError, SetupError
from shared.identity import IdentityKey
from shared.keystore import load_identity, save_identity, save_private
from shared.private_files import holding_lock, make_private_folder, replace_private_file, sync_file, write_private_file

SECRET_BYTES = 32

RENEWAL_LOCK = ".renewal"
"""Beside the server's key: whoever exchanges it and its certificate holds the lock of this file."""


def found_city(home: AuthorityHome, config: ServerConfig, *, now: dt.datetime) -> CityFile:
    """Make a new city; everything is made in a folder beside and put in place by one rename.

    Args:
        home: where; the folder must not exist, or be empty.
        config: names and addresses.
        now: the present time, UTC.

    Returns:
        What departments are given.

    Raises:
        ConfigError: ``home-exists``, ``host-malformed``.
        OSError: the folder cannot be made.
    """
    if home.root.is_dir() and any(home.root.iterdir()):
        raise ConfigError("home-exists", f"{home.root} is not empty; a city is never overwritten.")
    parent = home.root.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{home.root.name}.") as scratch:
        stage = AuthorityHome(Path(scratch) / "stage")
        city = _make_keys(stage, config, now=now)
        stage.root.rename(home.root)
        sync_file(parent)
    return city


def _make_keys(home: AuthorityHome, config: ServerConfig, *, now: dt.datetime) -> CityFile:
    """Write every file of a new city."""
    make_private_folder(home.root)
    for folder in ("keys", "ca", "tls", "members", "plans", "models", "released", "runs", "spool"):
        make_private_folder(home.root / folder)
    roster_key, plan_key, ca_key = IdentityKey.generate(), IdentityKey.generate(), TlsKey.generate()
    authority = found_authority(config.city, ca_key, config.hosts, now=now)
    save_identity(home.roster_key, roster_key)
    save_identity(home.plan_key, plan_key)
    save_private(home.ca_key, ca_key.pem())
    save_private(home.superexec_secret, secrets.token_hex(SECRET_BYTES).encode())
    write_private_file(home.ca_certificate, certificate_pem(authority.certificate))
    _issue_server(home, config.hosts, authority, now=now)
    city = CityFile(
        city=config.city,
        ca_certificate=certificate_pem(authority.certificate).decode(),
        roster_key=roster_key.public,
        plan_key=plan_key.public,
        fleet=config.fleet,
        channel=config.channel,
        shelf=config.shelf,
    )
    write_private_file(home.city, dump_json(city))
    write_private_file(home.config, tomli_w.dumps(msgspec.to_builtins(config)).encode())
    return city


def renew_server(home: AuthorityHome, *, now: dt.datetime) -> None:
    """Make a new TLS key for the authority's own server and issue its certificate for the configured hosts.

    Raises:
        ConfigError: ``host-foreign`` for a host name that the city was not founded with; ``host-malformed``, or a file
            is not in order.
        ProtocolError: as :func:`load_authority`.
        SetupError: ``home-not-writable``.
    """
    hosts, authority = load_server(home).hosts, load_authority(home, now=now)
    lock = home.server_key.with_name(RENEWAL_LOCK)
    with holding_lock(lock, wait=True) as held:  # of two, one's key and certificate stay
        if not held:
            raise SetupError("home-not-writable", f"{lock} cannot be locked.")
        _issue_server(home, hosts, authority, now=now)


def _issue_server(
    home: AuthorityHome, hosts: Sequence[str], authority: CertificateAuthority, *, now: dt.datetime
) -> None:
    """Write key and certificate of the server."""
    key = TlsKey.generate()
    certificate = authority.issue_server(key.private.public_key(), hosts, now=now)
    replace_private_file(home.server_key, key.pem())
    replace_private_file(home.server_certificate, certificate_pem(certificate))


def load_city(home: AuthorityHome) -> CityFile:
    """Read what departments were given.

    Raises:
        ConfigError: ``city-missing``, ``json-too-large``, ``json-content``.
        ProtocolError: ``certificate-malformed``.
    """
    try:
        data = home.city.read_bytes()
    except OSError as cause:
        raise ConfigError(
            "city-missing", f"{home.city} cannot be read: found the city with `cityfed-server city init`."
        ) from cause
    return read_city(data, where=str(home.city))


def load_plan_key(home: AuthorityHome) -> IdentityKey:
    """Read the key that signs plans and accounts of rounds.

    Raises:
        ConfigError: as :func:`load_city`; ``key-file-missing``, ``key-file-open``, ``key-malformed``, ``key-foreign``.
    """
    return _own_key(home.plan_key, load_city(home).plan_key)


def load_roster_key(home: AuthorityHome) -> IdentityKey:
    """Read the key that signs rosters.

    Raises:
        ConfigError: as :func:`load_plan_key`.
    """
    return _own_key(home.roster_key, load_city(home).roster_key)


def load_authority(home: AuthorityHome, *, now: dt.datetime) -> CertificateAuthority:
    """Read the city's CA, ready to issue.

    Raises:
        ConfigError: as :func:`load_city`; ``key-file-missing``, ``key-file-open``, ``key-malformed``.
        ProtocolError: as :func:`shared.certificates.check_certificate`.
    """
    city = load_city(home)
    certificate = city.certificate()
    key = load_tls_key(home.ca_key)
    check_certificate(certificate, authority=certificate, now=now, where="The city's CA certificate", key=key.public)
    return CertificateAuthority(city.city, key, certificate)


def load_server_tls(home: AuthorityHome, *, now: dt.datetime) -> TlsFiles:
    """Read what gateway, update channel and shelf present.

    Raises:
        ConfigError: as :func:`shared.certificates.load_tls_files`.
        ProtocolError: as :func:`shared.certificates.load_tls_files`.
    """
    return load_tls_files(home.server_key, home.server_certificate, home.ca_certificate, now=now)


def _own_key(path: Path, public: bytes) -> IdentityKey:
    """Read a key and refuse another city's."""
    key = load_identity(path)
    if key.public != public:
        raise ConfigError("key-foreign", f"{path} is not the key that city.json names: it is another city's.")
    return key
