"""Flower's side of the authority: a ServerApp whose main function is one run of the Coordinator.

:func:`server_app` sends every message of the protocol by way of Flower; a deployment runs :data:`app`, in which Flower
opens and closes the run and the update channel carries the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.coordinator import Coordinator
from server.grid import GridTransport
from server.home import AuthorityHome
from server.results import RunResult
from server.session import conduct
from shared.flower import RUN_KEY
from shared.identity import DepartmentId
from shared.parameters import Vector
from shared.transport import Transport

HOME_VARIABLE: Final = "CITYFED_HOME"
"""Environment variable with the authority's home; `cityfed-server up` sets it for the process that starts runs."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one run needs that Flower does not bring.

    Attributes:
        nodes: Flower's node id per department.
        coordinator: makes the Coordinator (plan, roster, authority key, journal) over a transport.
        initial_model: shape (layout.size,), float32; the plan names its hash.
        release: takes the finished run; not called for one that failed.
    """

    nodes: Mapping[DepartmentId, int]
    coordinator: Callable[[Transport], Coordinator]
    initial_model: Vector
    release: Callable[[RunResult], None]


def server_app(
    assignment_of: Callable[[Context], AbstractContextManager[Assignment]],
) -> ServerApp:
    """Return a ServerApp that runs one plan.

    A run that ends without a model raises out of the app, because Flower calls everything else completed.

    Args:
        assignment_of: opens what the run needs, journal included, and closes it at the end.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Run the assignment and hand its result over."""
        with assignment_of(context) as assignment:
            coordinator = assignment.coordinator(GridTransport(grid, assignment.nodes))
            assignment.release(coordinator.run(assignment.initial_model))

    return app


def _deployed_app() -> ServerApp:
    """Return the app of a deployment."""
    deployed = ServerApp()

    @deployed.main()
    def main(grid: Grid, context: Context) -> None:
        """Conduct the run that was submitted under the id in the run's settings."""
        from server.replies import only_small_replies  # noqa: PLC0415 - loads what tries a socket; simulations open none

        home = AuthorityHome(Path(os.environ[HOME_VARIABLE]))
        conduct(home, str(context.run_config[RUN_KEY]), lambda nodes: GridTransport(only_small_replies(grid), nodes))

    return deployed


app = _deployed_app()
"""What the bundle refers to."""
