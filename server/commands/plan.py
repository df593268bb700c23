"""``cityfed-server plan``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import HomeOption, JsonOption
from server.home import DEFAULT_HOME
from shared.cli import new_app, print_json, print_lines

app = new_app("Draft, sign and publish plans.")

DigestArgument = Annotated[str, typer.Argument(help="The plan's digest, 64 hex digits.", metavar="DIGEST")]


@app.command()
def draft(
    scenario: Annotated[str, typer.Argument(help="A packaged scenario or a TOML file.", metavar="SCENARIO")],
    summaries: Annotated[
        list[Path], typer.Argument(help="Files of `cityfed-client data declare`.", metavar="SUMMARY...")
    ],
    *,
    home: HomeOption = Path(DEFAULT_HOME),
    valid_days: Annotated[int, typer.Option("--valid-days", help="Days that the plan is valid.", metavar="DAYS")] = 30,
) -> None:
    """Draft a plan for the departments that told of their data sets."""
    from server.drafts import city_line, load_ask
    from server.drafts import draft as make_draft
    from server.home import open_home

    authority, now = open_home(home), dt.datetime.now(dt.UTC)
    plan, path = make_draft(authority, load_ask(scenario), summaries, now=now, valid_days=valid_days)
    print_lines([f"Drafted {plan.name} in {path}.", city_line(plan), plan.digest().hex()])


@app.command()
def sign(digest: DigestArgument, *, home: HomeOption = Path(DEFAULT_HOME)) -> None:
    """Sign a draft with the plan key."""
    from server.home import open_home
    from server.plan_files import sign as sign_draft

    print_lines([f"Signed: {sign_draft(open_home(home), digest, now=dt.datetime.now(dt.UTC))}"])


@app.command()
def publish(digest: DigestArgument, *, home: HomeOption = Path(DEFAULT_HOME)) -> None:
    """Show a signed plan to the departments; the file may also be handed to them."""
    from server.home import open_home
    from server.plan_files import publish as publish_plan

    print_lines([f"Published: {publish_plan(open_home(home), digest, now=dt.datetime.now(dt.UTC))}"])


@app.command("list")
def list_all(*, home: HomeOption = Path(DEFAULT_HOME), as_json: JsonOption = False) -> None:
    """Print every plan by digest, with its state."""
    from server.home import open_home
    from server.plan_files import list_plans, plan_lines

    found = list_plans(open_home(home))
    if as_json:
        print_json(found)
    else:
        print_lines(plan_lines(found))
