"""``cityfed-client roster``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import new_app, print_json, print_lines

app = new_app("Look at the city's roster; approve members' keys.")


@app.command("show")
def roster_show(
    config: ConfigArgument,
    roster: Annotated[
        Path | None, typer.Argument(help="A signed roster; without it, the newest one shown.", metavar="ROSTERFILE")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Print every member's key by fingerprint and whether it counts here; without a file, of the newest roster seen."""
    from clients.roster import roster_lines, roster_view

    view = roster_view(config, roster, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(view)
    else:
        print_lines(roster_lines(view))


@app.command("fetch")
def roster_fetch(config: ConfigArgument, *, as_json: JsonOption = False) -> None:
    """Fetch the newest roster from the authority's shelf, and print it as `show` does; no key is approved by that."""
    from clients.roster import roster_lines
    from clients.shelf import ROSTER_FILE, fetch_roster

    view = fetch_roster(config, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(view)
    else:
        print_lines([*roster_lines(view), f"It lies in {config.parent / ROSTER_FILE}."])


@app.command("approve")
def roster_approve(
    config: ConfigArgument,
    fingerprints: Annotated[
        list[str], typer.Argument(help="As the key's owner read it out to you.", metavar="FINGERPRINT...")
    ],
    *,
    roster: Annotated[
        Path | None, typer.Option("--roster", help="The signed roster; without it, the newest one shown.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a member's new or changed key; compare the fingerprint with its owner first, not by way of the roster."""
    from clients.roster import approve_keys

    approved = approve_keys(config, fingerprints, roster, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(approved)
    else:
        print_lines([f"The key of {member.department} is approved: {member.fingerprint}" for member in approved])
