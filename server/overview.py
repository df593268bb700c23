"""How the authority stands: its processes, one run, and each department's last sign of life."""

from __future__ import annotations

import datetime as dt

from server.home import AuthorityHome
from server.roster import load_members
from server.runs import RunStatus, run_folder, run_folders, status_lines
from server.superlink import open_control
from server.up import find_superlink
from shared.codec import Record
from shared.errors import SetupError
from shared.supervise import ProgramStatus, read_status


class NodeView(Record, frozen=True, kw_only=True):
    """A department as Flower knows it; ``last_sign`` is UTC, None before the first."""

    online: bool = False
    last_sign: dt.datetime | None = None


class Overview(Record, frozen=True, kw_only=True):
    """The processes by name, the departments by name, and the run asked for or the newest one.

    Attributes:
        programs: empty when the authority is off.
        nodes: empty when the SuperLink does not answer.
        fault: reason code for which no process may run now; empty when they may.
        warnings: sentences.
    """

    programs: dict[str, ProgramStatus]
    nodes: dict[str, NodeView]
    fault: str = ""
    warnings: tuple[str, ...] = ()
    run: str = ""
    status: RunStatus | None = None


def overview(home: AuthorityHome, run: str, *, warnings: tuple[str, ...] = ()) -> Overview:
    """Collect what there is to know.

    Args:
        home: the authority's home.
        run: a run's id or its first digits; empty for the newest one.
        warnings: what there is to be warned of.

    Raises:
        ConfigError: ``run-unknown``, ``run-ambiguous``; the home is not a city's.
        ProtocolError: the roster does not verify.
    """
    folder = run_folder(home, run) if run else next(run_folders(home), None)
    service = read_status(home.service)
    return Overview(
        programs=service.programs if service else {},
        nodes=_nodes(home),
        fault=service.fault if service else "",
        warnings=warnings,
        run=folder.path.name if folder else "",
        status=folder.status() if folder else None,
    )


def _nodes(home: AuthorityHome) -> dict[str, NodeView]:
    """Ask the SuperLink for the members' nodes."""
    if not home.roster.exists():
        return {}
    keys = load_members(home).node_keys
    try:
        with open_control(find_superlink(home)) as control:
            known = {node.public_key: node for node in control.nodes()}
    except SetupError:
        return {}
    views = {}
    for name in sorted(keys):
        node = known.get(keys[name])
        seen = node is not None and node.last_sign > 0
        views[str(name)] = NodeView(
            online=node is not None and node.online,
            last_sign=dt.datetime.fromtimestamp(node.last_sign, dt.UTC) if node is not None and seen else None,
        )
    return views


def overview_lines(view: Overview) -> list[str]:
    """Say it to a person."""
    lines = [
        f"  {name:10} {'runs' if item.pid else 'waits to be started again'}, starts: {item.starts}"
        for name, item in view.programs.items()
    ]
    lines = ["The authority is on:", *lines] if lines else ["The authority is off."]
    if view.fault:
        lines.append(f"No process may run now: [{view.fault}]")
    lines += view.warnings
    for name, node in view.nodes.items():
        sign = f"{node.last_sign:%Y-%m-%d %H:%M:%S} UTC" if node.last_sign else "never"
        lines.append(f"  {name}: {'online' if node.online else 'MISSING'}, last sign of life {sign}")
    if view.status is not None:
        lines += status_lines(view.run, view.status)
    return lines
