"""``cityfed-client``: a department binds data, watches its budget and reads its audit log.

A group of commands is a file in :mod:`clients.commands`; only what belongs to no group stands here.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from clients.commands import audit, backup, config, data, enrol, model, plan, policy, roster, serve
from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import new_app, print_json, print_json_lines, print_lines, run_app

app = new_app("A department's side: enrol, bind data, judge plans, see the budget, check the audit log, stop.")
enrol.mount(app)
serve.mount(app)
backup.mount(app)
app.add_typer(policy.app, name="policy")
app.add_typer(data.app, name="data")
app.add_typer(plan.app, name="plan")
app.add_typer(model.app, name="model")
app.command()(model.predict)
app.add_typer(audit.app, name="audit")
app.add_typer(roster.app, name="roster")
app.add_typer(config.app, name="config")


@app.command()
def budget(config: ConfigArgument, *, as_json: JsonOption = False) -> None:
    """Show what was spent, what is reserved, what is left, and what one more run like the last would cost."""
    from clients.explain import budget_lines, budget_status

    status = budget_status(config, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(status)
    else:
        print_lines(budget_lines(status))


@app.command("export")
def export_charges(config: ConfigArgument) -> None:
    """Print every charge as a line of JSON that dp-accounting can recompute."""
    from clients.config import read_journal
    from shared.privacy.ledger import PrivacyLedger

    with read_journal(config) as journal:
        print_json_lines(PrivacyLedger(journal, lambda: dt.datetime.now(dt.UTC)).export())


@app.command("privacy-audit")
def privacy_audit(
    config: ConfigArgument,
    plan: Annotated[Path, typer.Argument(help="A signed plan, approved or not.", metavar="PLANFILE")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("privacy-audit"),
    as_json: JsonOption = False,
) -> None:
    """Test whether the training code installed here keeps the epsilon that a plan claims; no record takes part."""
    from clients.plan_audit import audit_plan
    from clients.training.audit.page import HTML_FILE, lines
    from shared.attack_audit import ATTACK_AUDIT_FILE

    result = audit_plan(config, plan, out=out, now=dt.datetime.now(dt.UTC))
    if as_json:
        print_json(result)
    else:
        print_lines([*lines(result), f"Report: {out / HTML_FILE}. For the model's release: {out / ATTACK_AUDIT_FILE}"])
    result.require_passed()


@app.command()
def stop(config: ConfigArgument) -> None:
    """Refuse every offer and every round from now on (kill switch)."""
    from clients.config import load_config
    from shared.private_files import replace_private_file

    path = config.parent / load_config(config).stop_file
    replace_private_file(path, b"")  # durably: a power cut does not take it back
    print_lines([f"Stopped: {path} exists. Remove it with `cityfed-client resume`."])


@app.command()
def resume(config: ConfigArgument) -> None:
    """Take back `stop`."""
    from clients.config import load_config

    path = config.parent / load_config(config).stop_file
    path.unlink(missing_ok=True)
    print_lines(["Resumed."])


def main() -> None:
    """Entry point."""
    run_app(app)
