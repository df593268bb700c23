"""``cityfed-server audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.cli import new_app, print_json_lines

app = new_app("Read and check the authority's audit log.")

JournalArgument = Annotated[Path, typer.Argument(help="The authority's journal.", metavar="JOURNAL")]


@app.command("verify")
def audit_verify(
    journal: JournalArgument,
    *,
    receipts: Annotated[
        Path | None, typer.Option("--receipts", help="Heads of this journal that departments hold.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Recompute the hash chain; with receipts also find a shortened or rolled-back journal."""
    from server.audit import OWNER
    from shared.cli_audit import verify_and_print

    verify_and_print(journal, owner=OWNER, receipts=receipts, as_json=as_json)


@app.command("show")
def audit_show(journal: JournalArgument) -> None:
    """Print every entry as a line of JSON."""
    from server.audit import OWNER
    from shared.cli_audit import print_entries
    from shared.journal import Journal

    with Journal.read(journal, owner=OWNER) as opened:
        print_entries(opened)


@app.command("receipts")
def audit_receipts(journal: JournalArgument) -> None:
    """Print what departments signed about their journals and in which runs they took part, one JSON line each."""
    from server.audit import department_receipts

    print_json_lines(department_receipts(journal))
