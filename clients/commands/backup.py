"""``cityfed-client backup`` and ``restore``: they belong to no group."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import print_json, print_lines


def mount(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command()(backup)
    app.command()(restore)


def backup(
    config: ConfigArgument,
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT")],
    *,
    with_keys: Annotated[bool, typer.Option("--with-keys", help="Also copy the private keys, unencrypted.")] = False,
) -> None:
    """Copy this department's home, the journal included, while a node may be at work; without the rows."""
    from clients.backup import make_backup

    made = make_backup(config, out, keys=with_keys, now=dt.datetime.now(dt.UTC))
    keys = "with the private keys: keep it on an encrypted disk" if made.keys else "without private keys"
    print_lines([f"{out} holds {len(made.files)} files and the journal up to entry {made.sequence}, {keys}."])


def restore(
    home: Annotated[Path, typer.Argument(help="The folder to restore; it holds no journal.", metavar="HOME")],
    source: Annotated[Path, typer.Argument(help="What `backup` made.", metavar="BACKUP")],
    *,
    receipts: Annotated[
        list[Path], typer.Option("--receipts", help="From the authority, and from other departments.", metavar="FILE")
    ],
    rosters: Annotated[
        list[Path] | None,
        typer.Option("--roster", help="With keys of this department from after the backup.", metavar="FILE"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Restore a lost home: charge what may have run since the backup in full, or close the ledger."""
    from clients.restore import restore_home, restored_lines

    restored = restore_home(home, source, receipts, now=dt.datetime.now(dt.UTC), rosters=rosters or ())
    if as_json:
        print_json(restored)
    else:
        print_lines(restored_lines(restored))
