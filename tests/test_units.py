"""The systemd units: accepted by systemd's own checks, and in step with the commands and key files of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
import typer

import clients.cli
import server.cli
from clients.config import ClientConfig, load_config, load_department, load_tls
from clients.up import supernode_command
from server.home import AuthorityHome
from shared.errors import ConfigError
from shared.flower import environment
from tests.deployed_city import deploy_city, now

UNITS = Path(__file__).parents[1] / "deploy" / "systemd"
NAMES = ("cityfed-authority.service", "cityfed-department@.service")
INSTALLED = "/opt/cityfed/bin/"
MOST_EXPOSED = 20  # tenths; systemd calls everything up to 4.5 ok or better

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)


def settings(name: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", (UNITS / name).read_text(), re.MULTILINE)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they are, but for the folder of the commands: systemd asks whether they are there."""
    (tmp_path / "bin").mkdir()
    for command in ("cityfed-server", "cityfed-client"):
        (tmp_path / "bin" / command).symlink_to("/bin/true")
    for name in NAMES:
        (tmp_path / name).write_text((UNITS / name).read_text().replace(INSTALLED, f"{tmp_path}/bin/"))
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_wrong_with_a_unit(installed: Path, name: str) -> None:
    verified = analyze("verify", "--man=no", installed / name)
    assert (verified.returncode, verified.stderr) == (0, "")
    (installed / name).write_text((installed / name).read_text().replace("ProtectSystem=strict", "ProtectSystem=some"))
    assert "protect system" in analyze("verify", "--man=no", installed / name).stderr


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_hardly_exposed(installed: Path, name: str) -> None:
    judged = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", installed / name)
    assert (judged.returncode, judged.stderr) == (0, ""), judged.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_started_again_for_as_long_as_it_takes(name: str) -> None:
    assert settings(name, "StartLimitIntervalSec") == ["0"]
    assert settings(name, "Restart") == ["on-failure"]


def test_every_home_has_an_account_of_its_own_and_lies_in_no_other_home() -> None:
    for name, own in zip(NAMES, ("authority", "%i"), strict=True):
        assert settings(name, "User") == settings(name, "Group") == [f"cityfed-{own}"]
        assert settings(name, "StateDirectory") == [f"cityfed/{own}"]
        assert settings(name, "StateDirectoryMode") == ["0700"]
        (start,) = settings(name, "ExecStart")
        assert f" /var/lib/cityfed/{own}" in start


@pytest.mark.parametrize(("name", "app"), [(NAMES[0], server.cli.app), (NAMES[1], clients.cli.app)])
def test_a_unit_starts_a_command_that_exists(name: str, app: typer.Typer) -> None:
    (line,) = settings(name, "ExecStart")
    program, command, *_ = line.removeprefix(INSTALLED).split()
    assert program in {"cityfed-server", "cityfed-client"}
    assert command in {item.name or item.callback.__name__ for item in app.registered_commands if item.callback}


def test_the_operations_page_runs_commands_and_makes_accounts_as_the_units_do() -> None:
    """Its department is transport; a command that runs as another account, or without a key, works for nobody."""
    page = (UNITS.parents[1] / "docs" / "operations.md").read_text()
    accounts = dict(zip(NAMES, ("cityfed-authority", "cityfed-transport"), strict=True))
    for name, account in accounts.items():
        assert settings(name, "User")[0].replace("%i", "transport") == account
        assert f"`{account}`" in page
    assert re.findall(r"^useradd .* (\S+)$", page, re.MULTILINE) == [accounts[NAMES[0]]]
    assert set(re.findall(r"--[ug]id=(\S+)", page)) == {accounts[NAMES[1]]}
    keys = {item.replace("%i", "transport") for item in settings(NAMES[1], "LoadCredential")}
    assert set(re.findall(r"-p LoadCredential=(\S+)", page)) == keys


def test_credentials_have_the_names_under_which_keys_are_looked_for(tmp_path: Path) -> None:
    home = AuthorityHome(tmp_path)
    defaults = {field.name: field.default for field in msgspec.structs.fields(ClientConfig)}
    expected = (
        {home.server_key.name, home.plan_key.name},
        {defaults[key] for key in ("identity", "tls_key", "node_key")},
    )
    for name, keys in zip(NAMES, expected, strict=True):
        assert {item.partition(":")[0] for item in settings(name, "LoadCredential")} == keys


def test_a_department_whose_keys_are_credentials_is_in_order_and_so_is_what_up_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under the unit: private keys lie in the credentials folder only, with the mode that systemd gives them."""
    city = deploy_city(tmp_path / "city", ("health", "police"))
    config, credentials = city.config("health"), tmp_path / "credentials"
    credentials.mkdir()
    for item in settings(NAMES[1], "LoadCredential"):
        name = item.partition(":")[0]
        (city.home("health") / name).rename(credentials / name)
        (credentials / name).chmod(0o440)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_department(config)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert load_department(config).name == "health"
    load_tls(config, load_config(config), now=now())
    command = supernode_command(config.parent, load_config(config), "127.0.0.1:1", tmp_path / "secret")
    assert str(credentials / "node.key") in command
    assert environment(os.environ, tmp_path)["CREDENTIALS_DIRECTORY"] == str(credentials)


@pytest.mark.parametrize("name", NAMES)
def test_callers_who_only_hold_connections_do_not_use_up_a_units_descriptors(name: str) -> None:
    """Without a line of its own a unit gets systemd's soft limit of 1024."""
    (limit,) = settings(name, "LimitNOFILE")
    assert int(limit) >= 1 << 16
