"""Flower's side of the authority: a ServerApp whose main function is one run of the Coordinator.

Flower opens and closes the run and carries invitations; the update channel carries the rest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.grid import GridCarrier
from server.home import AuthorityHome
from server.replies import only_small_replies
from server.session import conduct
from shared.flower import RUN_KEY

HOME_VARIABLE: Final = "CITYFED_HOME"
"""Environment variable with the authority's home; `cityfed-server up` sets it for the process that starts runs."""

app = ServerApp()
"""What the bundle refers to."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run that was submitted under the id in the run's settings.

    A run that ends without a model raises out of the app, because Flower calls everything else completed.
    """
    home = AuthorityHome(Path(os.environ[HOME_VARIABLE]))
    conduct(home, str(context.run_config[RUN_KEY]), lambda nodes: GridCarrier(only_small_replies(grid), nodes))
