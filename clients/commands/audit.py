"""``cityfed-client audit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import new_app, print_json, print_lines

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
    from shared.audit import read_receipts
    from shared.journal import verify_journal

    settings = load_config(config)
    heads = read_receipts(receipts, settings.department) if receipts else ()
    verified = verify_journal(config.parent / settings.journal, owner=settings.department, receipts=heads)
    if as_json:
        print_json(verified)
    else:
        print_lines(
            [f"{verified.entries} entries, head {verified.head.digest.hex()}, {len(heads)} receipts: in order."]
        )


@app.command("show")
def audit_show(config: ConfigArgument) -> None:
    """Print every entry as a line of JSON: decisions with all findings, charges, answers, refusals."""
    from clients.config import read_journal
    from shared.audit import view_entries

    with read_journal(config) as journal:
        for entry in view_entries(journal.entries()):
            sys.stdout.write(msgspec.json.encode(entry).decode() + "\n")


@app.command("receipts")
def audit_receipts(config: ConfigArgument) -> None:
    """Print what others signed about their journals: the authority's heads, in which runs members took part."""
    from clients.explain import others_receipts

    for line in others_receipts(config):
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
