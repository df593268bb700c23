"""Private keys at rest: one file per key, readable by its owner only, or a systemd credential (protocol 8).

PKCS#8 password encryption is not offered: its key derivation is too weak to rely on. Protect the disk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from shared.errors import ConfigError
from shared.identity import KEY_BYTES, IdentityKey
from shared.private_files import write_private_file

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Set by systemd for a service with ``LoadCredential=``; a credential carries the name of the key file."""

_OTHERS = 0o077
_OTHERS_OF_CREDENTIAL = 0o007  # systemd lets the service in by an access list, whose mask shows as group bits


def save_private(path: Path, content: bytes) -> None:
    """Write a new key file with mode 0600; an existing file is never overwritten.

    Raises:
        ConfigError: ``key-file-exists``.
    """
    try:
        write_private_file(path, content)
    except FileExistsError as cause:
        raise ConfigError("key-file-exists", f"{path} exists; a key is never overwritten.") from cause


def find_private(path: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where a key file lies: among the service's credentials if one has its name, else at ``path``.

    For programs that are handed a path; whoever needs the bytes calls :func:`read_private`.

    Raises:
        ConfigError: ``key-file-missing``; ``key-file-open`` when others may read it.
    """
    folder = environ.get(CREDENTIALS_VARIABLE)
    credential = Path(folder) / path.name if folder else None
    found, forbidden = (path, _OTHERS)
    if credential is not None and credential.is_file():
        found, forbidden = credential, _OTHERS_OF_CREDENTIAL
    try:
        mode = found.stat().st_mode
    except OSError as cause:
        raise ConfigError("key-file-missing", f"The key file {found} cannot be read.") from cause
    if stat.S_IMODE(mode) & forbidden:
        raise ConfigError("key-file-open", f"The key file {found} is open to others; its mode must be 0600.")
    return found


def read_private(path: Path, environ: Mapping[str, str] = os.environ) -> bytes:
    """Read a key file or the credential of its name.

    Raises:
        ConfigError: as :func:`find_private`.
    """
    found = find_private(path, environ)
    try:
        return found.read_bytes()
    except OSError as cause:
        raise ConfigError("key-file-missing", f"The key file {found} cannot be read.") from cause


def save_identity(path: Path, key: IdentityKey) -> None:
    """Write a new Ed25519 key as its 32 private bytes.

    Raises:
        ConfigError: ``key-file-exists``.
    """
    save_private(path, key.private_bytes())


def load_identity(path: Path) -> IdentityKey:
    """Read an Ed25519 key.

    Raises:
        ConfigError: as :func:`find_private`; ``key-malformed``.
    """
    content = read_private(path)
    if len(content) != KEY_BYTES:
        raise ConfigError("key-malformed", f"{path} is not an identity key: one has {KEY_BYTES} bytes.")
    return IdentityKey.from_private_bytes(content)
