"""The authority is told of every certificate of its city that nears its end, and does not run with one of its own."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from server.ca import LEAF_LIFETIME
from server.expiry import city_warnings, own_expiries
from server.overview import overview, overview_lines
from server.roster import view_city, view_lines
from shared.errors import ProtocolError
from shared.expiry import WARN_DAYS
from tests.deployed_city import DeployedCity, deploy_city, found, now

DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> DeployedCity:
    return deploy_city(tmp_path_factory.mktemp("expiry"), ("health", "police"))


def test_nobody_is_warned_early_and_everybody_is_named_late(city: DeployedCity) -> None:
    early, late = (now() + LEAF_LIFETIME - (WARN_DAYS + days) * DAY for days in (1, -1))
    assert city_warnings(city.authority, now=early) == ()
    warnings = city_warnings(city.authority, now=late)
    assert [warning.partition(" expires")[0] for warning in warnings] == [
        f"The certificate of {whose}" for whose in ("the server", "health", "police")
    ]
    assert "`cityfed-server city renew`" in warnings[0]
    assert "`cityfed-client rotate --tls-only`" in warnings[1]


def test_warnings_are_shown_to_people(city: DeployedCity) -> None:
    warnings = ("The certificate of the server expires.",)
    assert view_lines(view_city(city.authority, warnings=warnings))[-1:] == list(warnings)
    assert set(warnings) < set(overview_lines(overview(city.authority, "", warnings=warnings)))


def test_the_authoritys_own_certificates_are_judged_by_the_present_time(city: DeployedCity) -> None:
    assert [item.whose for item in own_expiries(city.authority, now())] == ["the server", "the city's CA"]
    for when, code in ((LEAF_LIFETIME + DAY, "certificate-expired"), (-2 * DAY, "certificate-not-yet-valid")):
        with pytest.raises(ProtocolError) as caught:
            own_expiries(city.authority, now() + when)
        assert caught.value.code == code


def test_a_city_without_members_is_warned_of_its_own_certificates(tmp_path: Path) -> None:
    alone = found(tmp_path)
    warnings = city_warnings(alone, now=now() + LEAF_LIFETIME)
    assert len(warnings) == 1
