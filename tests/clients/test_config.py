"""A department's configuration: strict, relative to its file, everything checked when a node loads it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from clients.binding import declaration_path
from clients.config import load_config, load_department, open_journal
from clients.data_check import bind_data, check_data
from shared.errors import CityFedError
from shared.identity import DepartmentId
from tests.clients.small_department import Office, found_office
from tests.refusals import code_of

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return found_office(tmp_path / "police")


@pytest.fixture
def bound(office: Office) -> Office:
    bind_data(office.config, now=NOW)
    return office


def test_a_bound_department_loads_with_everything_in_its_own_folder(bound: Office) -> None:
    department = load_department(bound.config)
    assert department.name == "police"
    assert department.trust.pins == {DepartmentId("police"): department.identity.public}
    assert department.binding_path == bound.binding
    assert department.stop_file == bound.folder / "stopped"
    assert (department.weights, department.feature_cache) == (None, None)
    assert department.declaration.judged_by == department.policy.digest.hex()
    with open_journal(bound.config) as journal:
        assert journal.path == bound.journal
        assert journal.owner == "police"


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"colour": "red"}, "toml-content", "`colour`"),
        ({"members": "all"}, "toml-content", "`.members`"),
        ({"department": "Police Station"}, "toml-content", "`department`"),
        ({"performance": {"device": "tpu"}}, "toml-content", "`.performance.device`"),
    ],
)
def test_a_wrong_setting_is_named(office: Office, change: dict[str, object], code: str, named: str) -> None:
    office.edit_config(**change)
    with pytest.raises(CityFedError) as caught:
        load_config(office.config)
    assert caught.value.code == code
    assert named in caught.value.message


def test_a_missing_or_broken_configuration_is_one_sentence(office: Office) -> None:
    assert code_of(lambda: load_config(office.folder / "nowhere.toml")) == "file-missing"
    office.config.write_bytes(b"department = \xff\n")
    assert code_of(lambda: load_config(office.config)) == "toml-syntax"


@pytest.mark.parametrize("setting", ["roster_key", "authority_key", "policy_owner_key"])
@pytest.mark.parametrize("value", ["", "ab", "zz" * 32, "ab" * 33])
def test_a_key_that_is_none_is_named(bound: Office, setting: str, value: str) -> None:
    bound.edit_config(**{setting: value})
    with pytest.raises(CityFedError) as caught:
        load_department(bound.config)
    assert caught.value.code == "key-malformed"
    assert setting in caught.value.message


def test_a_members_key_that_is_none_is_named(bound: Office) -> None:
    bound.edit_config(members={"health": "00"})
    with pytest.raises(CityFedError) as caught:
        load_department(bound.config)
    assert "members.health" in caught.value.message


def test_p4_a_policy_changed_after_it_was_signed_is_refused(bound: Office) -> None:
    path = bound.folder / "policy.toml"
    path.write_text(path.read_text().replace("epsilon_per_run = 3.0", "epsilon_per_run = 9.0"))
    assert code_of(lambda: load_department(bound.config)) == "policy-unsigned"


def test_p4_data_that_was_not_judged_by_the_policy_is_not_used(office: Office) -> None:
    assert code_of(lambda: load_department(office.config)) == "declaration-missing"
    check_data(office.binding, now=NOW)
    assert code_of(lambda: load_department(office.config)) == "declaration-unjudged"
    bind_data(office.config, now=NOW)
    load_department(office.config)


def test_p4_data_judged_under_another_policy_is_not_used(bound: Office, tmp_path: Path) -> None:
    other = found_office(tmp_path / "other", policy=lambda text: text.replace("max_rounds = 400", "max_rounds = 50"))
    bind_data(other.config, now=NOW)
    declaration_path(bound.binding).write_bytes(declaration_path(other.binding).read_bytes())
    assert code_of(lambda: load_department(bound.config)) == "declaration-unjudged"


@pytest.mark.parametrize("name", ["policy.toml", "policy.sig"])
def test_a_missing_file_is_named(bound: Office, name: str) -> None:
    (bound.folder / name).unlink()
    with pytest.raises(CityFedError) as caught:
        load_department(bound.config)
    assert caught.value.code == "file-missing"
    assert name in caught.value.message
