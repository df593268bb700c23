"""``cityfed-server city``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import HomeOption, JsonOption
from server.home import DEFAULT_HOME
from shared.cli import new_app, print_json, print_lines

app = new_app("Found a city; admit departments, rotate their keys, remove them.")

RequestArgument = Annotated[Path, typer.Argument(help="The enrolment-request.json.", metavar="REQUEST")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The answer; default DEPARTMENT-admission.json.", metavar="FILE")
]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The city's name, lower-case.", metavar="NAME")],
    hosts: Annotated[
        list[str], typer.Option("--host", help="A name or address that departments dial; may be repeated.")
    ],
    *,
    home: HomeOption = Path(DEFAULT_HOME),
    listen: Annotated[
        str | None, typer.Option("--listen", help="Address to listen on; default the first host.")
    ] = None,
    fleet_port: Annotated[int, typer.Option("--fleet-port", help="Port of the Flower gateway.", metavar="PORT")] = 9443,
    channel_port: Annotated[
        int, typer.Option("--channel-port", help="Port of the update channel.", metavar="PORT")
    ] = 9444,
    shelf_port: Annotated[int, typer.Option("--shelf-port", help="Port of the shelf.", metavar="PORT")] = 9445,
) -> None:
    """Make the city's keys, CA, server certificate and city.json; nothing is ever overwritten."""
    from server.city import found_city
    from server.config import new_config
    from server.home import AuthorityHome
    from server.roster import view_city, view_lines

    authority = AuthorityHome(home)
    config = new_config(
        name, hosts, listen=listen, fleet_port=fleet_port, channel_port=channel_port, shelf_port=shelf_port
    )
    found_city(authority, config, now=dt.datetime.now(dt.UTC))
    print_lines([*view_lines(view_city(authority)), f"Hand out {authority.city}, and read the city's fingerprint out."])


@app.command()
def show(*, home: HomeOption = Path(DEFAULT_HOME), as_json: JsonOption = False) -> None:
    """Print fingerprints, addresses, every member with the last day of its certificate, and what ends soon."""
    from server.expiry import city_warnings
    from server.home import AuthorityHome
    from server.roster import view_city, view_lines

    authority = AuthorityHome(home)
    view = view_city(authority, warnings=city_warnings(authority, now=dt.datetime.now(dt.UTC)))
    if as_json:
        print_json(view)
    else:
        print_lines(view_lines(view))


@app.command()
def admit(
    request: RequestArgument,
    *,
    home: HomeOption = Path(DEFAULT_HOME),
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="As the department read it out to you.")
    ] = None,
    out: OutOption = None,
) -> None:
    """Issue a department's certificate and a roster that lists it; compare the fingerprint by telephone first."""
    from server.home import AuthorityHome
    from server.roster import admit as admit_request
    from server.roster import read_request, write_admission

    signed, now = read_request(request), dt.datetime.now(dt.UTC)
    admission = admit_request(AuthorityHome(home), signed, fingerprint_typed=fingerprint, now=now)
    print_lines([write_admission(admission, out)])


@app.command()
def rotate(request: RequestArgument, *, home: HomeOption = Path(DEFAULT_HOME), out: OutOption = None) -> None:
    """Renew a member's certificate; exchange its identity if the old key vouches for the new one."""
    from server.home import AuthorityHome
    from server.roster import read_request, write_admission
    from server.roster import rotate as rotate_keys

    signed, now = read_request(request), dt.datetime.now(dt.UTC)
    print_lines([write_admission(rotate_keys(AuthorityHome(home), signed, now=now), out)])


@app.command()
def remove(
    department: Annotated[str, typer.Argument(help="A member.", metavar="DEPARTMENT")],
    *,
    home: HomeOption = Path(DEFAULT_HOME),
) -> None:
    """Remove a member at once: the next roster lacks it, and its certificate counts no more."""
    from server.home import AuthorityHome
    from server.roster import remove as remove_member

    roster = remove_member(AuthorityHome(home), department, now=dt.datetime.now(dt.UTC))
    print_lines([f"{department} is out from roster serial {roster.serial} on."])


@app.command()
def renew(*, home: HomeOption = Path(DEFAULT_HOME)) -> None:
    """Issue a new certificate for the authority's own server, for the hosts in server.toml."""
    from server.city import renew_server
    from server.home import AuthorityHome

    renew_server(AuthorityHome(home), now=dt.datetime.now(dt.UTC))
    print_lines(["The server has a new key and certificate: restart what listens."])
