"""Arguments that several commands of a department share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[Path, typer.Argument(help="This department's client.toml.", metavar="CONFIG")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
