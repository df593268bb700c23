"""``cityfed-server``: the central authority.

A group of commands is a file in :mod:`server.commands`; only what belongs to no group stands here.
"""

from __future__ import annotations

from server.commands import audit, city, plan, serve
from shared.cli import new_app, run_app

_INTERRUPTED = "Stopped. A run that was submitted goes on: see `cityfed-server status`, or end it with `stop RUN`."

app = new_app("The authority's side: found a city, admit departments, publish and run plans, check the audit log.")
serve.mount(app)
app.add_typer(city.app, name="city")
app.add_typer(plan.app, name="plan")
app.add_typer(audit.app, name="audit")


def main() -> None:
    """Entry point."""
    run_app(app, on_interrupt=lambda: _INTERRUPTED)
