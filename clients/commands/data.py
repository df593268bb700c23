"""``cityfed-client data``."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import new_app, print_json, print_lines

app = new_app("Bind data to a contract.")


@app.command("check")
def data_check(
    binding: Annotated[Path, typer.Argument(help="The binding TOML.", metavar="BINDING")],
    *,
    config: Annotated[
        Path | None, typer.Option("--config", help="Also judge by this department's policy, as a node requires.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a data set in full and declare its frozen public size; prints rule names and counts, never values."""
    from clients.data_check import bind_data, check_data
    from clients.explain import declaration_lines

    now = dt.datetime.now(dt.UTC)
    declaration = check_data(binding, now=now) if config is None else bind_data(config, now=now, binding=binding)
    if as_json:
        print_json(declaration)
    else:
        print_lines(declaration_lines(declaration))


@app.command()
def declare(
    config: ConfigArgument,
    *,
    out: Annotated[Path, typer.Option("--out", help="The file to write.", metavar="FILE")] = Path("summary.json"),
) -> None:
    """Write what the authority needs for a plan, signed: contract hash, public size, package digest; no more."""
    from clients.data_check import write_summary

    summary = write_summary(config, out)
    print_lines([f"{out} tells the authority: {summary.public_size} units under contract {summary.contract_hash}."])
