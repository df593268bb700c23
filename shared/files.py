"""Files that people name or put in place: read whole, or refused in one sentence that says which."""

from __future__ import annotations

from pathlib import Path

from shared.errors import ConfigError


def read_file(path: Path, *, made_by: str = "", max_bytes: int = -1) -> bytes:
    """Read a file or say why it cannot be read.

    Args:
        path: the file.
        made_by: what makes it, as the end of the sentence that it is not there; nothing where that is anybody's guess.
        max_bytes: how many whoever decodes them allows; at most one more is read, also where a carried file is a link
            to something without end. Below 0 there is no limit.

    Raises:
        ConfigError: ``file-missing``.
    """
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1 if max_bytes >= 0 else -1)
    except FileNotFoundError as cause:
        raise ConfigError("file-missing", f"{path} is not there{made_by}.") from cause
    except IsADirectoryError as cause:
        raise ConfigError("file-missing", f"{path} is a folder: name the file in it.") from cause
    except OSError as cause:
        raise ConfigError("file-missing", f"{path} cannot be read: {cause.strerror}.") from cause
    except ValueError as cause:  # NUL in a name that a file gave
        raise ConfigError("file-missing", f"{str(path)!r} is no name that a file can have.") from cause
