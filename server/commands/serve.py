"""``cityfed-server up``, ``run``, ``status``, ``runs``, ``logs``, ``model`` and ``stop``: they belong to no group."""

from __future__ import annotations

import datetime as dt
import sys
import time
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.options import HomeOption, JsonOption
from server.home import DEFAULT_HOME
from shared.cli import console, print_json, print_lines, tell

if TYPE_CHECKING:
    from server.runs import RunStatus

RunArgument = Annotated[str, typer.Argument(help="The run's id, or its first digits.", metavar="RUN")]
STOP_PATIENCE_S = 30.0


def mount(app: typer.Typer) -> None:
    """Add the commands to the root."""
    for command in (up, run, status, runs, logs, model, stop):
        app.command()(command)
    for command in (gateway, shelf):
        app.command(hidden=True)(command)


def up(*, home: HomeOption = Path(DEFAULT_HOME)) -> None:
    """Keep the authority's processes running: SuperLink, SuperExec, gateway and shelf; until Ctrl-C or `stop`."""
    from server.home import open_home
    from server.up import run_authority
    from shared.logs import log_json
    from shared.supervise import stop_on_signals

    log_json()
    stopped = Event()
    stop_on_signals(stopped)
    run_authority(open_home(home), stopped=stopped)


def gateway(*, home: HomeOption = Path(DEFAULT_HOME)) -> None:
    """Serve Flower's only door; `up` starts this."""
    from server.home import open_home
    from server.up import run_gateway
    from shared.logs import log_json

    log_json()
    run_gateway(open_home(home))


def shelf(*, home: HomeOption = Path(DEFAULT_HOME)) -> None:
    """Serve roster, published plans and released models to departments; `up` starts this."""
    from server.home import open_home
    from server.shelf import run_shelf
    from shared.logs import log_json
    from shared.supervise import stop_on_signals

    log_json()
    stopped = Event()
    stop_on_signals(stopped)
    run_shelf(open_home(home), stopped=stopped)


def run(
    plan: Annotated[str, typer.Argument(help="The published plan's digest, 64 hex digits.", metavar="DIGEST")],
    *,
    home: HomeOption = Path(DEFAULT_HOME),
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a published plan with the departments that approved it; a run without a model fails, whatever Flower says."""
    from server.home import open_home
    from server.runs import status_lines
    from server.submit import PATIENCE_S, submit_run, watch_run

    authority = open_home(home)
    folder = submit_run(authority, plan, now=dt.datetime.now(dt.UTC))
    terminal = console()
    tell(terminal, f"Run {folder.path.name} is submitted.")
    if detach:
        return

    told: set[str] = set()

    def say(status: RunStatus) -> None:
        first, *rest = status_lines(folder.path.name, status)
        for line in (first, *(line for line in rest if ": missing in step " in line)):
            if line not in told:
                told.add(line)
                tell(terminal, line)

    def stands_still(code: str) -> None:
        sentence = f"The authority is away, or does not get the run to begin [{code}]"
        tell(terminal, f"{sentence}: it is waited for, {PATIENCE_S:.0f} s at most.")

    finished = watch_run(authority, folder, tell=say, stands_still=stands_still, wait=time.sleep)
    if as_json:
        print_json(finished)
    else:
        print_lines(status_lines(folder.path.name, finished))


def status(
    run_id: Annotated[
        str, typer.Argument(help="A run's id, or its first digits; default the newest.", metavar="RUN")
    ] = "",
    *,
    home: HomeOption = Path(DEFAULT_HOME),
    as_json: JsonOption = False,
) -> None:
    """Show the processes, and how a run stands: who is missing, and each department's last sign of life."""
    from server.expiry import city_warnings
    from server.home import open_home
    from server.overview import overview, overview_lines

    authority = open_home(home)
    view = overview(authority, run_id, warnings=city_warnings(authority, now=dt.datetime.now(dt.UTC)))
    if as_json:
        print_json(view)
    else:
        print_lines(overview_lines(view))


def runs(*, home: HomeOption = Path(DEFAULT_HOME), as_json: JsonOption = False) -> None:
    """List every run, the newest first."""
    from server.home import open_home
    from server.runs import run_folders, status_lines

    folders = list(run_folders(open_home(home)))
    if as_json:
        print_json({folder.path.name: folder.status() for folder in folders})
    else:
        print_lines([status_lines(folder.path.name, folder.status())[0] for folder in folders] or ["No runs yet."])


def logs(run_id: RunArgument, *, home: HomeOption = Path(DEFAULT_HOME)) -> None:
    """Print what the process of a run had to say, as lines of JSON."""
    from server.home import open_home
    from server.runs import run_folder
    from shared.logs import log_files

    for log in log_files(run_folder(open_home(home), run_id).log):
        if log.exists():
            sys.stdout.write(log.read_text("utf-8"))


def model(
    run_id: RunArgument,
    *,
    home: HomeOption = Path(DEFAULT_HOME),
    release: Annotated[
        bool, typer.Option("--release", help="Put it on the shelf, where every department may fetch it.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; default `model`.", metavar="DIR")
    ] = None,
    audits: Annotated[
        list[Path] | None,
        typer.Option("--audit", help="A department's `attack-audit.json`. May be repeated.", metavar="FILE"),
    ] = None,
    approved_by: Annotated[
        str, typer.Option("--approved-by", help="Who releases it, where the plan wants a name.", metavar="PERSON")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Write a completed run's model with what is signed about it and its card, or put it on the shelf."""
    from server.home import open_home
    from server.released import put_on_shelf, release_model

    authority, folder, lines = open_home(home), out or Path("model"), list[str]()
    now = dt.datetime.now(dt.UTC)
    if release:
        released = put_on_shelf(authority, run_id, now=now, audits=audits or (), approved_by=approved_by)
        lines.append(f"The model of run {released.run.hex()} is on the shelf: departments may fetch it.")
    if out is not None or not release:
        released = release_model(authority, run_id, folder, now=now, audits=audits or (), approved_by=approved_by)
        lines.append(f"{folder} holds the model of run {released.run.hex()}: hand the whole folder out.")
    if as_json:
        print_json(released)
    else:
        print_lines(lines)


def stop(
    run_id: Annotated[str, typer.Argument(help="Stop this run only.", metavar="RUN")] = "",
    *,
    home: HomeOption = Path(DEFAULT_HOME),
) -> None:
    """Stop the authority's processes, or one run."""
    from server.home import open_home
    from server.submit import stop_run
    from shared.supervise import stop_supervisor

    authority = open_home(home)
    if run_id:
        stop_run(authority, run_id)
        print_lines(["The run was told to stop."])
    elif stop_supervisor(authority.service, patience_s=STOP_PATIENCE_S, wait=time.sleep):
        print_lines(["Stopped."])
    else:
        print_lines(["Nothing was on."])
