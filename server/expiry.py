"""When the certificates of a city end: the authority's own, the city's, and its members'."""

from __future__ import annotations

import datetime as dt

from server.city import load_city, load_server_tls
from server.home import AuthorityHome
from server.roster import load_members, member_certificate
from shared.certificates import load_certificate
from shared.expiry import Expiry, expiry_warnings
from shared.files import read_file


def own_expiries(home: AuthorityHome, now: dt.datetime) -> tuple[Expiry, ...]:
    """Return when the authority's own certificates end, if they can be used now.

    Raises:
        ConfigError: as :func:`server.city.load_server_tls`.
        ProtocolError: as :func:`server.city.load_server_tls`; ``certificate-expired`` and the like.
    """
    load_server_tls(home, now=now)
    return _own(home)


def city_warnings(home: AuthorityHome, *, now: dt.datetime) -> tuple[str, ...]:
    """Return a sentence for every certificate of the city that nears its end or has ended.

    Raises:
        ConfigError: ``city-missing``, ``file-missing``.
        ProtocolError: a file does not verify.
    """
    names = load_members(home).roster.ordered() if home.roster.exists() else ()
    members = (
        Expiry(
            whose=str(name),
            until=member_certificate(home, name).not_valid_after_utc,
            renew="there `cityfed-client rotate --tls-only`, here `cityfed-server city rotate`",
        )
        for name in names
    )
    return expiry_warnings((*_own(home), *members), now=now)


def _own(home: AuthorityHome) -> tuple[Expiry, ...]:
    """Return when the server's certificate and the city's CA end."""
    city = load_city(home).certificate()
    server = load_certificate(read_file(home.server_certificate), where=str(home.server_certificate))
    return (
        Expiry(
            whose="the server", until=server.not_valid_after_utc, renew="`cityfed-server city renew`, then `up` again"
        ),
        Expiry(whose="the city's CA", until=city.not_valid_after_utc, renew="found a new city"),
    )
