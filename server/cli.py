"""``cityfed-server``: the central authority.

A group of commands is a file in :mod:`server.commands`; only what belongs to no group stands here.
"""

from __future__ import annotations

from server.commands import audit
from shared.cli import new_app, run_app

app = new_app("The authority's side: check the audit log of the runs that it coordinated.")
app.add_typer(audit.app, name="audit")


@app.callback()
def _root() -> None:
    """Keep `audit` a group of its own."""


def main() -> None:
    """Entry point."""
    run_app(app)
