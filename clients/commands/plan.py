"""``cityfed-client plan``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import new_app, print_json, print_lines

app = new_app("Look at plans; approve or refuse them by digest.")

DigestArgument = Annotated[str, typer.Argument(help="The plan's digest, 64 hex digits.", metavar="DIGEST")]
PersonOption = Annotated[str, typer.Option("--person", help="Who decides, as the policy names people.", metavar="NAME")]


@app.command()
def add(
    config: ConfigArgument, file: Annotated[Path, typer.Argument(help="A signed plan.", metavar="PLANFILE")]
) -> None:
    """Put a plan that the authority handed out into the folder of plans; nothing is approved by that."""
    from clients.config import read_signed
    from clients.plans import add_plan

    print_lines([f"{add_plan(config, read_signed(file)).stem}"])


@app.command()
def fetch(
    config: ConfigArgument,
    digest: Annotated[
        str, typer.Argument(help="The plan's digest; without it, every plan not here yet.", metavar="[DIGEST]")
    ] = "",
    *,
    as_json: JsonOption = False,
) -> None:
    """Fetch published plans from the authority's shelf into the folder of plans; nothing is approved by that."""
    from clients.explain import plan_lines
    from clients.plans import list_plans
    from clients.shelf import fetch_plans

    now = dt.datetime.now(dt.UTC)
    fetched = fetch_plans(config, digest, now=now)
    found = tuple(line for line in list_plans(config, now=now) if line.digest in fetched) if fetched else ()
    if as_json:
        print_json(found)
    else:
        print_lines(plan_lines(found) if found else ["The shelf holds no plan that does not lie here."])


@app.command("list")
def list_all(config: ConfigArgument, *, as_json: JsonOption = False) -> None:
    """Print every plan by digest: approved, waiting, refused, or what is wrong with it."""
    from clients.explain import plan_lines
    from clients.plans import list_plans

    found = list_plans(config, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(found)
    else:
        print_lines(plan_lines(found))


@app.command()
def inspect(config: ConfigArgument, digest: DigestArgument, *, as_json: JsonOption = False) -> None:
    """Show purpose, columns, size, epsilon asked and left, bytes that would leave, and every rule's verdict."""
    from clients.config import load_config, load_policy
    from clients.explain import inspection_lines
    from clients.plans import inspect_plan

    found = inspect_plan(config, digest, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(found)
    else:
        print_lines(inspection_lines(found, load_policy(config, load_config(config)).policy))


@app.command()
def approve(
    config: ConfigArgument,
    digest: DigestArgument,
    *,
    person: PersonOption,
    author: Annotated[bool, typer.Option("--author", help="This person wrote the plan.")] = False,
) -> None:
    """Record one person's approval of exactly this plan; refused while any other rule says no."""
    from clients.plans import approve_plan

    found = approve_plan(config, digest, person=person, author=author, now=dt.datetime.now(dt.UTC))
    enough = "It may run." if found.decision.accepted else "It needs a steward and IT, one of them not its author."
    print_lines([f"{person} approved {found.plan.name}. {enough}"])


@app.command()
def refuse(
    config: ConfigArgument,
    digest: DigestArgument,
    *,
    person: PersonOption,
    reason: Annotated[str, typer.Option("--reason", help="For this department's own log.", metavar="TEXT")] = "",
) -> None:
    """Record one person's no; it stands until the same person approves, and withdraws every approval."""
    from clients.plans import refuse_plan

    plan = refuse_plan(config, digest, person=person, reason=reason, now=dt.datetime.now(dt.UTC))
    print_lines([f"{person} refused {plan.name}."])
