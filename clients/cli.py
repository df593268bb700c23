"""``cityfed-client``: a department binds data, watches its budget and reads its audit log."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from shared.cli import new_app, print_json, run_app

app = new_app("A department's side: bind data, see the budget, check the audit log, approve keys, stop.")
data_app = new_app("Bind data to a contract.")
audit_app = new_app("Read and check this department's audit log.")
config_app = new_app("See the effective configuration.")
roster_app = new_app("Look at the city's roster; approve members' keys.")
app.add_typer(data_app, name="data")
app.add_typer(audit_app, name="audit")
app.add_typer(roster_app, name="roster")
app.add_typer(config_app, name="config")

ConfigArgument = Annotated[Path, typer.Argument(help="This department's client.toml.", metavar="CONFIG")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@data_app.command("check")
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
        _print_lines(declaration_lines(declaration))


@app.command()
def budget(config: ConfigArgument, *, as_json: JsonOption = False) -> None:
    """Show what was spent, what is reserved, what is left, and what one more run like the last would cost."""
    from clients.explain import budget_lines, budget_status

    status = budget_status(config)
    if as_json:
        print_json(status)
    else:
        _print_lines(budget_lines(status))


@app.command("export")
def export_charges(config: ConfigArgument) -> None:
    """Print every charge as a line of JSON that dp-accounting can recompute."""
    from clients.config import open_journal
    from shared.privacy.ledger import PrivacyLedger

    with open_journal(config) as journal:
        for charge in PrivacyLedger(journal, lambda: dt.datetime.now(dt.UTC)).export():
            sys.stdout.write(msgspec.json.encode(charge).decode() + "\n")


@audit_app.command("verify")
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
        _print_lines(
            [f"{verified.entries} entries, head {verified.head.digest.hex()}, {len(heads)} receipts: in order."]
        )


@audit_app.command("show")
def audit_show(config: ConfigArgument) -> None:
    """Print every entry as a line of JSON: decisions with all findings, charges, answers, refusals."""
    from clients.config import open_journal
    from shared.audit import view_entries

    with open_journal(config) as journal:
        for entry in view_entries(journal.entries()):
            sys.stdout.write(msgspec.json.encode(entry).decode() + "\n")


@audit_app.command("receipts")
def audit_receipts(config: ConfigArgument) -> None:
    """Print the heads of the authority's journal that this department was given, one JSON line each."""
    from clients.explain import authority_receipts

    for line in authority_receipts(config):
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")


@roster_app.command("show")
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

    view = roster_view(config, roster)
    if as_json:
        print_json(view)
    else:
        _print_lines(roster_lines(view))


@roster_app.command("approve")
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

    approved = approve_keys(config, fingerprints, roster)
    if as_json:
        print_json(approved)
    else:
        _print_lines([f"The key of {member.department} is approved: {member.fingerprint}" for member in approved])


@config_app.command("show")
def config_show(config: ConfigArgument) -> None:
    """Print the effective configuration as JSON."""
    from clients.config import load_config

    print_json(load_config(config))


@app.command()
def stop(config: ConfigArgument) -> None:
    """Refuse every offer and every round from now on (kill switch)."""
    from clients.config import load_config

    path = config.parent / load_config(config).stop_file
    path.touch(mode=0o600)
    _print_lines([f"Stopped: {path} exists. Remove it with `cityfed-client resume`."])


@app.command()
def resume(config: ConfigArgument) -> None:
    """Take back `stop`."""
    from clients.config import load_config

    path = config.parent / load_config(config).stop_file
    path.unlink(missing_ok=True)
    _print_lines(["Resumed."])


def main() -> None:
    """Entry point."""
    run_app(app)


def _print_lines(lines: list[str]) -> None:
    """Print results for a person."""
    sys.stdout.write("\n".join(lines) + "\n")
