"""A city is founded once, and everything in its home is judged whenever it is read."""

from __future__ import annotations

import datetime as dt
import json
import os
import stat
from pathlib import Path
from threading import Thread

import pytest

from server.ca import CA_LIFETIME, LEAF_LIFETIME
from server.city import (
    RENEWAL_LOCK,
    load_authority,
    load_city,
    load_plan_key,
    load_roster_key,
    load_server_tls,
    renew_server,
)
from server.config import load_server, new_config, split_address
from server.home import AuthorityHome
from shared.certificates import load_certificate
from shared.errors import CityFedError
from shared.identity import IdentityKey, fingerprint
from shared.keystore import save_identity
from shared.private_files import holding_lock
from tests.command_line import Run
from tests.deployed_city import found, now
from tests.durable_names import names_durably

PRIVATE = ("keys/roster.key", "keys/plan.key", "ca/ca.key", "tls/server.key", "superexec.secret")


@pytest.fixture
def home(tmp_path: Path) -> AuthorityHome:
    return found(tmp_path)


def code_of(error: pytest.ExceptionInfo[CityFedError]) -> str:
    return error.value.code


def test_only_the_owner_can_enter_a_city_or_read_its_keys(home: AuthorityHome) -> None:
    assert stat.S_IMODE(home.root.stat().st_mode) & 0o077 == 0
    for name in PRIVATE:
        assert stat.S_IMODE((home.root / name).stat().st_mode) == 0o600, name


def test_the_public_file_holds_no_private_key(home: AuthorityHome) -> None:
    public = home.city.read_bytes()
    for name in PRIVATE:
        secret = (home.root / name).read_bytes()
        assert secret not in public
        assert secret.hex().encode() not in public


def test_what_was_founded_is_loaded_again(home: AuthorityHome) -> None:
    city = load_city(home)
    assert load_plan_key(home).public == city.plan_key
    assert load_roster_key(home).public == city.roster_key
    assert load_authority(home, now=now()).city == city.city == "metropolis"
    assert load_server_tls(home, now=now()).authority == home.ca_certificate.read_bytes()
    assert load_server(home).fleet == city.fleet == "127.0.0.1:9443"


def test_the_fingerprint_covers_keys_and_ca_but_not_addresses(home: AuthorityHome, tmp_path: Path) -> None:
    from msgspec.structs import replace

    city = load_city(home)
    other = load_city(found(tmp_path / "other"))
    for name in ("ca_certificate", "roster_key", "plan_key"):
        assert replace(city, **{name: getattr(other, name)}).fingerprint() != city.fingerprint(), name
    assert replace(city, city="gotham").fingerprint() != city.fingerprint()
    assert replace(city, fleet="elsewhere:1", channel="elsewhere:2").fingerprint() == city.fingerprint()


def test_a_city_is_never_founded_over_another(home: AuthorityHome) -> None:
    before = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}
    with pytest.raises(CityFedError) as caught:
        found(home.root.parent)
    assert code_of(caught) == "home-exists"
    assert {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()} == before


def test_a_city_is_founded_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "authority").mkdir()
    assert load_city(found(tmp_path)).city == "metropolis"


def test_a_city_that_was_founded_is_there_after_a_power_cut(tmp_path: Path) -> None:
    assert names_durably(lambda: found(tmp_path), os.rename)


def test_a_city_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CityFedError) as caught:
        found(tmp_path, hosts=("not a host",))
    assert code_of(caught) == "host-malformed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [("keys", "plan.key"), ("keys", "roster.key")])
def test_another_citys_key_is_refused(home: AuthorityHome, path: tuple[str, str]) -> None:
    file = home.root.joinpath(*path)
    file.unlink()
    save_identity(file, IdentityKey.generate())
    with pytest.raises(CityFedError) as caught:
        (load_plan_key if path[1] == "plan.key" else load_roster_key)(home)
    assert code_of(caught) == "key-foreign"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_key_that_others_can_read_is_refused(home: AuthorityHome, mode: int) -> None:
    for path in (home.plan_key, home.ca_key, home.server_key):
        path.chmod(mode)
    for load in (
        lambda: load_plan_key(home),
        lambda: load_authority(home, now=now()),
        lambda: load_server_tls(home, now=now()),
    ):
        with pytest.raises(CityFedError) as caught:
            load()
        assert code_of(caught) == "key-file-open"


def test_nothing_is_certified_by_a_ca_that_has_ended_or_whose_key_is_another_one(home: AuthorityHome) -> None:
    later = now() + CA_LIFETIME + dt.timedelta(days=1)
    with pytest.raises(CityFedError) as caught:
        load_authority(home, now=later)
    assert code_of(caught) == "certificate-expired"
    home.ca_key.write_bytes(home.server_key.read_bytes())
    with pytest.raises(CityFedError) as caught:
        load_authority(home, now=now())
    assert code_of(caught) == "certificate-foreign-key"


def test_the_servers_certificate_is_renewed_after_it_expired(home: AuthorityHome) -> None:
    later = now() + LEAF_LIFETIME + dt.timedelta(days=1)
    with pytest.raises(CityFedError) as caught:
        load_server_tls(home, now=later)
    assert code_of(caught) == "certificate-expired"
    old = home.server_key.read_bytes()
    renew_server(home, now=later)
    assert load_server_tls(home, now=later).key != old
    certificate = load_certificate(home.server_certificate.read_bytes(), where="server.crt")
    assert certificate.not_valid_before_utc < later


def test_of_two_renewals_at_once_one_waits_for_the_other(home: AuthorityHome) -> None:
    """Or the key would be one's and the certificate the other's."""
    before, renewal = home.server_key.read_bytes(), Thread(target=lambda: renew_server(home, now=now()))
    with holding_lock(home.server_key.with_name(RENEWAL_LOCK)):
        renewal.start()
        renewal.join(0.5)
        assert home.server_key.read_bytes() == before
    renewal.join()
    assert home.server_key.read_bytes() != before
    load_server_tls(home, now=now())


def test_a_host_that_the_city_was_not_founded_with_needs_another_city(home: AuthorityHome) -> None:
    text = home.config.read_text()
    home.config.write_text(text.replace('"localhost"', '"fl.example.org"'))
    with pytest.raises(CityFedError) as caught:
        renew_server(home, now=now())
    assert code_of(caught) == "host-foreign"


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:65536", "host:x", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_addresses_are_split(home: AuthorityHome) -> None:
    assert split_address("fl.example.org:9443") == ("fl.example.org", 9443)
    made = new_config("m", ["::1"], listen=None, fleet_port=1, channel_port=2, shelf_port=3)
    assert (split_address(made.channel), split_address(made.shelf)) == (("::1", 2), ("::1", 3))
    assert made.listening(made.shelf) == "[::1]:3"


# --- the command -------------------------------------------------------------------------------------------


def test_init_prints_the_fingerprints_that_people_compare(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "authority"
    ended = run("city", "init", "metropolis", "--home", home, "--host", "fl.example.org", "--host", "192.0.2.7")
    assert ended.code == 0, ended.err
    city = load_city(AuthorityHome(home))
    assert city.fingerprint() in ended.out
    shown = json.loads(run("city", "show", "--home", home, "--json").out)
    assert shown["fingerprint"] == city.fingerprint()
    assert (shown["plan_key"], shown["roster_key"]) == (fingerprint(city.plan_key), fingerprint(city.roster_key))
    assert (shown["serial"], shown["members"]) == (0, [])
    assert shown["fleet"] == "fl.example.org:9443"
    assert load_server(AuthorityHome(home)).listen == "fl.example.org"
    assert run("city", "renew", "--home", home).code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["Metropolis", "--host", "a"], "city-name"),
        (["metropolis", "--host", "a b"], "host-malformed"),
        (["metropolis", "--host", ""], "host-malformed"),
        (["metropolis", "--host", "a", "--fleet-port", "0"], "port-range"),
    ],
)
def test_init_refuses_what_no_city_can_be_made_of(run: Run, tmp_path: Path, arguments: list[str], code: str) -> None:
    ended = run("city", "init", *arguments, "--home", tmp_path / "authority")
    assert (ended.code, ended.sentence.endswith(f"[{code}]")) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["city", "show"], ["city", "renew"], ["city", "remove", "police"], ["plan", "draft", "emergency-triage", "x"]],
)
def test_without_a_city_every_command_says_so(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    ended = run(*arguments, "--home", tmp_path)
    assert ended.code == 2
    assert ended.sentence.endswith(("[city-missing]", "[roster-missing]"))
