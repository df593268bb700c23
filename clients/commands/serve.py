"""``cityfed-client up`` and ``doctor``, and what `up` starts: they belong to no group."""

from __future__ import annotations

import datetime as dt
from importlib.metadata import packages_distributions
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument, JsonOption
from shared.cli import print_json, print_lines


def mount(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command()(up)
    app.command()(doctor)
    app.command(hidden=True)(supernode)
    app.command(hidden=True)(node)
    app.command(hidden=True)(worker)


def up(config: ConfigArgument) -> None:
    """Keep this department's processes running: Flower's SuperNode and the node; until Ctrl-C or SIGTERM."""
    from clients.up import run_department
    from shared.logs import log_json
    from shared.supervise import stop_on_signals

    log_json()
    stopped = Event()
    stop_on_signals(stopped)
    run_department(config, stopped=stopped)


def doctor(config: ConfigArgument, *, as_json: JsonOption = False) -> None:
    """Check this machine: packages, versions, device, disk, clock, certificates, connections; say what to do."""
    from clients.config import load_config
    from clients.doctor import Patient, doctor_lines, examine, require_ready

    patient = Patient(
        path=config, config=load_config(config), now=dt.datetime.now(dt.UTC), packages=packages_distributions()
    )
    checks = examine(patient)
    if as_json:
        print_json(checks)
    else:
        print_lines(doctor_lines(checks))
    require_ready(checks)


RuntimeOption = Annotated[
    str, typer.Option("--runtime", help="The SuperNode's runtime interface.", metavar="HOST:PORT")
]
SecretOption = Annotated[Path, typer.Option("--secret", help="File with what the SuperNode asks for.", metavar="FILE")]


def supernode(config: ConfigArgument, *, runtime: RuntimeOption, secret: SecretOption) -> None:
    """Become Flower's SuperNode; `up` starts this."""
    from clients.supernode import become_supernode
    from shared.logs import log_json

    log_json()
    become_supernode(config, runtime=runtime, secret=secret)


def node(config: ConfigArgument, *, runtime: RuntimeOption, secret: SecretOption) -> None:
    """Answer the authority; `up` starts this."""
    from clients.node import run_node
    from shared.logs import log_json
    from shared.supervise import stop_on_signals

    log_json()
    stopped = Event()
    stop_on_signals(stopped)
    run_node(config, runtime=runtime, secret=secret.read_bytes(), stopped=stopped)


def worker(config: ConfigArgument, pipe: Annotated[int, typer.Argument(help="To the node.", metavar="NUMBER")]) -> None:
    """Attend sessions; `node` starts this."""
    from multiprocessing.connection import Connection

    from clients.attendant import run_worker

    run_worker(config, Connection(pipe))
