"""``cityfed-server audit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from shared.cli import new_app, print_json

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
    from shared.audit import read_receipts
    from shared.journal import verify_journal

    heads = read_receipts(receipts, OWNER) if receipts else ()
    verified = verify_journal(journal, owner=OWNER, receipts=heads)
    if as_json:
        print_json(verified)
    else:
        sys.stdout.write(
            f"{verified.entries} entries, head {verified.head.digest.hex()}, {len(heads)} receipts: in order.\n"
        )


@app.command("show")
def audit_show(journal: JournalArgument) -> None:
    """Print every entry as a line of JSON."""
    from server.audit import OWNER
    from shared.audit import view_entries
    from shared.journal import Journal

    with Journal.read(journal, owner=OWNER) as opened:
        for entry in view_entries(opened.entries()):
            sys.stdout.write(msgspec.json.encode(entry).decode() + "\n")


@app.command("receipts")
def audit_receipts(journal: JournalArgument) -> None:
    """Print what departments signed about their journals and in which runs they took part, one JSON line each."""
    from server.audit import department_receipts

    for line in department_receipts(journal):
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
