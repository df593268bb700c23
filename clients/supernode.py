"""Becomes Flower's SuperNode, after it has said good-bye in the name of one that could not.

A SuperNode that was killed counts as online until its last sign of life is a minute old, and Flower turns away every
other one with the same key for so long. Its good-bye is signed with that key, so whoever holds the key may say it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NoReturn

from clients.config import load_config
from clients.up import SERVICE, SUPERNODE, supernode_command

NAMED: Final = re.compile(rb"SuperNode ID: (\d{1,20})\b")
"""How a SuperNode says under which number the authority knows it."""


def become_supernode(config_path: Path, *, runtime: str, secret: Path) -> NoReturn:
    """Say the last SuperNode's good-bye, then put Flower's program in the place of this process.

    Args:
        config_path: this department's ``client.toml``.
        runtime: host and port on which it serves the node.
        secret: file with what it asks of whoever takes tasks.

    Raises:
        ConfigError: as :func:`clients.config.load_config`; ``key-file-missing``, ``key-file-open``, ``key-malformed``;
            ``file-missing``.
    """
    config, home = load_config(config_path), config_path.absolute().parent
    number = last_number(home / SERVICE / "log")
    if number:
        from clients.goodbye import say_goodbye  # noqa: PLC0415 - imports flwr, which the first start need not wait for

        say_goodbye(home, config, number)
    command = supernode_command(home, config, runtime, secret)
    os.execv(command[0], command)  # noqa: S606 - a full path, and no shell is wanted


def last_number(logs: Path) -> int:
    """Return the number of the SuperNode that ran last, by what it has logged; 0 when none ever got in."""
    for name in (f"{SUPERNODE}.log", f"{SUPERNODE}.log.1"):
        try:
            found = NAMED.findall((logs / name).read_bytes())
        except OSError:
            continue
        if found:
            return int(found[-1])
    return 0
