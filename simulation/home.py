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

HOME_VARIABLE = "CITYFED_HOME"
DEFAULT_HOME = ".cityfed"


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
