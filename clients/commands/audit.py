"""``cityfed-client audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import new_app, print_json_lines

app = new_app("Read and check this department's audit log.")


@app.command("verify")
def audit_verify(
    config: ConfigArgument,
    *,
    receipts: Annotated[
        Path | None, typer.Option("--receipts", help="Heads of this journal that somebody else holds.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute the hash chain; with receipts also find a shortened or rolled-back journal."""
    from clients.config import load_config
    from shared.cli_audit import verify_and_print

    settings = load_config(config)
    journal = config.parent / settings.journal
    verify_and_print(journal, owner=settings.department, receipts=receipts, as_json=as_json)


@app.command("show")
def audit_show(config: ConfigArgument) -> None:
    """Print every entry as a line of JSON: decisions with all findings, charges, answers, refusals."""
    from clients.config import read_journal
    from shared.cli_audit import print_entries

    with read_journal(config) as journal:
        print_entries(journal)


@app.command("receipts")
def audit_receipts(config: ConfigArgument) -> None:
    """Print what others signed about their journals: the authority's heads, in which runs members took part."""
    from clients.explain import others_receipts

    print_json_lines(others_receipts(config))
