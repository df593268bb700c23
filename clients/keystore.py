"""Private keys at rest: one file per key, readable by its owner only (protocol 8).

PKCS#8 password encryption is not offered: its key derivation is too weak to rely on. Protect the disk.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shared.errors import ConfigError
from shared.identity import IdentityKey


def save_identity(path: Path, key: IdentityKey) -> None:
    """Write a new key file with mode 0600; an existing file is never overwritten.

    Raises:
        ConfigError: ``key-file-exists``.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as cause:
        raise ConfigError("key-file-exists", f"{path} exists; a key is never overwritten.") from cause
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes())


def load_identity(path: Path) -> IdentityKey:
    """Read a key file.

    Raises:
        ConfigError: ``key-file-missing``; ``key-file-open`` when group or others may read it.
        ProtocolError: ``key-malformed``.
    """
    try:
        mode = path.stat().st_mode
    except OSError as cause:
        raise ConfigError("key-file-missing", f"The key file {path} cannot be read.") from cause
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError("key-file-open", f"The key file {path} is open to others; its mode must be 0600.")
    return IdentityKey.from_private_bytes(path.read_bytes())
