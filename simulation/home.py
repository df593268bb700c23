"""Where a simulation keeps things on this machine: one folder, laid out here and nowhere else.

::

    .cityfed/                       CITYFED_HOME, or `.cityfed` under the current directory
    ├── models/minilm/              weights, tokenizer, SHA256SUMS
    ├── departments/<name>/         reports.csv and binding.toml; only that department reads them
    └── public/reports.csv          messages routed to no department: for tuning, under no budget
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import SetupError

HOME_VARIABLE = "CITYFED_HOME"
DEFAULT_HOME = ".cityfed"

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


@dataclass(frozen=True)
class Home:
    """The folder of one simulation set-up, with the paths inside it.

    Args:
        root: absolute path of the folder; it need not exist yet.
    """

    root: Path

    @property
    def weights(self) -> Path:
        """Folder of the MiniLM weights and tokenizer."""
        return self.root / "models" / "minilm"

    @property
    def departments(self) -> Path:
        """Folder that holds one folder per department."""
        return self.root / "departments"

    @property
    def public(self) -> Path:
        """Folder of the messages that were routed to no department."""
        return self.root / "public"

    def department(self, name: str) -> Path:
        """Folder of one department's rows and binding."""
        return self.departments / name


def find_home(environ: Mapping[str, str] = os.environ) -> Home:
    """Return the home that ``CITYFED_HOME`` names, or ``.cityfed`` under the current directory."""
    return Home(Path(environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().absolute())


def make_private_folder(path: Path) -> None:
    """Make a folder and its parents so that only this account can enter it.

    Raises:
        SetupError: ``home-not-writable``.
    """
    try:
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        path.chmod(PRIVATE_FOLDER)
    except OSError as cause:
        raise SetupError("home-not-writable", f"{path} cannot be made a private folder: {cause.strerror}.") from cause


def write_private_file(path: Path, content: bytes) -> None:
    """Write a new file that only this account can read (mode 0600).

    Raises:
        OSError: if the file exists or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
