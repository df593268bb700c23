"""``cityfed-client policy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clients.commands.options import ConfigArgument
from shared.cli import new_app, print_lines

app = new_app("Write this department's policy and sign it.")


@app.command("owner-key")
def owner_key(
    file: Annotated[Path, typer.Argument(help="The key file to make; its owner keeps it.", metavar="KEYFILE")],
) -> None:
    """Make the policy owner's key; prints the public half for `enrol --policy-owner`."""
    from clients.policy_file import make_owner_key

    print_lines([make_owner_key(file)])


@app.command()
def draft(
    config: ConfigArgument,
    source: Annotated[str, typer.Argument(help="A packaged policy or template, or a TOML file.", metavar="POLICY")],
) -> None:
    """Write policy.toml for the bound data set and the pinned authority; edit it before it is signed."""
    from clients.policy_file import write_policy

    print_lines([f"Written: {write_policy(config, source)}. Read it, change it, then have its owner sign it."])


@app.command()
def sign(
    config: ConfigArgument,
    *,
    key: Annotated[Path, typer.Option("--key", help="The policy owner's key.", metavar="KEYFILE")],
) -> None:
    """Sign policy.toml with its owner's key; a changed policy asks for a new `data check`."""
    from clients.policy_file import sign_policy_file

    print_lines([f"Signed: {sign_policy_file(config, key)}"])
