"""``cityfed-sim``: whole federations on one machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli import console, new_app, print_json, run_app, tell

if TYPE_CHECKING:
    from simulation.scenario import Scenario

app = new_app("Run whole federations on one machine, with the code that a deployment runs.")

QUICK_MESSAGES = 300
QUICK_SEEDS = 3

ScenarioArgument = Annotated[str, typer.Argument(help="A packaged scenario or a TOML file.", metavar="SCENARIO")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", metavar="DIR")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting.", metavar="KEY=VALUE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@app.command()
def setup() -> None:
    """Fetch the pinned messages and base weights; afterwards no network is needed."""
    from simulation.home import find_home
    from simulation.setup import ensure_setup

    terminal = console()
    home = find_home()
    ensure_setup(home, lambda line: tell(terminal, line))
    tell(terminal, f"Set up in {home.root}")


@app.command()
def run(
    scenario: ScenarioArgument = "emergency-triage",
    *,
    overrides: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/SCENARIO.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="300 messages a department, 3 seeds.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a scenario, or go on with an interrupted run in the same folder."""
    from simulation.scenario import load_scenario

    extra = (f"data.limit={QUICK_MESSAGES}", f"seeds={QUICK_SEEDS}") if quick else ()
    loaded, folder = load_scenario(scenario, (*extra, *(overrides or ())))
    target = out or _free_folder(loaded, quick=quick)
    _interrupted.append(f"Stopped; finished seeds and every journal are kept. Go on with: {_again(target)}")
    summary = _run(loaded, folder, target, as_json=as_json)
    if as_json:
        print_json(summary)


@app.command()
def report(directory: RunFolder) -> None:
    """Rebuild report.html and report.md from a run folder."""
    from simulation.report import write_report

    write_report(directory)
    tell(console(), f"Report: {directory / 'report.html'}")


@app.command()
def predict(
    directory: RunFolder,
    file: Annotated[Path, typer.Argument(help="A CSV file with a header.", metavar="FILE.csv")],
    column: Annotated[str, typer.Option("--column", help="The column that holds the text.")] = "description",
) -> None:
    """Score the texts of a CSV file with a run's model; prints the file with a `score` column."""
    from simulation.predict import predict_file

    predict_file(directory, file, column=column)


@app.command()
def tune(
    scenario: ScenarioArgument = "emergency-triage", *, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Compare learning rates on public messages only: one grid for every arm."""
    from simulation.home import find_home
    from simulation.scenario import load_scenario
    from simulation.tune import print_tuning, tune_arms

    loaded, _ = load_scenario(scenario, tuple(overrides or ()))
    table = tune_arms(loaded, find_home(), note=lambda line: tell(console(), line))
    if as_json:
        print_json(table)
    else:
        print_tuning(table)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A run folder and an arm, as in runs/x:federated.", metavar="DIR:ARM")],
    second: Annotated[str, typer.Argument(help="Another arm of it, or an arm of another run.", metavar="DIR:ARM")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Print the difference of two arms, paired by seed, with its interval; the runs split the same data alike."""
    from simulation.compare import compare_arms, print_comparison

    found = compare_arms(first, second)
    if as_json:
        print_json(found)
    else:
        print_comparison(found)


@app.command()
def audit(
    scenario: ScenarioArgument = "emergency-triage",
    *,
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the report; default runs/SCENARIO-audit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Test whether the training code keeps the epsilon that its plan claims; no record takes part."""
    from rich.console import Console

    from simulation.audit import audit_scenario
    from simulation.home import find_home
    from simulation.scenario import load_scenario

    loaded, _ = load_scenario(scenario, tuple(overrides or ()))
    target = out or Path("runs") / f"{loaded.name}-audit"
    terminal = Console(stderr=True, quiet=True) if as_json else console()
    result = audit_scenario(loaded, home=find_home(), out=target, note=lambda line: tell(terminal, line))
    if as_json:
        print_json(result)
    result.require_passed()


def main() -> None:
    """Entry point."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever fetched at run time
    run_app(app, on_interrupt=lambda: _interrupted[-1] if _interrupted else None)


_interrupted: list[str] = []


def _run(loaded: Scenario, folder: Path, target: Path, *, as_json: bool) -> object:
    """Run with the display that fits the output."""
    from simulation.home import find_home
    from simulation.progress import show_progress
    from simulation.run import run_study
    from simulation.terminal import print_summary

    terminal = console()
    with show_progress(terminal, loaded.rounds * loaded.seeds, quiet=as_json) as progress:
        summary = run_study(loaded, scenario_folder=folder, out=target, home=find_home(), progress=progress)
    if not as_json:
        print_summary(terminal, summary, target)
    return summary


def _free_folder(scenario: Scenario, *, quick: bool) -> Path:
    """Return ``runs/NAME``, or the first ``runs/NAME-K`` that is free or holds an unfinished run of this scenario."""
    from simulation.run_folder import can_use

    stem, number = f"{scenario.name}-quick" if quick else scenario.name, 1
    while not can_use(scenario, folder := Path("runs") / (stem if number == 1 else f"{stem}-{number}")):
        number += 1
    return folder


def _again(target: Path) -> str:
    """Return the command line that goes on, as it was typed."""
    import shlex
    import sys

    words = ["cityfed-sim", *sys.argv[1:]]
    return shlex.join(words if "--out" in words else [*words, "--out", str(target)])
