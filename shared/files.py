"""Files that people name or put in place: read whole, or refused in one sentence that says which."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigError


def read_file(path: Path, *, made_by: str = "") -> bytes:
    """Read a file or say why it cannot be read.

    Args:
        path: the file.
        made_by: what makes it, as the end of the sentence that it is not there; nothing where that is anybody's guess.

    Raises:
        ConfigError: ``file-missing``.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as cause:
        raise ConfigError("file-missing", f"{path} is not there{made_by}.") from cause
    except IsADirectoryError as cause:
        raise ConfigError("file-missing", f"{path} is a folder: name the file in it.") from cause
    except OSError as cause:
        raise ConfigError("file-missing", f"{path} cannot be read: {cause.strerror}.") from cause
    except ValueError as cause:  # NUL in a name that a file gave
        raise ConfigError("file-missing", f"{str(path)!r} is no name that a file can have.") from cause
