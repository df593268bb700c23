"""``cityfed-client config``."""

from __future__ import annotations

from clients.commands.options import ConfigArgument
from shared.cli import new_app, print_json

app = new_app("See the effective configuration.")


@app.command("show")
def config_show(config: ConfigArgument) -> None:
    """Print the effective configuration as JSON."""
    from clients.config import load_config

    print_json(load_config(config))
