"""``cityfed-client enrol``, ``admit`` and ``rotate``: they belong to no group."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.commands.options import ConfigArgument
from shared.cli import print_lines

if TYPE_CHECKING:
    from clients.enrol import Enrolled


_SEND = "Send {} to the authority; it holds public keys only."


def mount(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command()(enrol)
    app.command()(admit)
    app.command()(rotate)


def enrol(
    department: Annotated[str, typer.Argument(help="The name on the roster, lower-case.", metavar="DEPARTMENT")],
    *,
    city: Annotated[Path, typer.Option("--city", help="The city.json that the authority handed out.", metavar="FILE")],
    policy_owner: Annotated[
        str, typer.Option("--policy-owner", help="Public key of who signs the policy.", metavar="HEX")
    ],
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="The city's, as the authority read it out.")
    ] = None,
    home: Annotated[Path | None, typer.Option("--home", help="The folder to make; default DEPARTMENT.")] = None,
) -> None:
    """Make this department's keys and configuration, and the request that goes to the authority."""
    from clients.enrol import enrol as make_home

    folder = home or Path(department)
    enrolled = make_home(
        folder, department, city_file=city, city_fingerprint=fingerprint, policy_owner_key=policy_owner
    )
    print_lines(_request_lines(enrolled))


def admit(
    config: ConfigArgument,
    file: Annotated[Path, typer.Argument(help="The authority's answer.", metavar="ADMISSION")],
) -> None:
    """Install the certificate and roster that the authority answered with; doing it twice is harmless."""
    from clients.enrol import install_admission

    roster = install_admission(config, file, now=dt.datetime.now(dt.UTC))
    print_lines([f"Admitted to {roster.city}: {len(roster.members)} members on roster serial {roster.serial}."])


def rotate(
    config: ConfigArgument,
    *,
    tls_only: Annotated[bool, typer.Option("--tls-only", help="Renew the certificate; keep the identity key.")] = False,
) -> None:
    """Make new keys, vouched for by the present ones, and the request for them; the present ones stay in use."""
    from clients.enrol import request_rotation

    made = request_rotation(config, new_identity=not tls_only)
    same = "The identity key stays" if tls_only else "The present key vouches for the new one"
    print_lines([_SEND.format(made.request), f"{same}, so nobody has to telephone: {made.fingerprint}"])


def _request_lines(enrolled: Enrolled) -> list[str]:
    """Say what to send and what to read out."""
    return [
        _SEND.format(enrolled.request),
        f"Read out by telephone, to the authority and to the other departments: {enrolled.fingerprint}",
    ]
