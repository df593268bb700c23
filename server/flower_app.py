"""Flower's side of the authority: a ServerApp whose main function is one run of the Coordinator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.coordinator import Coordinator
from server.grid import GridTransport
from server.results import RunResult
from shared.identity import DepartmentId
from shared.parameters import Vector
from shared.transport import Transport


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
