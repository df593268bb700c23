"""``cityfed-client model`` and ``predict``."""

from __future__ import annotations

import datetime as dt
import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import new_app, print_json, print_lines

app = new_app("Install the models of runs.")


@app.command()
def fetch(
    config: ConfigArgument,
    run_id: Annotated[str, typer.Argument(help="The run's id, or its first digits.", metavar="RUN")],
    *,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A folder that the authority handed out; default its shelf.", metavar="DIR"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a run's model against the plan that was approved and the account that was countersigned; install it."""
    from clients.models import fetch_model
    from clients.shelf import fetch_released

    now = dt.datetime.now(dt.UTC)
    if source is None:
        installed = fetch_released(config, run_id, now=now)
    else:
        installed = fetch_model(config, run_id, source=source, now=now)
    if as_json:
        print_json(installed.release)
        return
    compared = (
        "it is the one that this department countersigned in the last round"
        if installed.countersigned
        else "this department did not countersign the last round, so the authority's signature alone stands for it"
    )
    print_lines([f"Installed in {installed.path}: {compared}."])


def predict(
    config: ConfigArgument,
    file: Annotated[Path, typer.Argument(help="A CSV file with a header, or one text per line.", metavar="FILE")],
    *,
    run_id: Annotated[str, typer.Option("--model", help="The run, if several models lie here.", metavar="RUN")] = "",
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="Holds the text; default the bound columns. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Instead of standard output.", metavar="FILE")] = None,
) -> None:
    """Score texts with an installed model; prints the rows with a `score` column."""
    from clients.models import predict as predict_file
    from shared.private_files import replace_private_file

    now = dt.datetime.now(dt.UTC)
    if out is None:
        predict_file(config, file, run=run_id, columns=columns or (), out=sys.stdout, now=now)
        return
    scored = io.StringIO(newline="")
    predict_file(config, file, run=run_id, columns=columns or (), out=scored, now=now)
    replace_private_file(out, scored.getvalue().encode())  # the rows themselves are in it
